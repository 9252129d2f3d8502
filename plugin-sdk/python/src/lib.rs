//! `stockade._host`: hosts a Python plugin. The Rust SDK speaks the protocol on
//! a thread that never takes the interpreter's lock; Python code runs on the
//! main thread and on one more thread per further call in flight.
//!
//! | file | what it is for |
//! |---|---|
//! | `guest.rs` | loads the plugin, runs its calls |
//! | `threads.rs` | where Python code runs |
//! | `context.rs` | what a tool sees of its call |
//! | `host.rs` | what the host offers |
//! | `arguments.rs` | JSON and attachments → Python |
//! | `results.rs` | Python → JSON and attachments |
//! | `view.rs` | attachments as memory views, not copied |
//! | `failure.rs` | exceptions → errors |

mod arguments;
mod context;
mod failure;
mod guest;
mod host;
mod results;
mod threads;
mod view;

use pyo3::{exceptions::PyException, prelude::*};

pyo3::create_exception!(
    stockade,
    Cancelled,
    PyException,
    "The call was cancelled: its client is gone or its time is up."
);

pyo3::create_exception!(
    stockade,
    InvalidResult,
    PyException,
    "An item of a stream that cannot be sent: it is larger than the operator allows."
);

/// The native half of the package `stockade`.
#[pymodule]
mod _host {
    use pyo3::prelude::*;

    #[pymodule_export]
    use crate::{
        Cancelled,
        arguments::from_json,
        context::{Context, Init},
        guest::{adopt, forked, install_fatal_handler, serve},
        host::{Events, Host},
        results::{Blob, to_json},
        view::Memory,
    };

    #[pymodule_init]
    fn init(module: &Bound<'_, PyModule>) -> PyResult<()> {
        module.add("VERSION", env!("CARGO_PKG_VERSION"))?;
        module.add("STACKS_SIGNAL", crate::guest::STACKS_SIGNAL)
    }
}
