//! A tool's result as JSON text; bytes anywhere in it become attachments.

use bytes::Bytes;
use pyo3::{
    exceptions::{PyTypeError, PyValueError},
    prelude::*,
    pybacked::PyBackedBytes,
    types::{PyBool, PyBytes, PyDict, PyFloat, PyInt, PyList, PyString, PyTuple},
};
use stockade_plugin_sdk::guest::{ESCAPED, Parts, attach};

/// Deeper than any result that is meant; a result that contains itself is.
const MAX_DEPTH: usize = 100;

/// Bytes with a content type, as a result: `Blob(jpeg, "image/jpeg")`.
#[pyclass(module = "stockade", frozen)]
pub(crate) struct Blob {
    data: PyBackedBytes,
    content_type: String,
}

#[pymethods]
impl Blob {
    #[new]
    #[pyo3(signature = (data, content_type = ""))]
    fn new(data: &Bound<'_, PyAny>, content_type: &str) -> PyResult<Self> {
        // `bytes` as it is; what else has a buffer is copied once.
        let data = match data.cast::<PyBytes>() {
            Ok(bytes) => bytes.clone(),
            Err(_) if data.is_instance_of::<PyString>() || data.is_instance_of::<PyInt>() => {
                return Err(PyTypeError::new_err("a Blob holds bytes or a buffer of them"));
            }
            Err(_) => data.py().get_type::<PyBytes>().call1((data,))?.cast_into()?,
        };
        Ok(Blob { data: data.into(), content_type: content_type.to_owned() })
    }

    /// The bytes.
    #[getter]
    fn data<'py>(&self, py: Python<'py>) -> Bound<'py, PyBytes> {
        PyBytes::new(py, &self.data)
    }

    /// The content type, empty when unknown.
    #[getter]
    fn content_type(&self) -> &str {
        &self.content_type
    }

    fn __len__(&self) -> usize {
        self.data.len()
    }

    fn __repr__(&self) -> String {
        format!("Blob({} bytes, {:?})", self.data.len(), self.content_type)
    }
}

/// JSON text and attachments of `result`.
///
/// # Errors
/// `TypeError` or `ValueError` with the place of what is not serialisable.
pub(crate) fn write(result: &Bound<'_, PyAny>) -> PyResult<Parts> {
    let mut writer =
        Writer { text: Vec::with_capacity(128), blobs: Vec::new(), path: Vec::new(), depth: 0 };
    writer.value(result)?;
    Ok((writer.text, writer.blobs))
}

/// `json.dumps`, without importing `json`.
#[pyfunction]
pub(crate) fn to_json(value: &Bound<'_, PyAny>) -> PyResult<String> {
    let (text, blobs) = write(value)?;
    if let Some((name, _)) = blobs.first() {
        return Err(PyTypeError::new_err(format!("{name} is bytes")));
    }
    String::from_utf8(text).map_err(|error| PyValueError::new_err(error.to_string()))
}

/// A step from the result to a part of it.
enum Step {
    Key(String),
    Index(usize),
}

struct Writer {
    text: Vec<u8>,
    blobs: Vec<(String, stockade_plugin_sdk::Blob)>,
    path: Vec<Step>,
    depth: usize,
}

impl Writer {
    /// `result.boxes[3].score`
    fn place(&self) -> String {
        let mut place = "result".to_owned();
        for step in &self.path {
            match step {
                Step::Key(key) => place += &format!(".{key}"),
                Step::Index(index) => place += &format!("[{index}]"),
            }
        }
        place
    }

    fn value(&mut self, value: &Bound<'_, PyAny>) -> PyResult<()> {
        self.depth += 1;
        if self.depth > MAX_DEPTH {
            let place = self.place();
            let place = &place[..place.floor_char_boundary(80)];
            let text = format!("{place}… nests deeper than {MAX_DEPTH} levels");
            return Err(PyValueError::new_err(text));
        }
        if value.is_none() {
            self.text.extend_from_slice(b"null");
        } else if let Ok(value) = value.cast_exact::<PyString>() {
            self.string(value)?;
        } else if let Ok(value) = value.cast_exact::<PyBool>() {
            self.text.extend_from_slice(if value.is_true() { b"true" } else { b"false" });
        } else if let Ok(value) = value.cast_exact::<PyInt>() {
            self.integer(value)?;
        } else if let Ok(value) = value.cast_exact::<PyFloat>() {
            self.float(value.value())?;
        } else if let Ok(dict) = value.cast_exact::<PyDict>() {
            self.dict(dict)?;
        } else if let Ok(list) = value.cast_exact::<PyList>() {
            self.items(list.iter())?;
        } else if let Ok(tuple) = value.cast_exact::<PyTuple>() {
            self.items(tuple.iter())?;
        } else if let Ok(bytes) = value.cast_exact::<PyBytes>() {
            self.blob(PyBackedBytes::from(bytes.clone()), "");
        } else if let Ok(blob) = value.cast::<Blob>() {
            let blob = blob.get();
            self.blob(blob.data.clone_ref(value.py()), &blob.content_type);
        } else {
            self.other(value)?;
        }
        self.depth -= 1;
        Ok(())
    }

    /// Subclasses, arrays, models, dataclasses: Python says what they stand for.
    fn other(&mut self, value: &Bound<'_, PyAny>) -> PyResult<()> {
        let plain = value.py().import("stockade._plain")?.getattr("plain")?;
        self.value(&plain.call1((value, self.place()))?)
    }

    fn integer(&mut self, value: &Bound<'_, PyInt>) -> PyResult<()> {
        match value.extract::<i64>() {
            Ok(small) => self.text.extend_from_slice(small.to_string().as_bytes()),
            Err(_) => self.text.extend_from_slice(value.str()?.to_cow()?.as_bytes()),
        }
        Ok(())
    }

    fn float(&mut self, value: f64) -> PyResult<()> {
        if !value.is_finite() {
            let place = self.place();
            let text = format!("{place} is {value}: JSON has no such number");
            return Err(PyValueError::new_err(text));
        }
        serde_json::to_writer(&mut self.text, &value)
            .map_err(|error| PyValueError::new_err(error.to_string()))
    }

    fn string(&mut self, value: &Bound<'_, PyString>) -> PyResult<()> {
        let text = value.to_cow().map_err(|_| {
            let place = self.place();
            PyValueError::new_err(format!("{place} is text with a lone surrogate: no Unicode"))
        })?;
        let start = self.text.len();
        serde_json::to_writer(&mut self.text, &*text)
            .map_err(|error| PyValueError::new_err(error.to_string()))?;
        // Text that only looks like a reference to an attachment.
        if text.starts_with("attachment:") {
            self.text.splice(start + 1..start + 12, ESCAPED.iter().copied());
        }
        Ok(())
    }

    fn dict(&mut self, dict: &Bound<'_, PyDict>) -> PyResult<()> {
        self.text.push(b'{');
        // A copy: other threads may change it while we write.
        for (index, (key, value)) in dict.copy()?.iter().enumerate() {
            if index > 0 {
                self.text.push(b',');
            }
            let key = self.key(&key)?;
            self.string(&key)?;
            self.text.push(b':');
            self.path.push(Step::Key(key.to_cow()?.into_owned()));
            self.value(&value)?;
            self.path.pop();
        }
        self.text.push(b'}');
        Ok(())
    }

    /// As Python's own `json`: numbers, booleans and None become text.
    fn key<'py>(&self, key: &Bound<'py, PyAny>) -> PyResult<Bound<'py, PyString>> {
        if let Ok(text) = key.cast::<PyString>() {
            return Ok(text.clone());
        }
        let py = key.py();
        if key.is_none() {
            return Ok(PyString::new(py, "null"));
        }
        if let Ok(value) = key.cast::<PyBool>() {
            return Ok(PyString::new(py, if value.is_true() { "true" } else { "false" }));
        }
        if key.is_instance_of::<PyInt>() || key.is_instance_of::<PyFloat>() {
            return key.str();
        }
        let kind = key.get_type().name()?;
        let place = self.place();
        Err(PyTypeError::new_err(format!("{place} has a key of type {kind}: JSON needs text")))
    }

    fn items<'py>(&mut self, items: impl Iterator<Item = Bound<'py, PyAny>>) -> PyResult<()> {
        self.text.push(b'[');
        for (index, item) in items.enumerate() {
            if index > 0 {
                self.text.push(b',');
            }
            self.path.push(Step::Index(index));
            self.value(&item)?;
            self.path.pop();
        }
        self.text.push(b']');
        Ok(())
    }

    /// An attachment, named after the key under which it stands.
    fn blob(&mut self, data: PyBackedBytes, content_type: &str) {
        let name = self.path.iter().rev().find_map(|step| match step {
            Step::Key(key) => Some(key.clone()),
            Step::Index(_) => None,
        });
        let name = name.unwrap_or_else(|| "result".to_owned());
        let blob = stockade_plugin_sdk::Blob::typed(Bytes::from_owner(data), content_type);
        let text = attach(&mut self.blobs, &name, blob);
        // A name that JSON must escape is escaped here too.
        let _ = serde_json::to_writer(&mut self.text, &text);
    }
}
