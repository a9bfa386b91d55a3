//! Text rooms on glommio's own TCP streams, on one thread: `glommio-streams PORT`.
//!
//! Frames are read in place, copied into outboxes and sent with one write per connection and turn, as TableForge does without
//! pauses, with the same allocator. glommio receives and sends with a system call each, and polls with its ring.

use std::cell::RefCell;
use std::collections::HashMap;
use std::io::Cursor;
use std::net::Ipv4Addr;
use std::rc::Rc;

use futures_lite::io::{AsyncReadExt, AsyncWriteExt, ReadHalf, WriteHalf, split};
use glommio::net::{TcpListener, TcpStream};
use glommio::{LocalExecutorBuilder, Placement, executor, spawn_local};
use tungstenite::handshake::machine::TryParse;
use tungstenite::handshake::server::{Request, create_response, write_response};
use tungstenite::protocol::frame::FrameHeader;
use tungstenite::protocol::frame::coding::{Control, Data, OpCode};

#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

/// Entries of glommio's ring, as many as TableForge's has.
const RING_DEPTH: usize = 1024;

/// Bytes of the buffer that each connection reads into, as many as TableForge's have. It grows with a frame.
const READ_BUFFER: usize = 2048;

const PONG: OpCode = OpCode::Control(Control::Pong);

/// A connection as the others of its room see it.
struct Member {
    outbox: RefCell<Vec<u8>>,
    /// Where the outbox goes, unless somebody writes.
    idle: RefCell<Option<WriteHalf<TcpStream>>>,
}

type Rooms = Rc<RefCell<HashMap<String, HashMap<u64, Rc<Member>>>>>;

fn main() {
    let port: u16 = std::env::args().nth(1).and_then(|port| port.parse().ok()).expect("usage: PORT");
    let executor =
        LocalExecutorBuilder::new(Placement::Unbound).ring_depth(RING_DEPTH).make().expect("an executor");
    executor.run(async move {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, port)).expect("a free port");
        let rooms = Rooms::default();
        for number in 0.. {
            let stream = listener.accept().await.expect("a connection");
            stream.set_nodelay(true).expect("a socket");
            spawn_local(serve(stream, number, rooms.clone())).detach();
        }
    });
}

async fn serve(stream: TcpStream, number: u64, rooms: Rooms) {
    let (source, sink) = split(stream);
    let mut input = Input { source, buffer: vec![0; READ_BUFFER], filled: 0 };
    let member = Rc::new(Member { outbox: RefCell::default(), idle: RefCell::new(Some(sink)) });
    let Some(room) = input.upgrade(&member).await else { return };
    rooms.borrow_mut().entry(room.clone()).or_default().insert(number, member.clone());
    // What came behind the handshake is there already.
    while input.take_frames(|opcode, frame| {
        if opcode == PONG {
            return send(&member, frame);
        }
        let rooms = rooms.borrow();
        let others = rooms[&room].iter().filter(|(member, _)| **member != number);
        others.for_each(|(_, member)| send(member, frame));
    }) && input.receive().await.is_some()
    {}
    rooms.borrow_mut().get_mut(&room).map(|members| members.remove(&number));
}

/// What waits until the executor comes to the writer goes out with one write.
fn send(member: &Rc<Member>, bytes: &[u8]) {
    member.outbox.borrow_mut().extend_from_slice(bytes);
    let idle = member.idle.borrow_mut().take();
    if let Some(sink) = idle {
        spawn_local(write(member.clone(), sink)).detach();
    }
}

async fn write(member: Rc<Member>, mut sink: WriteHalf<TcpStream>) {
    let mut batch = Vec::new();
    loop {
        // A new task runs at once: only behind the others of the turn has everything gathered.
        executor().yield_now().await;
        batch.clear();
        std::mem::swap(&mut batch, &mut *member.outbox.borrow_mut());
        if batch.is_empty() {
            *member.idle.borrow_mut() = Some(sink);
            return;
        }
        if sink.write_all(&batch).await.is_err() {
            return;
        }
    }
}

struct Input {
    source: ReadHalf<TcpStream>,
    buffer: Vec<u8>,
    filled: usize,
}

impl Input {
    /// Nothing once the peer has finished.
    async fn receive(&mut self) -> Option<()> {
        if self.filled == self.buffer.len() {
            self.buffer.resize(2 * self.filled, 0);
        }
        let count = self.source.read(&mut self.buffer[self.filled..]).await.ok()?;
        self.filled += count;
        (count > 0).then_some(())
    }

    /// Answers the handshake; the room is in the request's query.
    async fn upgrade(&mut self, member: &Rc<Member>) -> Option<String> {
        loop {
            self.receive().await?;
            let Some((len, request)) = Request::try_parse(&self.buffer[..self.filled]).ok()? else {
                continue;
            };
            let mut response = Vec::new();
            write_response(&mut response, &create_response(&request).ok()?).ok()?;
            send(member, &response);
            self.discard(len);
            return Some(request.uri().query()?.strip_prefix("room=")?.to_owned());
        }
    }

    /// Unmasks every whole text frame and ping and gives it away as the server sends it, a ping as its pong. Whether the
    /// connection goes on.
    fn take_frames(&mut self, mut give: impl FnMut(OpCode, &[u8])) -> bool {
        let mut taken = 0;
        let goes_on = loop {
            let mut cursor = Cursor::new(&self.buffer[taken..self.filled]);
            let (mut header, len) = match FrameHeader::parse(&mut cursor) {
                Ok(Some(parsed)) => parsed,
                Ok(None) => break true,
                Err(_) => break false,
            };
            let payload = taken + cursor.position() as usize;
            if len > (self.filled - payload) as u64 {
                break true;
            }
            let end = payload + len as usize;
            match header.opcode {
                OpCode::Control(Control::Close) => break false,
                OpCode::Data(Data::Text) | OpCode::Control(Control::Ping) => {
                    let Some(mask) = header.mask.take() else { break false };
                    unmask(&mut self.buffer[payload..end], mask);
                    if header.opcode == OpCode::Control(Control::Ping) {
                        header.opcode = PONG;
                    }
                    // Without the mask the header is shorter than the one that stood there.
                    let start = payload - header.len(len);
                    header.format(len, &mut &mut self.buffer[start..payload]).expect("room for the header");
                    give(header.opcode, &self.buffer[start..end]);
                }
                _ => {}
            }
            taken = end;
        };
        self.discard(taken);
        goes_on
    }

    fn discard(&mut self, count: usize) {
        self.buffer.copy_within(count..self.filled, 0);
        self.filled -= count;
    }
}

fn unmask(payload: &mut [u8], mask: [u8; 4]) {
    payload.iter_mut().enumerate().for_each(|(place, byte)| *byte ^= mask[place & 3]);
}
