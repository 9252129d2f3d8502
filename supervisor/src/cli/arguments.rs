//! A call's arguments as they are typed, for every command that makes one.

use std::{fs, io::Read as _, path::Path};

use clap::Args;
use serde_json::{Map, Value};
use stockade_proto::v1::Attachment;

use super::failure::Failure;

/// Arguments of a call
#[derive(Args)]
pub(super) struct Given {
    /// One argument; text is read as the type of the tool's schema
    #[arg(short, long = "arg", value_name = "NAME=VALUE")]
    arg: Vec<String>,
    /// All arguments as a JSON object; @FILE reads a file, - standard input
    #[arg(long, value_name = "JSON")]
    args: Option<String>,
    /// A binary argument from a file; - is standard input
    #[arg(short, long = "file", value_name = "NAME=PATH")]
    file: Vec<String>,
}

impl Given {
    /// The JSON text of the arguments.
    pub(super) fn text(&self) -> Result<String, Failure> {
        text(self)
    }

    /// The binary ones.
    pub(super) fn files(&self) -> Result<Vec<Attachment>, Failure> {
        files(&self.file)
    }

    /// They are texts, to be read as what the tool wants.
    pub(super) fn loose(&self) -> bool {
        self.args.is_none()
    }
}

/// A text as typed; `@FILE` reads a file, `-` standard input.
pub(super) fn text_or_stdin(text: String) -> Result<Vec<u8>, Failure> {
    if text == "-" {
        let mut bytes = Vec::new();
        std::io::stdin()
            .read_to_end(&mut bytes)
            .map_err(|error| Failure::usage(format!("standard input: {error}")))?;
        return Ok(bytes);
    }
    match text.strip_prefix('@') {
        Some(path) => fs::read(path).map_err(|error| Failure::usage(format!("{path}: {error}"))),
        None => Ok(text.into_bytes()),
    }
}

fn split<'a>(pair: &'a str, flag: &str) -> Result<(&'a str, &'a str), Failure> {
    pair.split_once('=')
        .filter(|(name, _)| !name.is_empty())
        .ok_or_else(|| Failure::usage(format!("--{flag} {pair:?} is not NAME=VALUE")))
}

fn text(given: &Given) -> Result<String, Failure> {
    let Some(text) = &given.args else {
        let mut object = Map::new();
        for pair in &given.arg {
            let (name, value) = split(pair, "arg")?;
            object.insert(name.to_owned(), Value::String(value.to_owned()));
        }
        return Ok(Value::Object(object).to_string());
    };
    if !given.arg.is_empty() {
        return Err(Failure::usage("give the arguments by --args or by --arg, not both"));
    }
    let text = match text.strip_prefix('@') {
        Some(path) => fs::read_to_string(path)
            .map_err(|error| Failure::usage(format!("cannot read {path}: {error}")))?,
        None if text == "-" => {
            let mut input = String::new();
            std::io::stdin()
                .read_to_string(&mut input)
                .map_err(|error| Failure::usage(format!("cannot read standard input: {error}")))?;
            input
        }
        None => text.clone(),
    };
    serde_json::from_str::<Value>(&text)
        .map_err(|error| Failure::usage(format!("--args is not JSON: {error}")))?;
    Ok(text)
}

fn files(files: &[String]) -> Result<Vec<Attachment>, Failure> {
    let mut attachments = Vec::new();
    for pair in files {
        // A path alone is the tool's only binary argument.
        let (name, path) = match pair.split_once('=') {
            Some((name, path)) if !Path::new(pair).exists() => (name, path),
            _ => ("", pair.as_str()),
        };
        let mut data = Vec::new();
        let read = match path {
            "-" => std::io::stdin().read_to_end(&mut data).map(drop),
            path => fs::read(path).map(|bytes| data = bytes),
        };
        read.map_err(|error| Failure::usage(format!("cannot read {path}: {error}")))?;
        attachments.push(Attachment {
            name: name.to_owned(),
            content_type: content_type(path).to_owned(),
            data: data.into(),
        });
    }
    Ok(attachments)
}

fn content_type(path: &str) -> &'static str {
    let extension = Path::new(path).extension().and_then(|extension| extension.to_str());
    match extension.unwrap_or_default().to_ascii_lowercase().as_str() {
        "jpg" | "jpeg" => "image/jpeg",
        "png" => "image/png",
        "gif" => "image/gif",
        "webp" => "image/webp",
        "json" => "application/json",
        "txt" => "text/plain",
        "mp4" => "video/mp4",
        "wav" => "audio/wav",
        _ => "application/octet-stream",
    }
}
