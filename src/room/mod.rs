//! Meaning becomes receivers: rooms, their members, and who hears what.
pub mod archive;
pub mod directory;
pub mod fanout;
pub mod history;
pub mod presence;
pub mod repetitions;
pub mod route;
pub mod traffic;
pub mod users;
pub mod weights;
