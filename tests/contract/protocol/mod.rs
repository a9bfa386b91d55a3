//! The client protocol (docs/protocol.md, section by section), with one shard and with four.

mod data;
mod errors;
mod expiry;
mod greeting;
mod history;
mod keys;
mod large_rooms;
mod limits;
mod presence;
mod rates;
mod recovery;
mod replies;
mod rooms;
mod tokens;
mod users;
