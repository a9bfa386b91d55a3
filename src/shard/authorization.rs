//! Joins that the application is asked about before the room's home is.

use super::requests::FORBIDDEN;
use super::session::Phase;
use super::{Now, Shard};
use crate::authorization::{Question, Verdict};
use crate::command::rejection::ErrorCode;
use crate::identity::{ConnectionId, RoomId};
use crate::permission::RoomRight;

impl Shard {
    /// Whether the application decides on a join: nothing else says what the user may do in rooms, and the
    /// connection is not in the room (in `slice`) already.
    pub(super) fn asks_application(&mut self, id: ConnectionId, slice: Option<u32>) -> bool {
        if self.authorizer.is_none() {
            return false;
        }
        let Some(session) = self.session_of(id) else { return false };
        let inside = slice.is_some_and(|slice| session.membership(slice).is_some());
        !inside && session.identity.as_ref().is_some_and(|identity| identity.is_asking())
    }

    /// Asks about a pending join. Returns whether the question could be put.
    pub(super) fn ask_application(&mut self, id: ConnectionId, room: &RoomId, now: Now) -> bool {
        let Some(identity) = self.session_of(id).and_then(|session| session.identity.as_mut()) else {
            return false;
        };
        identity.revoke(room);
        let user = identity.user.clone();
        let question = Question { connection: id, user, room: room.clone(), asked_ms: now.since_start_ms };
        self.authorizer.as_ref().is_some_and(|authorizer| authorizer.try_send(question).is_ok())
    }

    /// The application has answered, or cannot.
    pub(super) fn authorized(&mut self, room: &RoomId, id: ConnectionId, verdict: Verdict, now: Now) {
        let Some(joining) = self.session_of(id).and_then(|session| session.joining(room.as_str())) else {
            return;
        };
        let (wants_members, wants_history) = (joining.want_members, joining.since.is_some());
        match verdict {
            Verdict::Allowed(rights)
                if (!wants_members || rights.contains(RoomRight::Members))
                    && (!wants_history || rights.contains(RoomRight::History)) =>
            {
                let directory = &self.directory;
                let Some(session) = self.sessions[id.slot as usize].as_mut() else { return };
                let (members, pending) = (&session.rooms, &session.unsettled);
                let in_use = |room: &str| {
                    let slice = directory.find(room);
                    members.iter().any(|membership| Some(membership.slice) == slice)
                        || pending
                            .iter()
                            .flat_map(|pending| &pending.joining)
                            .any(|other| other.room.as_str() == room)
                };
                if let Some(identity) = &mut session.identity {
                    identity.grant(room, rights, in_use);
                }
                self.ask_to_join(id, room, false);
            }
            Verdict::Allowed(_) | Verdict::Forbidden => {
                self.refuse_join(id, room, FORBIDDEN.0, FORBIDDEN.1, None, now);
            }
            Verdict::Unavailable { retry_after_ms } => {
                let message = "the application that decides on joins does not answer: try again later";
                self.refuse_join(id, room, ErrorCode::Unavailable, message, Some(retry_after_ms), now);
            }
        }
    }

    /// A pending join fails; what waited for it is handled now.
    fn refuse_join(
        &mut self,
        id: ConnectionId,
        room: &RoomId,
        code: ErrorCode,
        message: &str,
        retry_after_ms: Option<u64>,
        now: Now,
    ) {
        let Some(joining) = self.session_of(id).and_then(|session| session.take_joining(room)) else {
            return;
        };
        if let Some(number) = joining.resume {
            self.not_resumed_room(id, number, room.as_str(), code, message);
        } else {
            self.error(id.slot, code, message, joining.message_id.as_deref(), retry_after_ms);
        }
        for text in joining.parked {
            if self.session_of(id).is_none_or(|session| session.phase != Phase::Open) {
                return;
            }
            self.handle_message(id.slot, &text, None, now);
        }
    }
}
