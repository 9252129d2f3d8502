//! A whole daemon in process for the fuzz targets that play its outsiders, with
//! clocks on health, on another plugin's calls and on the budget.
//!
//! | file | what it is for |
//! |---|---|
//! | `house.rs` | the daemon and what must hold after each input |
//! | `clock.rs` | asks for health and calls a plugin all the time |
//! | `input.rs` | an input, read as a script |
//! | `puppet.rs` | a plugin's process whose channels the target holds |
//! | `speech.rs` | HTTP/2 as the input wants it: frames, lengths, ends |

pub mod clock;
pub mod house;
pub mod input;
pub mod puppet;
pub mod speech;
