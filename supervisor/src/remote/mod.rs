//! Plugins elsewhere, behind the same session as local ones. Nothing here yet:
//! a manifest with `[run.remote]` is read, listed and UNAVAILABLE.
