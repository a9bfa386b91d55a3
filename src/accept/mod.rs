//! A socket becomes a WebSocket, or gets an HTTP answer.
pub mod api;
pub mod extension;
pub mod http;
pub mod request;
pub mod upgrade;
