//! The bytes of an attachment as Python memory, not copied: `stockade._view`
//! looks at them, and whatever looks at them keeps this object, hence them.

use bytes::Bytes;
use pyo3::prelude::*;

/// Bytes that stay where they are while this object lives.
#[pyclass(module = "stockade", frozen)]
pub(crate) struct Memory(Bytes);

#[pymethods]
impl Memory {
    /// Where they are.
    #[getter]
    fn address(&self) -> usize {
        self.0.as_ptr() as usize
    }

    /// How many.
    fn __len__(&self) -> usize {
        self.0.len()
    }
}

/// A read-only `memoryview` of `bytes`.
pub(crate) fn view<'py>(py: Python<'py>, bytes: Bytes) -> PyResult<Bound<'py, PyAny>> {
    py.import("stockade._view")?.getattr("view")?.call1((Memory(bytes),))
}
