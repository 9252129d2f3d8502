//! Text files that people write: TOML read into checked values, every problem
//! collected with its place and a suggestion. Shared by manifest and config.

mod file;
mod problem;
mod table;
mod units;

pub use file::{read_start, read_text};
pub use problem::{Problem, Problems, Severity};
pub use table::{Table, parse_toml};
pub use units::{Bytes, parse_bytes, parse_duration};

pub(crate) use problem::{key_position, nearest};
