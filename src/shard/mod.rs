//! One core owns its connections and its slice of every room.
pub mod envelope;
pub mod home;
pub mod outlet;
