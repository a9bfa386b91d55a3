//! Receivers become bytes: what waits for each connection, and when it goes out.
pub mod flush;
pub mod outbox;
pub mod pool;
pub mod room_logs;
