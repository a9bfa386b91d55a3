//! Bytes become messages and messages become bytes: WebSocket framing (RFC 6455), server side.
//!
//! [`message::Decoder`] takes whatever bytes a read brought and hands out whole messages;
//! [`frame`] builds what is sent. Nothing here touches a socket or a clock.
pub mod close;
pub mod deflate;
pub mod forms;
pub mod frame;
mod header;
mod mask;
pub mod message;
mod receive_buffer;
pub mod violation;
