//! Meaning becomes receivers: rooms, their members, and who hears what.
pub mod route;
