//! Messages become meaning, and meaning becomes messages.
pub mod authorize;
pub mod decode;
mod document;
pub mod event;
mod json;
pub mod rejection;
