//! Messages become meaning, and meaning becomes messages: the client protocol's JSON.
pub mod authorize;
pub mod decode;
pub mod display_name;
mod document;
pub mod driver;
pub mod event;
mod json;
pub mod keys;
pub mod rejection;
pub mod rules;
