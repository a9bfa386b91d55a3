//! `resume`: after a reconnect, many rooms are joined by one message.

use super::requests::{Outcome, Refused, Wish};
use super::{Now, Shard};
use crate::command::decode::ResumedRoom;
use crate::command::event::{self, NotResumed};
use crate::command::rejection::ErrorCode;
use crate::identity::{ConnectionId, RoomId};

/// A `resume` whose joins are under way.
#[derive(Debug, Default)]
pub(super) struct Resuming {
    message_id: Option<Box<str>>,
    /// Rooms whose join is not answered yet.
    waiting: usize,
    joined: Vec<RoomId>,
    failed: Vec<NotResumed>,
}

impl Shard {
    /// Joins each of `rooms`; the reply follows the last `room_joined`.
    pub(super) fn resume(
        &mut self,
        id: ConnectionId,
        rooms: &[ResumedRoom<'_>],
        message_id: Option<&str>,
        now: Now,
    ) -> Result<Outcome, Refused> {
        let limit = self.settings().max_rooms_per_connection;
        if rooms.len() > limit {
            let message = "rooms names more rooms than a connection may be in";
            return Err((ErrorCode::TooManyRooms, message).into());
        }
        let Some(session) = self.session_of(id) else { return Ok(Outcome::Done) };
        if session.unsettled().resuming.is_some() {
            return Err((ErrorCode::InvalidMessage, "a resume is under way: wait for resumed").into());
        }
        let mut resuming = Resuming { message_id: message_id.map(Into::into), ..Resuming::default() };
        for wanted in rooms {
            let wish = Wish {
                room: wanted.room,
                echo: wanted.echo,
                want_members: wanted.members,
                since: wanted.since.map(super::history::position),
                resume: true,
            };
            match self.join(id, &wish, None, now) {
                Ok(Outcome::Park(_)) => resuming.fail(
                    wanted.room,
                    ErrorCode::InvalidMessage,
                    "the room is being joined already: name it once",
                ),
                Ok(_) => resuming.waiting += 1,
                Err(Refused(code, message, _)) => resuming.fail(wanted.room, code, message),
            }
        }
        if let Some(session) = self.session_of(id) {
            session.unsettled().resuming = Some(Box::new(resuming));
        }
        self.finish_resume(id);
        Ok(Outcome::Later)
    }

    /// A room of a `resume` is joined.
    pub(super) fn resumed_room(&mut self, id: ConnectionId, room: &RoomId) {
        if let Some(resuming) = self.resuming(id) {
            resuming.waiting -= 1;
            resuming.joined.push(room.clone());
        }
        self.finish_resume(id);
    }

    fn resuming(&mut self, id: ConnectionId) -> Option<&mut Resuming> {
        self.session_of(id)?.unsettled.as_mut()?.resuming.as_deref_mut()
    }

    /// Replies once every room has been answered.
    fn finish_resume(&mut self, id: ConnectionId) {
        if self.resuming(id).is_none_or(|resuming| resuming.waiting > 0) {
            return;
        }
        let Some(session) = self.session_of(id) else { return };
        let Some(resuming) = session.unsettled().resuming.take() else { return };
        session.settle();
        let joined = resuming.joined.iter().map(RoomId::as_str);
        let reply = event::resumed(joined, &resuming.failed, resuming.message_id.as_deref());
        self.outboxes.push(id.slot, &reply);
    }
}

impl Resuming {
    fn fail(&mut self, room: &str, code: ErrorCode, message: &str) {
        self.failed.push(NotResumed { room: room.into(), code, message: message.into() });
    }
}
