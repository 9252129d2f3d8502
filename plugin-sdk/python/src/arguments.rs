//! A call's arguments as a Python dictionary: JSON text and attachments.

use std::{collections::BTreeMap, fmt};

use pyo3::{
    exceptions::PyValueError,
    prelude::*,
    types::{PyBytes, PyDict, PyList, PyString},
};
use serde::de::{self, DeserializeSeed, MapAccess, SeqAccess, Visitor};
use stockade_plugin_sdk::{Blob, Error};

use crate::view::view;

/// `views` names the attachments that are handed over as memory views; the
/// others are `bytes`.
pub(crate) fn read<'py>(
    py: Python<'py>,
    json: &[u8],
    attachments: Vec<(String, Blob)>,
    views: &[String],
) -> Result<Bound<'py, PyDict>, Error> {
    let wrong = |error: &dyn fmt::Display| Error::new("InvalidArguments", error.to_string());
    let dict = if json.is_empty() || json == b"{}" {
        PyDict::new(py)
    } else {
        let value = value(py, json)?;
        value.cast_into::<PyDict>().map_err(|_| wrong(&"the arguments must be an object"))?
    };
    let mut groups: BTreeMap<String, Vec<Blob>> = BTreeMap::new();
    for (name, blob) in attachments {
        groups.entry(name).or_default().push(blob);
    }
    for (name, blobs) in groups {
        let as_view = views.contains(&name);
        let mut objects = Vec::with_capacity(blobs.len());
        for blob in blobs {
            objects.push(match as_view {
                true => view(py, blob.bytes().clone()).map_err(|error| wrong(&error))?,
                false => PyBytes::new(py, &blob).into_any(),
            });
        }
        let set = match (objects.pop(), objects.is_empty()) {
            (Some(only), true) => dict.set_item(&name, only),
            (Some(last), false) => {
                objects.push(last);
                PyList::new(py, objects).and_then(|list| dict.set_item(&name, list))
            }
            (None, _) => Ok(()),
        };
        set.map_err(|error| wrong(&error))?;
    }
    Ok(dict)
}

/// `json.loads`, without importing `json`.
#[pyfunction]
pub(crate) fn from_json<'py>(py: Python<'py>, text: &str) -> PyResult<Bound<'py, PyAny>> {
    value(py, text.as_bytes()).map_err(|error| PyValueError::new_err(error.message().to_owned()))
}

/// Any JSON value. Whole numbers beyond 64 bits are read by Python itself.
fn value<'py>(py: Python<'py>, json: &[u8]) -> Result<Bound<'py, PyAny>, Error> {
    let wrong = |error: &dyn fmt::Display| Error::new("InvalidArguments", error.to_string());
    if has_long_number(json) {
        let text = std::str::from_utf8(json).map_err(|error| wrong(&error))?;
        let loads = py.import("json").and_then(|module| module.getattr("loads"));
        return loads.and_then(|loads| loads.call1((text,))).map_err(|error| wrong(&error));
    }
    let mut deserializer = serde_json::Deserializer::from_slice(json);
    Value(py).deserialize(&mut deserializer).map_err(|error| wrong(&error))
}

/// Nineteen digits in a row: perhaps no 64-bit number.
fn has_long_number(json: &[u8]) -> bool {
    let mut digits = 0;
    json.iter().any(|byte| {
        digits = if byte.is_ascii_digit() { digits + 1 } else { 0 };
        digits >= 19
    })
}

/// Builds one Python object.
struct Value<'py>(Python<'py>);

impl<'de, 'py> DeserializeSeed<'de> for Value<'py> {
    type Value = Bound<'py, PyAny>;
    fn deserialize<D: de::Deserializer<'de>>(
        self,
        deserializer: D,
    ) -> Result<Self::Value, D::Error> {
        deserializer.deserialize_any(self)
    }
}

impl<'de, 'py> Visitor<'de> for Value<'py> {
    type Value = Bound<'py, PyAny>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a JSON value")
    }

    fn visit_unit<E: de::Error>(self) -> Result<Self::Value, E> {
        Ok(self.0.None().into_bound(self.0))
    }

    fn visit_bool<E: de::Error>(self, value: bool) -> Result<Self::Value, E> {
        Ok(pyo3::types::PyBool::new(self.0, value).to_owned().into_any())
    }

    fn visit_i64<E: de::Error>(self, value: i64) -> Result<Self::Value, E> {
        value.into_pyobject(self.0).map(Bound::into_any).map_err(E::custom)
    }

    fn visit_u64<E: de::Error>(self, value: u64) -> Result<Self::Value, E> {
        value.into_pyobject(self.0).map(Bound::into_any).map_err(E::custom)
    }

    fn visit_f64<E: de::Error>(self, value: f64) -> Result<Self::Value, E> {
        value.into_pyobject(self.0).map(Bound::into_any).map_err(E::custom)
    }

    fn visit_str<E: de::Error>(self, value: &str) -> Result<Self::Value, E> {
        Ok(PyString::new(self.0, value).into_any())
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut items: A) -> Result<Self::Value, A::Error> {
        let mut list = Vec::new();
        while let Some(item) = items.next_element_seed(Value(self.0))? {
            list.push(item);
        }
        PyList::new(self.0, list).map(Bound::into_any).map_err(de::Error::custom)
    }

    fn visit_map<A: MapAccess<'de>>(self, mut entries: A) -> Result<Self::Value, A::Error> {
        let dict = PyDict::new(self.0);
        while let Some(key) = entries.next_key_seed(Value(self.0))? {
            let value = entries.next_value_seed(Value(self.0))?;
            dict.set_item(key, value).map_err(de::Error::custom)?;
        }
        Ok(dict.into_any())
    }
}
