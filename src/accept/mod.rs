//! A socket becomes a WebSocket, or gets an HTTP answer.
pub mod certificate;
pub mod extension;
pub mod http;
pub mod request;
pub mod tls;
pub mod upgrade;
