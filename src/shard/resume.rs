//! A client that comes back: one `resume` joins many rooms, each is answered for, and a last reply sums it up.

use super::history::position;
use super::requests::{Outcome, Refused, Wish};
use super::{Now, Shard};
use crate::command::decode::ResumedRoom;
use crate::command::event::{self, NotResumed};
use crate::command::rejection::ErrorCode;
use crate::identity::{ConnectionId, RoomId};

/// A `resume` of which not every room has been answered for.
#[derive(Debug)]
pub(super) struct Resuming {
    /// Tells it from others of the same connection.
    number: u32,
    waiting: usize,
    joined: Vec<RoomId>,
    failed: Vec<NotResumed>,
    message_id: Option<Box<str>>,
}

impl Shard {
    pub(super) fn resume(
        &mut self,
        id: ConnectionId,
        rooms: &[ResumedRoom<'_>],
        message_id: Option<&str>,
        now: Now,
    ) -> Outcome {
        let Some(session) = self.session_of(id) else { return Outcome::Done };
        if let Some(joining) = rooms.iter().find_map(|wish| {
            let joining = session.joining(wish.room)?;
            Some(joining.room.clone())
        }) {
            return Outcome::Park(joining);
        }
        let resumes = &mut session.unsettled().resumes;
        let number = resumes.last().map_or(0, |resume| resume.number.wrapping_add(1));
        resumes.push(Resuming {
            number,
            waiting: rooms.len(),
            joined: Vec::new(),
            failed: Vec::new(),
            message_id: message_id.map(Into::into),
        });
        for wanted in rooms {
            let wish = Wish {
                room: wanted.room,
                echo: wanted.echo,
                want_members: wanted.members,
                since: wanted.since.map(position),
                resume: Some(number),
            };
            match self.join(id, &wish, None, now) {
                Ok(Outcome::Park(_)) => {
                    let message = "the room is named twice: name it once";
                    self.not_resumed(id, number, wish.room, ErrorCode::InvalidMessage, message);
                }
                Ok(_) => {}
                Err(Refused(code, message, _)) => self.not_resumed(id, number, wish.room, code, message),
            }
        }
        self.sum_up(id, number);
        Outcome::Later
    }

    fn not_resumed(&mut self, id: ConnectionId, number: u32, room: &str, code: ErrorCode, message: &str) {
        self.cells.errors.add(1);
        self.outboxes.push(id.slot, &event::room_error(room, code, message));
        if let Some(resume) = self.resuming(id, number) {
            resume.waiting -= 1;
            resume.failed.push(NotResumed { room: room.into(), code, message: message.into() });
        }
    }

    /// A room of the `resume` may not be joined, or cannot be now.
    pub(super) fn not_resumed_room(
        &mut self,
        id: ConnectionId,
        number: u32,
        room: &str,
        code: ErrorCode,
        message: &str,
    ) {
        self.not_resumed(id, number, room, code, message);
        self.sum_up(id, number);
    }

    /// A room of the `resume` has been joined, and the client told.
    pub(super) fn resumed_room(&mut self, id: ConnectionId, number: u32, room: RoomId) {
        if let Some(resume) = self.resuming(id, number) {
            resume.waiting -= 1;
            resume.joined.push(room);
        }
        self.sum_up(id, number);
    }

    fn resuming(&mut self, id: ConnectionId, number: u32) -> Option<&mut Resuming> {
        let unsettled = self.session_of(id)?.unsettled.as_mut()?;
        unsettled.resumes.iter_mut().find(|resume| resume.number == number)
    }

    /// Sends the last reply once every room has been answered for.
    fn sum_up(&mut self, id: ConnectionId, number: u32) {
        let Some(session) = self.session_of(id) else { return };
        let Some(unsettled) = &mut session.unsettled else { return };
        let is_complete = |resume: &Resuming| resume.number == number && resume.waiting == 0;
        let Some(place) = unsettled.resumes.iter().position(is_complete) else { return };
        let Resuming { joined, failed, message_id, .. } = unsettled.resumes.remove(place);
        session.settle();
        let reply = event::resumed(joined.iter().map(RoomId::as_str), &failed, message_id.as_deref());
        self.outboxes.push(id.slot, &reply);
    }
}
