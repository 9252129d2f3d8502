//! What is too large, of the raw server (`raw.rs`): its tool's schemas, the
//! failure of its start, its results. A mode is `KIND:ARGUMENT`.

use stockade_proto::worker::{self as wire, init_failed::Kind};

/// A number behind the last colon of a mode.
pub fn number(mode: &str) -> usize {
    mode.rsplit(':').next().and_then(|number| number.parse().ok()).unwrap_or(0)
}

/// The schemas of `schema-bomb:KIND:N` and `refused-result:MIB`.
pub fn schemas(mode: &str, spec: &mut wire::ToolSpec) {
    let count = number(mode);
    match mode.rsplit_once(':').map_or(mode, |(kind, _)| kind) {
        // So many regular expressions that take megabytes each.
        "schema-bomb:patterns" => {
            let one = |n| format!(r#"{{"properties":{{"a":{{"pattern":"\\p{{L}}{{60}}{n}"}}}}}}"#);
            let all: Vec<String> = (0..count).map(one).collect();
            spec.input_schema = format!(r#"{{"type":"object","allOf":[{}]}}"#, all.join(","));
        }
        // Each definition refers to the next one twice: 2^N ways to the last.
        "schema-bomb:doubling" => {
            let next = |n| format!(r##"{{"$ref":"#/$defs/a{n}"}}"##);
            spec.output_schema =
                chain(count, r#""type":["integer","null"]"#, |n| format!("{0},{0}", next(n)));
        }
        // Each refers to the next one once: N deep.
        "schema-bomb:chain" => {
            spec.output_schema =
                chain(count, r#""minimum":0"#, |n| format!(r##"{{"$ref":"#/$defs/a{n}"}}"##));
        }
        // Refuses any text in several ways.
        "refused-result" => {
            spec.output_schema =
                r#"{"type":"integer","maxLength":1,"pattern":"^$","const":1}"#.into();
        }
        "references" | "tiny-references" | "many-attachments" => spec.output_schema = String::new(),
        _ => {}
    }
}

fn chain(count: usize, own: &str, next: impl Fn(usize) -> String) -> String {
    let mut text = String::from(r##"{"$ref":"#/$defs/a0","$defs":{"##);
    for n in 0..count {
        text += &format!(r#""a{n}":{{{own},"allOf":[{}]}},"#, next(n + 1));
    }
    text + &format!(r#""a{count}":{{"type":"integer"}}}}}}"#)
}

/// How a start fails: `watch:PATH`, `watch-bomb:N` paths, `text-bomb:KIB` of text.
pub fn failure(mode: &str) -> Option<wire::InitFailed> {
    let missing = wire::InitFailed {
        kind: Kind::Missing as i32,
        message: "a model is missing".into(),
        missing: vec!["model".into()],
        ..Default::default()
    };
    let (kind, argument) = mode.split_once(':')?;
    Some(match kind {
        "watch" => wire::InitFailed { watch: vec![argument.to_owned()], ..missing },
        "watch-bomb" => wire::InitFailed { watch: vec!["/a".into(); number(mode)], ..missing },
        "text-bomb" => wire::InitFailed {
            kind: Kind::Init as i32,
            error_type: "E".into(),
            message: "x".repeat(number(mode) << 10),
            traceback: "x\n".repeat(number(mode) << 4),
            ..Default::default()
        },
        _ => return None,
    })
}

/// The result of `references:N` (one attachment of 8 MiB, named N times), `tiny-references:N`
/// (of one byte),
/// `many-attachments:N` (each of them empty) and `refused-result:MIB` (a text).
pub fn result(mode: &str, call_id: u64) -> Option<wire::Done> {
    let (kind, _) = mode.split_once(':')?;
    let count = number(mode);
    Some(match kind {
        "references" | "tiny-references" => {
            let bytes = if kind == "references" { 8 << 20 } else { 1 };
            let attachment = wire::Attachment {
                name: "a".into(),
                data: vec![0; bytes].into(),
                ..Default::default()
            };
            let names = vec![r#""attachment:a""#; count].join(",");
            wire::Done {
                call_id,
                result: format!("[{names}]").into(),
                attachments: vec![attachment],
            }
        }
        "many-attachments" => wire::Done {
            call_id,
            result: "1".into(),
            attachments: vec![wire::Attachment::default(); count],
        },
        "refused-result" => wire::Done {
            call_id,
            result: format!("\"{}\"", "x".repeat(count << 20)).into(),
            attachments: Vec::new(),
        },
        _ => return None,
    })
}
