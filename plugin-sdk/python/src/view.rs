//! Attachments as memory views over the bytes that came, not copied. The bytes
//! live until nothing looks at them any more.
#![allow(unsafe_code)]

use std::sync::{Mutex, PoisonError};

use bytes::Bytes;
use pyo3::{ffi, prelude::*};

/// `PyBUF_READ`, which the stable ABI of 3.9 does not name.
const READ_ONLY: std::ffi::c_int = 0x100;

/// Views that outlived their call (an array over one was kept), and their bytes.
static KEPT: Mutex<Vec<View>> = Mutex::new(Vec::new());

/// One read-only view and the bytes under it.
pub(crate) struct View {
    view: Py<PyAny>,
    bytes: Bytes,
    released: bool,
}

impl View {
    /// A read-only `memoryview` of `bytes`.
    pub(crate) fn new(py: Python<'_>, bytes: Bytes) -> PyResult<Self> {
        // SAFETY: the pointer is valid for `len` bytes as long as `bytes` lives,
        // and `drop` gives `bytes` back only after Python has released the view
        // and everything that looked through it; the view is read-only, so that
        // nobody writes through the pointer.
        let view = unsafe {
            let pointer = bytes.as_ptr().cast_mut().cast();
            let length = bytes.len() as ffi::Py_ssize_t;
            let view = ffi::PyMemoryView_FromMemory(pointer, length, READ_ONLY);
            Bound::from_owned_ptr_or_err(py, view)?.unbind()
        };
        Ok(View { view, bytes, released: false })
    }

    /// The `memoryview`.
    pub(crate) fn object<'py>(&self, py: Python<'py>) -> Bound<'py, PyAny> {
        self.view.bind(py).clone()
    }

    /// Ends the view. Whatever still looks at the bytes keeps them.
    pub(crate) fn end(self, py: Python<'_>) {
        let kept = || KEPT.lock().unwrap_or_else(PoisonError::into_inner);
        let mut views = std::mem::take(&mut *kept());
        views.push(self);
        views.retain_mut(|view| {
            // It fails while anything exports the view's memory.
            view.released = view.view.bind(py).call_method0("release").is_ok();
            !view.released
        });
        kept().append(&mut views);
    }
}

impl Drop for View {
    fn drop(&mut self) {
        if !self.released {
            // Somebody may look at the bytes: they stay for ever.
            std::mem::forget(self.bytes.clone());
        }
    }
}
