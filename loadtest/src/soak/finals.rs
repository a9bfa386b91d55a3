//! The rooms' histories at the end, as each instance gives them.

use std::time::{Duration, Instant};

use checker::record::{Final, Message, Position, Room};
use serde_json::{Value, json};

use crate::client::{has_history, message_of, position_of, room_name};
use crate::cluster::token;
use crate::socket::{Incoming, Socket};

/// How long an answer may take.
const PATIENCE: Duration = Duration::from_secs(10);

/// Messages that a page is asked for.
const PAGE: usize = 300;

/// The user that reads, who is none of the clients.
const READER: u32 = u32::MAX;

/// The histories of all rooms that have one, by an instance.
pub(crate) fn read(port: u16, rooms: u32) -> Result<Vec<Final>, String> {
    let mut socket =
        Socket::open(port, &token(READER)).ok_or("an instance takes no connection at the end")?;
    answer(&mut socket, "connection_established")?;
    let rooms = (0..rooms).map(Room).filter(|room| has_history(*room));
    rooms.map(|room| read_room(&mut socket, room)).collect()
}

fn read_room(socket: &mut Socket, room: Room) -> Result<Final, String> {
    let mut messages: Vec<(u64, Message)> = Vec::new();
    let mut since: Option<Position> = None;
    loop {
        let mut request = json!({"type": "room_history", "roomId": room_name(room), "limit": PAGE});
        if let Some(since) = since {
            request["since"] = json!({"epoch": format!("{:016x}", since.epoch), "offset": since.offset});
        }
        socket.say(&request.to_string());
        let page = answer(socket, "room_history")?;
        let position = position_of(&page).ok_or_else(|| format!("a page without a position: {page}"))?;
        let all = page["messages"].as_array().into_iter().flatten();
        let numbered = |one: &Value| (one["offset"].as_u64().unwrap_or_default(), message_of(one));
        let got: Vec<_> = all.map(numbered).collect();
        let Some((last, _)) = got.last().copied() else {
            return Ok(Final { room, position, messages });
        };
        messages.extend(got);
        since = Some(Position { epoch: position.epoch, offset: last });
    }
}

fn answer(socket: &mut Socket, kind: &str) -> Result<Value, String> {
    let until = Instant::now() + PATIENCE;
    while Instant::now() < until {
        socket.flush();
        let mut incoming = Vec::new();
        let ended = socket.receive(&mut incoming);
        for one in incoming {
            match one {
                Incoming::Message(value) if value["type"] == kind => return Ok(value),
                Incoming::Message(value) if value["type"] == "error" => {
                    return Err(format!("waited for {kind} and got {value}"));
                }
                Incoming::Message(_) => {}
                Incoming::Close(code) => {
                    return Err(format!("waited for {kind}, and was closed with {code}"));
                }
            }
        }
        if ended {
            return Err(format!("waited for {kind}, and the connection ended"));
        }
        std::thread::sleep(Duration::from_millis(2));
    }
    Err(format!("waited for {kind} in vain"))
}
