//! Every size, count, rate and wait that somebody outside of the daemon chooses,
//! bounded in one place. `docs/limits.md` is generated from [`TABLE`].
//!
//! A bound belongs to the edge where it is checked. Inside of the edge nothing
//! is larger, so nothing is checked twice.

use std::time::Duration;

/// Where a bound is checked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Edge {
    /// Requests of clients and operators, by the port or the unix socket.
    Client,
    /// What a plugin's process sends: frames, requests to the host, output.
    Plugin,
    /// What a remote plugin's service answers to `stockade-remote`.
    Service,
    /// Manifests, configuration, plugin directories.
    Configuration,
    /// What the daemon itself waits for or keeps.
    Daemon,
}

impl Edge {
    /// The heading of its table in `docs/limits.md`.
    pub fn title(self) -> &'static str {
        match self {
            Edge::Client => "Client → daemon",
            Edge::Plugin => "Plugin → daemon",
            Edge::Service => "Remote service → `stockade-remote`",
            Edge::Configuration => "Configuration → daemon",
            Edge::Daemon => "The daemon itself",
        }
    }
}

/// What a bound's number counts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Unit {
    /// Bytes.
    Bytes,
    /// Things.
    Count,
    /// Milliseconds.
    Time,
}

/// One row of the table.
#[derive(Clone, Copy, Debug)]
pub struct Bound {
    /// The constant's name in this file.
    pub name: &'static str,
    /// Where it is checked.
    pub edge: Edge,
    /// What the number counts.
    pub unit: Unit,
    /// Bytes, things or milliseconds.
    pub value: u64,
    /// What is bounded.
    pub what: &'static str,
    /// Who may change it: `fixed`, or the key of stockade.toml.
    pub who: &'static str,
    /// What happens beyond it.
    pub beyond: &'static str,
}

macro_rules! bounds {
    ($($edge:ident { $($unit:ident $name:ident = $value:expr, $what:literal, $who:literal, $beyond:literal;)+ })+) => {
        $($(bounds!(@constant $unit $name $value, $what);)+)+
        /// Every bound, in the order of the document.
        pub const TABLE: &[Bound] = &[
            $($(Bound {
                name: stringify!($name),
                edge: Edge::$edge,
                unit: bounds!(@unit $unit),
                value: $value,
                what: $what,
                who: $who,
                beyond: $beyond,
            },)+)+
        ];
    };
    (@constant bytes $name:ident $value:expr, $what:literal) => {
        #[doc = $what]
        pub const $name: usize = $value;
    };
    (@constant count $name:ident $value:expr, $what:literal) => {
        #[doc = $what]
        pub const $name: usize = $value;
    };
    (@constant time $name:ident $value:expr, $what:literal) => {
        #[doc = $what]
        pub const $name: Duration = Duration::from_millis($value);
    };
    (@unit bytes) => { Unit::Bytes };
    (@unit count) => { Unit::Count };
    (@unit time) => { Unit::Time };
}

bounds! {
    Client {
        bytes MAX_REQUEST = 64 << 20, "Arguments and attachments of one call", "max_request", "413 `PayloadTooLarge`";
        bytes MAX_RESULT = 32 << 20, "Result and attachments of one call, or one item of a stream", "max_result", "502 `InvalidResult`";
        bytes STATUS_TEXT = 6 << 10, "Text of an error in a gRPC status, as it is encoded there: a letter of ASCII takes 3 bytes, any other sign of it 5, all else 9 or more; `CallStream`, `Calls` and HTTP have all of it", "fixed", "cut in the middle, with the number of bytes that went";
        bytes SMALL_BODY = 2 << 20, "Body of a request that is no call (workspaces, values, contexts, admin); a message of gRPC may have twice as much", "fixed", "413, RESOURCE_EXHAUSTED";
        bytes NAME = 128, "Names and identifiers: plugin, tool, workspace, provider, permission, attachment", "fixed", "INVALID_ARGUMENT, 422; in a path 404";
        bytes KEY = 512, "Keys, entities, events, patterns, ids of conditions and effects", "fixed", "INVALID_ARGUMENT, 422";
        bytes CONTENT_TYPE = 256, "Content type of an attachment", "fixed", "INVALID_ARGUMENT, 422";
        count ATTACHMENTS = 256, "Attachments of one call or result", "fixed", "INVALID_ARGUMENT, 422; of a result 502 `InvalidResult`, and a breach of the protocol where it is sent all the same";
        count PLUGIN_NAMES = 1024, "Names in `enabled_plugins`, of a workspace or of a watcher", "fixed", "INVALID_ARGUMENT, 422";
        count UNKNOWN = 64, "Fields of one gRPC message that this version does not know", "fixed", "INVALID_ARGUMENT; from a plugin `protocol_error`";
        bytes UNKNOWN_BYTES = 4 << 10, "Their bytes, together", "fixed", "INVALID_ARGUMENT; from a plugin `protocol_error`";
        count LIST = 256, "Entries of any other list in a request", "fixed", "INVALID_ARGUMENT, 422";
        bytes CONTEXT = 1 << 20, "Context, parameters or base of a condition, an effect, a configuration", "fixed", "INVALID_ARGUMENT, 422";
        count JSON_VALUES = 8_000_000, "Values of one JSON text that has to be read as a whole", "fixed", "413 `PayloadTooLarge`; of a result 502 `InvalidResult`";
        count JSON_DEPTH = 127, "Objects and arrays within each other in one JSON text", "fixed", "INVALID_ARGUMENT, 422; of a result 502 `InvalidResult`";
        count CONNECTIONS = 1024, "Connections at once on the port", "max_connections", "the one that has been idle longest ends; then health only, and 503";
        count HEALTH_CONNECTIONS = 64, "Connections beyond `max_connections` that are answered health only", "fixed", "closed";
        count SOCKET_CONNECTIONS = 256, "Connections at once on the unix socket, counted apart", "fixed", "the one that has been idle longest ends; then only what operators ask and do, and 503";
        count SOCKET_RESERVE = 32, "Connections beyond those, which are answered no calls and nothing that is followed", "fixed", "closed";
        count STREAMS = 256, "Requests at once on one HTTP/2 connection", "fixed", "the client waits";
        bytes REQUEST = 16 << 10, "Bytes of `max_buffered` that a request takes besides its own, until its answer has been taken", "fixed", "503 / RESOURCE_EXHAUSTED; health is answered all the same, to connections with few requests";
        bytes FIRST = 32 << 10, "Bytes that one connection, or one plugin, may hold however much of `max_buffered` the others hold (of a small `max_buffered` a 512th)", "fixed", "the rest is a matter of `max_buffered`";
        count RESETS = 32, "Streams that were reset and are not forgotten yet, per connection", "fixed", "GOAWAY";
        count QUESTIONS = 16, "Requests of one connection, other than calls and streams, that are answered at once", "fixed", "the others wait";
        bytes HEADERS = 16 << 10, "Headers of one request", "fixed", "431, RESOURCE_EXHAUSTED; over HTTP/2 an empty 431 beyond 64 KiB, and beyond 256 KiB the connection ends";
        bytes PART_HEAD = 16 << 10, "Headers of one part of a multipart body, or what is before its first part", "fixed", "422";
        count HEADER_LINES = 100, "Headers of one request, by number", "fixed", "431";
        bytes FLOOD = 64 << 10, "Bytes a second on one HTTP/2 connection that belong to no request and no body (pings, settings, resets); headers, and a sixteenth of what the client was sent, are allowed on top", "fixed", "the connection is read in small pieces, after the others; 1 MiB later it ends";
        bytes HTTP2_FRAME = 32 << 10, "One frame of HTTP/2; nothing of it is known, or paid for, before all of it has come", "fixed", "GOAWAY";
        bytes WINDOW = 1 << 20, "Bytes on one HTTP/2 connection that nobody has read yet", "fixed", "the client waits";
        count WATCHERS = 4096, "Streams that follow health, events or logs, all together", "fixed", "429 / RESOURCE_EXHAUSTED";
        count OPERATORS_WATCHERS = 1024, "The same for operators, counted apart", "fixed", "RESOURCE_EXHAUSTED, 429";
        count PROVIDERS = 1024, "Providers that servers have registered, all together; what is kept of each, its compiled schemas as the most they may take, is a matter of `max_buffered`", "fixed", "not registered, told; RESOURCE_EXHAUSTED";
        count PROVIDER_QUEUE = 256, "Requests of plugins that wait until a server takes them; one plugin has a quarter of them", "fixed", "UNAVAILABLE, RESOURCE_EXHAUSTED to the plugin that asks";
        count WORKSPACES = 10_000, "Workspaces that are configured", "fixed", "RESOURCE_EXHAUSTED, 507";
        bytes WORKSPACE_BYTES = 64 << 20, "Their documents, all together (they are kept in memory)", "fixed", "RESOURCE_EXHAUSTED, 507";
        count CALLS = 256, "Calls of one `Tools/Calls` stream that are under way at once", "fixed", "further calls wait";
        count CALLS_WAITING = 4096, "Calls of such a stream that wait", "fixed", "refused, `QueueFull`";
        count ANSWERS = 65_536, "Calls of such a stream whose answers its client has not taken, those under way and those that wait among them", "fixed", "no more calls are read; the stream ends, RESOURCE_EXHAUSTED";
        bytes MESSAGE = 1 << 10, "Bytes of `max_buffered` that a message on such a stream takes besides its own, until its answer is taken", "fixed", "the stream ends, RESOURCE_EXHAUSTED";
        bytes CALL = 4 << 10, "The same of a call while it is under way", "fixed", "refused, `Overloaded`";
        count PAGE_ROWS = 10_000, "Rows of one answer (keys, records, crashes)", "fixed", "the rest with the next request";
        bytes PAGE_BYTES = 4 << 20, "Bytes of one page of values", "fixed", "the rest with the next request";
        time FIRST_BYTE = 10_000, "Wait for a connection's first byte, its TLS handshake and its HTTP/2 preface", "fixed", "closed";
        time HEAD = 10_000, "Wait from a request's first byte to the end of its headers; for the rest of a frame of HTTP/2 that is no part of a body", "fixed", "closed";
        time BODY_PAUSE = 30_000, "Wait for the next byte of a body that is being read; over HTTP/2 for the rest of a frame of it", "fixed", "408 / DEADLINE_EXCEEDED, closed";
        bytes BODY_RATE = 1024, "Bytes a second of a body, at least, in each half minute", "fixed", "408 / DEADLINE_EXCEEDED, closed";
        time UNWANTED = 2_000, "Time for which the rest of a refused body is read and thrown away, so that its client can read the answer", "fixed", "its stream is reset, its connection closed";
        time WRITE_PAUSE = 180_000, "Wait for a client to take the next byte of an answer", "fixed", "closed";
        time QUIET = 4_000, "Time without an event for a client that follows `/v1/events`", "fixed", "a comment is sent; the second one tells whether the client is still there";
        time PARTING = 1_000, "Wait for a client whose connection ends (also with the daemon) to take another 64 KiB of what it has been answered", "fixed", "closed";
        time SILENT = 60_000, "Time without a byte from an HTTP/2 client of a port, which is then sent a ping", "fixed", "a ping";
        time PONG = 20_000, "Wait for its answer to that ping", "fixed", "closed";
        time IDLE = 120_000, "Wait for the next request on an HTTP/1 connection that is kept alive", "fixed", "closed";
        time IDLE_HTTP2 = 600_000, "Wait for the next request on an HTTP/2 connection", "fixed", "GOAWAY, closed";
    }
    Plugin {
        bytes HANDSHAKE_MESSAGE = 1 << 20, "Message of Hello or Init (schemas and texts included)", "fixed", "killed, `protocol_error`";
        bytes FRAME = 64 << 20, "One frame of a call; `max_result` and 1 MiB where that is larger (a result beyond `max_result` costs its call)", "fixed", "killed, `protocol_error`";
        bytes CONTROL_TEXT = 1 << 20, "Text of an error or a traceback as it is sent", "fixed", "killed, `protocol_error`";
        bytes HOST_MESSAGE = 8 << 20, "Request or answer over the host channel", "fixed", "OUT_OF_RANGE";
        count HOST_STREAMS = 64, "Requests at once over the host channel", "fixed", "they wait";
        bytes ERROR_TEXT = 4 << 10, "Error messages, reasons, progress, as kept and passed on", "fixed", "cut in the middle, with the number of bytes that went";
        bytes TRACEBACK = 16 << 10, "Tracebacks and stacks", "fixed", "cut in the middle, with the number of bytes that went";
        bytes DESCRIPTION = 16 << 10, "Descriptions of tools and of what else is registered", "fixed", "cut in the middle, with the number of bytes that went";
        bytes SCHEMAS = 256 << 10, "Schemas of one plugin, all together", "fixed", "FAILED, `init_error`";
        count PATTERNS = 64, "Regular expressions in the schemas of one plugin", "fixed", "FAILED, `init_error`";
        bytes PATTERN_SIZE = 256 << 10, "Memory of one compiled regular expression", "fixed", "FAILED, `init_error`";
        count PATTERN_STEPS = 100_000, "Steps of one backtracking regular expression", "fixed", "does not match";
        count SCHEMA_PATHS = 10_000, "Ways through a schema at one place of a value (a doubling chain of `$ref`s)", "fixed", "FAILED, `init_error`";
        count SCHEMA_DEPTH = 32, "`$ref`s and combinations within each other at one place of a value", "fixed", "FAILED, `init_error`";
        count SCHEMA_STEPS = 200_000_000, "Schema nodes visited while one value is checked", "fixed", "422; of a result 502 `InvalidResult`";
        count TOOLS = 256, "Tools, or registrations of one kind", "fixed", "killed, `protocol_error`";
        bytes PARAMETERS = 64 << 10, "Default parameters of an effect, and at most 2000 values of them", "fixed", "not registered, told";
        count CONFIGURATION_VALUES = 200_000, "Values of a simulation's configuration, of all plugins together", "fixed", "without what is beyond, told";
        bytes CONFIGURATION_BYTES = 2 << 20, "Bytes of what plugins answer for one simulation's configuration", "fixed", "without what is beyond, told";
        count HANDLERS = 16, "Event handlers", "fixed", "not registered, told";
        count EVENT_PATTERNS = 64, "Patterns of one subscription", "fixed", "not registered, told";
        count MISSING = 64, "Names of what is missing", "fixed", "the rest is counted";
        count WATCHED = 64, "Paths whose change may heal a failed start", "fixed", "the rest is not watched";
        count IDLE_FRAMES = 20_000, "Frames a second that answer no call (progress, answers to pings, answers to calls that nobody made); the SDKs send 1000 progress reports a second of a call at most", "fixed", "killed, `protocol_error`";
        count CREDIT = 16, "Items that a tool sends before its client has taken one", "fixed", "killed, `protocol_error`";
        count PROGRESS_WAITING = 64, "Progress reports that wait for a client", "fixed", "dropped";
        bytes PATH = 1 << 10, "Path within a document", "fixed", "INVALID_ARGUMENT";
        count PATH_PARTS = 64, "Parts of a path within a document", "fixed", "INVALID_ARGUMENT";
        bytes DOCUMENT = 1 << 20, "Document of an entity or a workspace", "fixed", "INVALID_ARGUMENT";
        count DOCUMENT_VALUES = 200_000, "Values of a document of an entity", "fixed", "INVALID_ARGUMENT";
        bytes DOCUMENT_SHARE = 512 << 10, "What one plugin may have in one document of an entity", "fixed", "`QuotaExceeded`";
        count DOCUMENTS_LISTED = 4096, "Entities of one `ListDocuments` answer", "fixed", "`more` is true";
        count CALL_DEPTH = 8, "Calls within calls", "fixed", "508 `CallCycle`";
        bytes LOG_LINE = 8 << 10, "Line of output", "fixed", "cut, with a mark";
        bytes LOG_BYTES = 2 << 20, "Output kept per plugin", "fixed", "the oldest lines go, counted";
        count LOG_LINES = 1000, "Lines of output kept per plugin", "log_lines", "the oldest go, counted";
        count LOG_RATE = 20_000, "Lines of output a second that are kept", "fixed", "dropped and counted";
        count LOG_FIELDS = 64, "Fields of a log line", "fixed", "INVALID_ARGUMENT";
        count DENIED_NAMES = 200, "Permissions whose use is counted by name", "fixed", "counted together";
        count EVENT_QUEUE = 10_000, "Events that wait for a subscriber", "fixed", "the oldest go, counted";
        bytes EVENT_BYTES = 8 << 20, "Their bytes, with their names and 256 more for each (of all subscribers together half of `max_buffered`)", "fixed", "the oldest go, counted; of those who are furthest behind";
    }
    Service {
        bytes SERVICE_MESSAGE = 32 << 20, "Answer of a service, over each protocol", "fixed", "the call fails: `InvalidResponse`";
        bytes SERVICE_HEAD = 64 << 10, "Headers of an answer over HTTP", "fixed", "the service is unreachable";
    }
    Configuration {
        bytes PAYLOAD = 255 << 20, "What `max_request` and `max_result` can be set to", "fixed", "the configuration is refused";
        bytes MANIFEST = 64 << 10, "A manifest; `pyvenv.cfg` of a virtual environment", "fixed", "UNAVAILABLE, `manifest_error`";
        bytes DISTRIBUTION = 1 << 20, "A file of an installed Python distribution's metadata", "fixed", "passed over; of `METADATA` only the beginning is read";
        bytes CONFIGURATION = 1 << 20, "A file of the configuration", "fixed", "not taken, told";
        count PLUGIN_FILES = 10_000, "Files and folders in a Python plugin's directory that are looked at for changes", "fixed", "the rest is not watched";
        count REQUIRED = 64, "Entries of each list of `[requires]`", "fixed", "UNAVAILABLE, `manifest_error`";
    }
    Daemon {
        count CREW_QUEUE = 1024, "Jobs of the crew that wait: so many of all plugins together, as many more of all clients, and as many of all operators", "fixed", "503 `Overloaded`, Retry-After";
        bytes BRIEF = 256 << 10, "Text of a client or an operator that is read in the turn of brief work: it waits for one longer text, however many of them wait", "fixed", "it waits for other long texts";
        count CREW_SHARE = 64, "Jobs of the crew that wait for one plugin, one client or one operator", "fixed", "503 `Overloaded`, Retry-After";
        bytes STEP = 64 << 10, "Bytes handled at once where others wait", "fixed", "the crew does it";
        bytes MIN_BUFFERED = 384 << 20, "Bytes held for others, all together: an eighth of memory, but not less than this by default (and never less than 16 MiB); of it one connection may use a quarter, one plugin a half", "max_buffered", "503 / RESOURCE_EXHAUSTED before a body is read; 413 for one that could never fit";
        count EVENTS_KEPT = 1000, "Events of operators that are kept", "fixed", "the oldest go";
        bytes STDERR = 1 << 20, "Log lines that wait for standard error", "fixed", "dropped and counted";
        count RECORDS_WAITING = 256, "Crash records that wait for the disk", "fixed", "dropped and counted";
        time LAST_WORDS = 50, "Time to read what a dying process has written, all pipes together", "fixed", "what has come is kept";
        time LOOK = 1000, "Time for one look of the guard at a process tree", "fixed", "named in health; the others are looked at by another thread";
        time FLUSH = 2000, "Time for the disk at the end of the daemon", "fixed", "it ends without";
    }
}

/// Cuts a text in the middle to at most `most` bytes and says how many went: the
/// beginning of a message tells what it is, the end why.
pub fn cut(text: &str, most: usize) -> String {
    if text.len() <= most {
        return text.to_owned();
    }
    const MARK: usize = 48;
    let room = most.saturating_sub(MARK);
    let head = text.floor_char_boundary(room / 2);
    let tail = text.ceil_char_boundary(text.len() - room / 2);
    format!("{} … ({} bytes cut) … {}", &text[..head], tail - head, &text[tail..])
}

/// [`cut`] without a copy where nothing is to be cut.
pub fn cut_to(text: &mut String, most: usize) {
    if text.len() > most {
        *text = cut(text, most);
        text.shrink_to_fit();
    }
}

/// `docs/limits.md`.
pub fn document() -> String {
    let mut text = String::from(
        "# Limits: what others can choose, and where it ends\n\n\
         Generated from `proto/src/limits.rs`; `UPDATE=1 cargo test -p stockade-proto limits` \
         writes it anew.\nA name behind \"changed by\" is a key of stockade.toml; a bound without one \
         is part of the contract.\nWords such as INVALID_ARGUMENT are gRPC's statuses, numbers such \
         as 422 HTTP's. The *crew* is the pool of threads\nfor large work, the *guard* watches the \
         memory and processes of plugins, the *host channel* is the one on which a\nplugin asks \
         the daemon ([host-services.md](host-services.md)).\n\nWhat a plugin itself may use is in \
         its manifest ([plugins.md](plugins.md)) and, as the operator's ceilings over\nall \
         manifests, in `[limits]` of [stockade.toml](../deploy/examples/stockade.toml).\n",
    );
    let edges = [Edge::Client, Edge::Plugin, Edge::Service, Edge::Configuration, Edge::Daemon];
    for edge in edges {
        text += &format!(
            "\n## {}\n\n| what | bound | changed by | beyond it | name |\n|---|---|---|---|---|\n",
            edge.title()
        );
        for bound in TABLE.iter().filter(|bound| bound.edge == edge) {
            let who = match bound.who {
                "fixed" => "–".to_owned(),
                key => format!("`{key}`"),
            };
            text += &format!(
                "| {} | {} | {who} | {} | `{}` |\n",
                bound.what,
                amount(bound),
                bound.beyond,
                bound.name
            );
        }
    }
    text
}

fn amount(bound: &Bound) -> String {
    let value = bound.value;
    match bound.unit {
        Unit::Bytes if value >= 1 << 20 && value.is_multiple_of(1 << 20) => {
            format!("{} MiB", value >> 20)
        }
        Unit::Bytes if value >= 1 << 10 && value.is_multiple_of(1 << 10) => {
            format!("{} KiB", value >> 10)
        }
        Unit::Bytes => format!("{value} bytes"),
        Unit::Count => value.to_string(),
        Unit::Time if value.is_multiple_of(1000) => format!("{} s", value / 1000),
        Unit::Time => format!("{value} ms"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_document_is_this_table() {
        let path = concat!(env!("CARGO_MANIFEST_DIR"), "/../docs/limits.md");
        if std::env::var_os("UPDATE").is_some() {
            std::fs::write(path, document()).expect("docs/limits.md");
        }
        let written = std::fs::read_to_string(path).unwrap_or_default();
        assert!(
            written == document(),
            "docs/limits.md: UPDATE=1 cargo test -p stockade-proto limits"
        );
    }

    #[test]
    fn a_text_is_cut_in_the_middle_and_says_so() {
        assert_eq!(cut("short", 10), "short");
        let long = format!("begin{}end", "ä".repeat(5000));
        let text = cut(&long, 200);
        assert!(text.len() <= 200, "{}", text.len());
        assert!(text.starts_with("begin") && text.ends_with("end"), "{text}");
        let kept = text.replace(|c: char| c != 'ä', "").len() + 8;
        assert!(text.contains(&format!("({} bytes cut)", long.len() - kept)), "{text}");
    }
}
