//! A socket becomes a WebSocket, or gets an HTTP answer.
pub mod extension;
pub mod http;
pub mod request;
pub mod subprotocol;
pub mod upgrade;
