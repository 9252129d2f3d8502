//! The smallest plugin: one async tool, and with `--condition` one condition. For
//! benchmarks.

use stockade_plugin_sdk::prelude::*;

#[derive(Deserialize, JsonSchema)]
struct Args {
    text: String,
}

struct Minimal;

impl Plugin for Minimal {
    fn init(_: &InitContext) -> Result<Self> {
        Ok(Minimal)
    }

    fn tools(tools: &mut Tools<Self>) {
        tools.add_async("ping", "Gives the text back", |_, args: Args, _| async { Ok(args.text) });
        if std::env::args().any(|arg| arg == "--condition") {
            tools.condition_async(
                "is",
                "Is there text?",
                &["text"],
                |_, args: Args, _| async move { Ok(!args.text.is_empty()) },
            );
        }
    }
}

fn main() {
    stockade_plugin_sdk::main::<Minimal>()
}
