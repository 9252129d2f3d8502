//! Messages of the launch socket, in both directions.
#![no_main]

use libfuzzer_sys::fuzz_target;
use prost::Message as _;
use stockade_proto::launch::{LaunchCommand, LaunchPlan, LaunchReport};

fuzz_target!(|data: &[u8]| {
    if let Ok(plan) = LaunchPlan::decode(data) {
        assert_eq!(LaunchPlan::decode(&plan.encode_to_vec()[..]).expect("again"), plan);
    }
    let _ = LaunchReport::decode(data);
    let _ = LaunchCommand::decode(data);
});
