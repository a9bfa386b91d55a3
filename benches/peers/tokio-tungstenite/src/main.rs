//! Text rooms on tokio-tungstenite, one task per connection, on one thread: `tokio-tungstenite-rooms PORT`.

use std::cell::RefCell;
use std::collections::HashMap;
use std::net::Ipv4Addr;
use std::rc::Rc;

use futures_util::{SinkExt, StreamExt};
use tokio::net::{TcpSocket, TcpStream};
use tokio::sync::mpsc::{UnboundedSender, unbounded_channel};
use tokio::task::{LocalSet, spawn_local};
use tokio_tungstenite::accept_hdr_async_with_config;
use tokio_tungstenite::tungstenite::Message;
use tokio_tungstenite::tungstenite::handshake::server::{Request, Response};
use tokio_tungstenite::tungstenite::protocol::WebSocketConfig;

/// Bytes of the buffer that each connection reads into; the default of 128 KiB is all that an idle one would cost.
const READ_BUFFER: usize = 4096;

/// Connections that may wait for accept(2); the default of 128 is fewer than the generator has under way.
const BACKLOG: u32 = 4096;

type Rooms = Rc<RefCell<HashMap<String, HashMap<u64, UnboundedSender<Message>>>>>;

fn main() -> std::io::Result<()> {
    let port = std::env::args().nth(1).and_then(|port| port.parse().ok()).expect("usage: PORT");
    let runtime = tokio::runtime::Builder::new_current_thread().enable_io().build()?;
    LocalSet::new().block_on(&runtime, listen(port))
}

async fn listen(port: u16) -> std::io::Result<()> {
    let socket = TcpSocket::new_v4()?;
    socket.bind((Ipv4Addr::LOCALHOST, port).into())?;
    let listener = socket.listen(BACKLOG)?;
    let rooms = Rooms::default();
    for number in 0.. {
        let (stream, _) = listener.accept().await?;
        stream.set_nodelay(true)?;
        spawn_local(serve(stream, number, rooms.clone()));
    }
    Ok(())
}

async fn serve(stream: TcpStream, number: u64, rooms: Rooms) {
    let mut room = String::new();
    let read_room = |request: &Request, response: Response| {
        let query = request.uri().query().unwrap_or_default();
        room = query.strip_prefix("room=").unwrap_or_default().to_owned();
        Ok(response)
    };
    let config = WebSocketConfig::default().read_buffer_size(READ_BUFFER);
    let upgraded = accept_hdr_async_with_config(stream, read_room, Some(config)).await;
    let Ok(socket) = upgraded else { return };
    let (outbox, mut inbox) = unbounded_channel();
    rooms.borrow_mut().entry(room.clone()).or_default().insert(number, outbox);
    let (mut sink, mut source) = socket.split();
    let writer = spawn_local(async move {
        let mut waiting = Vec::new();
        // All that waits goes out with one write.
        while inbox.recv_many(&mut waiting, 1024).await > 0 {
            for message in waiting.drain(..) {
                if sink.feed(message).await.is_err() {
                    return;
                }
            }
            if sink.flush().await.is_err() {
                return;
            }
        }
    });
    while let Some(Ok(message)) = source.next().await {
        if message.is_text() {
            let rooms = rooms.borrow();
            let others = rooms[&room].iter().filter(|(member, _)| **member != number);
            others.for_each(|(_, outbox)| drop(outbox.send(message.clone())));
        }
    }
    rooms.borrow_mut().get_mut(&room).map(|members| members.remove(&number));
    let _ = writer.await;
}
