#![doc = "stub"]
#![allow(missing_docs)]
pub mod document;
pub mod lifecycle;
pub mod manifest;
