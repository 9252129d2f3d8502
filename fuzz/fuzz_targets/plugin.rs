//! What a plugin may send: its tools, frames, the notice pipe, its output.
#![no_main]

use libfuzzer_sys::fuzz_target;
use stockade::plugin::fuzzing::{frames, notice, output, tools};

fuzz_target!(|data: &[u8]| {
    let Some((kind, data)) = data.split_first() else { return };
    // Cut into pieces by a byte of its own, as reads cut what is written.
    let pieces: Vec<&[u8]> = data.split(|byte| *byte == 0xff).collect();
    match kind % 4 {
        0 => drop(tools(data)),
        1 => frames(&pieces),
        2 => notice(&pieces),
        _ => output(&pieces),
    }
});
