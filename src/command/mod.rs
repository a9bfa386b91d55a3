//! Messages become meaning, and meaning becomes messages.
pub mod authorize;
