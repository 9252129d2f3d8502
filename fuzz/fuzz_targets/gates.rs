//! Messages of clients and plugins: what the gate lets through decodes, and nothing
//! panics. The first byte chooses the type.
#![no_main]

use libfuzzer_sys::fuzz_target;
use prost::Message;
use stockade_proto::{gate, gate::Gated, host, v1, worker};

fn passes<T: Message + Default + Gated>(data: &[u8]) {
    let Some(bounds) = T::GATE else { panic!("a message from outside has no gate") };
    if gate::check(bounds, data).is_ok()
        && let Ok(message) = T::decode(data)
    {
        // What was decoded is again a message that passes: no field changes its meaning.
        let again = message.encode_to_vec();
        assert!(gate::check(bounds, &again).is_ok(), "decoded and encoded it does not pass");
    }
}

fuzz_target!(|data: &[u8]| {
    let Some((kind, data)) = data.split_first() else { return };
    match kind % 8 {
        0 => passes::<worker::FromPlugin>(data),
        1 => passes::<worker::HelloResponse>(data),
        2 => passes::<worker::InitUpdate>(data),
        3 => passes::<v1::CallRequest>(data),
        4 => passes::<v1::SetWorkspaceRequest>(data),
        5 => passes::<v1::WatchPluginsRequest>(data),
        6 => passes::<host::EmitRequest>(data),
        _ => passes::<host::LogRequest>(data),
    }
});
