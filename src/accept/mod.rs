//! A socket becomes a WebSocket, or gets an HTTP answer.
pub mod address;
pub mod api;
pub mod extension;
pub mod http;
pub mod proxy;
pub mod request;
pub mod subprotocol;
pub mod upgrade;
