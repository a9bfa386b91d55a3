//! What clients ask for: each message is checked, carried out or refused, and answered.

use super::admission::over_the_rate;
use super::correlation::publication;
use super::envelope::{Asker, Envelope, Join, LinkState, Member, Target};
use super::session::Joining;
use super::sweep::{Asked, Question};
use super::{Now, Shard, history, home};
use crate::codec::close::CloseCode;
use crate::codec::frame;
use crate::command::authorize::Identity;
use crate::command::decode::{Command, Request, decode};
use crate::command::event;
use crate::command::rejection::{ErrorCode, Rejection};
use crate::identity::{ConnectionId, RoomId, UserId};
use crate::metrics::kinds::Limit;
use crate::permission::RoomRight;
use crate::room::directory::Membership;
use crate::room::history::Position;
use crate::trace::SpanKind;

/// Messages in a row that were not valid, after which the client is taken for a broken one.
const INVALID_MESSAGES: u8 = 10;

/// Milliseconds between two log lines about rooms that cannot be: whoever sends such names must not fill the log.
const REFUSAL_LOG_MS: u64 = 10_000;

/// A request that fails: the code and the words of the error reply.
pub(super) struct Refused(pub(super) ErrorCode, pub(super) &'static str, pub(super) Option<u64>);

pub(super) const FORBIDDEN: Refused = Refused(ErrorCode::Forbidden, "your token does not permit this", None);
const NOT_IN_ROOM: Refused = Refused(ErrorCode::NotInRoom, "join the room first", None);
pub(super) const BUSY: Refused =
    Refused(ErrorCode::Unavailable, "the server is overloaded: nothing was done, try again", Some(1000));

impl From<(ErrorCode, &'static str)> for Refused {
    fn from((code, message): (ErrorCode, &'static str)) -> Self {
        Self(code, message, None)
    }
}

/// How a request was dealt with.
pub(super) enum Outcome {
    /// It has its reply, or needs none.
    Done,
    /// The reply follows when others have answered.
    Later,
    /// It is about a room that is being joined: it waits for that.
    Park(RoomId),
}

/// What a `join_room` asks for.
pub(super) struct Wish<'a> {
    pub(super) room: &'a str,
    pub(super) echo: bool,
    pub(super) want_members: bool,
    pub(super) since: Option<Position>,
    /// The number of the `resume` that it is one room of.
    pub(super) resume: Option<u32>,
}

impl Shard {
    /// One text message of an open connection.
    pub(super) fn handle_text(&mut self, slot: u32, text: &str, now: Now) {
        self.cells.messages_in.add(1);
        let (rate, burst) = (self.settings().message_rate, self.settings().message_burst);
        let Some(session) = self.session(slot) else { return };
        let claimed = session.identity.as_ref().and_then(|identity| identity.rate);
        let (rate, burst) =
            claimed.map_or((rate, burst), |own| (own.per_second.get().into(), own.burst.get().into()));
        let wait = session.allowance.take(rate, burst, now).err();
        if wait.is_some() {
            self.cells.reached(Limit::MessageRate);
        }
        let wait = wait.or_else(|| self.meter_message(slot, text.len(), now).err());
        self.handle_message(slot, text, wait, now);
    }

    /// A message whose turn has come: one that was just received, or that waited for a join.
    pub(super) fn handle_message(&mut self, slot: u32, text: &str, wait: Option<u64>, now: Now) {
        let mut scratch = std::mem::take(&mut self.scratch);
        match decode(text, &mut scratch) {
            Ok(request) => self.handle_request(slot, &request, wait, text, now),
            Err(rejection) => self.reject(slot, &rejection, now),
        }
        self.scratch = scratch;
    }

    fn reject(&mut self, slot: u32, rejection: &Rejection<'_>, now: Now) {
        let Some(session) = self.session(slot) else { return };
        let id = session.id;
        if rejection.code == ErrorCode::InvalidRoom && now.since_start_ms >= self.log_refusal_at {
            self.log_refusal_at = now.since_start_ms + REFUSAL_LOG_MS;
            let (connection, request) = (self.socket_id(id).text(), self.request_id(id));
            tracing::warn!(
                connection = connection.as_str(),
                request = &*request,
                reason = &*rejection.message,
                "a client names no room"
            );
        }
        let Some(session) = self.session(slot) else { return };
        session.invalid = session.invalid.saturating_add(1);
        let hopeless = session.invalid >= INVALID_MESSAGES;
        self.error(slot, rejection.code, &rejection.message, rejection.message_id, None);
        if hopeless {
            self.close(slot, CloseCode::InvalidRequests, "ten invalid messages in a row", now);
        }
    }

    fn handle_request(&mut self, slot: u32, request: &Request<'_>, wait: Option<u64>, text: &str, now: Now) {
        if wait.is_none()
            && let Some(rejection) = self.broken_rule(slot, request)
        {
            return self.reject(slot, &rejection, now);
        }
        let Some(session) = self.session(slot) else { return };
        session.invalid = 0;
        let id = session.id;
        let message_id = request.message_id;
        let outcome = match wait {
            Some(ms) => Err(over_the_rate(ms)),
            None if self.sheds && request.command.is_publication() => {
                self.cells.shed.add(1);
                Err(BUSY)
            }
            None => self
                .meter_publication(id, &request.command, now)
                .and_then(|()| self.carry_out(id, request, now)),
        };
        let over = matches!(&outcome, Err(Refused(ErrorCode::RateLimited, ..)));
        if self.is_hopelessly_over(slot, over, now) {
            return;
        }
        match outcome {
            Ok(Outcome::Done | Outcome::Later) => {}
            Ok(Outcome::Park(room)) => self.park(slot, &room, message_id, text),
            Err(Refused(code, message, retry)) => {
                if message == BUSY.1 && !self.sheds {
                    self.cells.reached(Limit::Queue);
                }
                self.error(slot, code, message, message_id, retry);
            }
        }
    }

    pub(super) fn error(
        &mut self,
        slot: u32,
        code: ErrorCode,
        message: &str,
        message_id: Option<&str>,
        retry_after_ms: Option<u64>,
    ) {
        self.cells.errors.add(1);
        self.outboxes.push(slot, &event::error(code, message, message_id, retry_after_ms));
    }

    fn park(&mut self, slot: u32, room: &RoomId, message_id: Option<&str>, text: &str) {
        let Some(joining) = self.session(slot).and_then(|session| session.joining(room.as_str())) else {
            return;
        };
        if !joining.park(text) {
            let message = "too many messages before the room was joined: wait for room_joined";
            self.error(slot, ErrorCode::Unavailable, message, message_id, None);
        }
    }

    fn carry_out(&mut self, id: ConnectionId, request: &Request<'_>, now: Now) -> Result<Outcome, Refused> {
        let message_id = request.message_id;
        match &request.command {
            Command::Ping => self.outboxes.push(id.slot, &event::pong(now.unix_ms, message_id)),
            Command::Authenticate { token } => return self.authenticate(id, token.0, message_id, now),
            _ if self.session_of(id).is_none_or(|session| session.identity.is_none()) => {
                return Err((ErrorCode::Unauthenticated, "send authenticate with a token first").into());
            }
            Command::JoinRoom { room, since, members, echo } => {
                let since = since.map(history::position);
                let wish = Wish { room, echo: *echo, want_members: *members, since, resume: None };
                return self.join(id, &wish, message_id, now);
            }
            Command::Resume { rooms } => return Ok(self.resume(id, rooms, message_id, now)),
            Command::LeaveRoom { room } => return self.leave(id, room, message_id),
            Command::RoomMessage { room, data } => return self.publish(id, room, data, message_id, now),
            Command::UserMessage { target, data } => self.message_user(id, target, data, message_id, now)?,
            Command::GlobalMessage { data } => self.message_everyone(id, data, message_id, now)?,
            Command::RoomMembers { room } => return self.list_members(id, room, message_id, now),
            Command::RoomHistory { room, since, limit, reverse } => {
                let excerpt = history::Excerpt { room, since: *since, limit: *limit, reverse: *reverse };
                return self.read_history(id, &excerpt, message_id, now);
            }
        }
        Ok(Outcome::Done)
    }

    pub(super) fn may(&mut self, id: ConnectionId, right: RoomRight, room: &str) -> Result<(), Refused> {
        let identity = self.session_of(id).and_then(|session| session.identity.as_ref());
        if identity.is_some_and(|identity| identity.may(right, room)) { Ok(()) } else { Err(FORBIDDEN) }
    }

    fn authenticate(
        &mut self,
        id: ConnectionId,
        token: &str,
        message_id: Option<&str>,
        now: Now,
    ) -> Result<Outcome, Refused> {
        let Some(verifier) = self.verifier.clone() else {
            return Err(
                (ErrorCode::Unauthenticated, "this server takes no tokens: it has no key for them").into()
            );
        };
        let identity = match verifier.verify(token, now.unix_ms / 1000) {
            Ok(identity) => self.presentable(identity),
            Err(error) => {
                self.error(id.slot, ErrorCode::Unauthenticated, &error.to_string(), message_id, None);
                self.close(id.slot, CloseCode::TokenRefused, "the token was refused", now);
                return Ok(Outcome::Done);
            }
        };
        if let Some(ban) = self.api.bans.of(identity.user.as_str(), now.unix_ms) {
            let reason = ban.reason.clone();
            self.error(id.slot, ErrorCode::Forbidden, "this user is banned", message_id, None);
            self.close(id.slot, CloseCode::Disconnected, &reason, now);
            return Ok(Outcome::Done);
        }
        let Some(session) = self.session_of(id) else { return Ok(Outcome::Done) };
        if let Some(current) = &mut session.identity {
            if current.user == identity.user {
                let reply = authenticated(&identity, message_id);
                let mut before = std::mem::replace(&mut **current, identity);
                current.keep_grants(&mut before);
                session.expiry_told = false;
                self.outboxes.push(id.slot, &reply);
                self.watch_expiry(id, now);
                return Ok(Outcome::Done);
            }
            let anonymous = current.expires_at.is_none();
            let settled = session.unsettled.as_ref().is_none_or(|unsettled| unsettled.joining.is_empty());
            if !(anonymous && session.rooms.is_empty() && settled) {
                let message = "a connection keeps its user: renew with the same sub, or connect anew";
                return Err((ErrorCode::Forbidden, message).into());
            }
            let user = current.user.clone();
            self.detach(id, &user);
        }
        self.users.add(&identity.user, id.slot);
        self.attach(id, identity, now);
        if let Some(session) = self.session_of(id) {
            session.unsettled().authenticating = Some(message_id.map(Into::into));
        }
        Ok(Outcome::Later)
    }

    fn detach(&mut self, id: ConnectionId, user: &UserId) {
        self.users.remove(user, id.slot);
        let to = home::of_user(user.as_str(), self.mesh.shards());
        self.mesh.send(to, Envelope::Detach { connection: id, user: user.clone() });
    }

    pub(super) fn join(
        &mut self,
        id: ConnectionId,
        wish: &Wish<'_>,
        message_id: Option<&str>,
        now: Now,
    ) -> Result<Outcome, Refused> {
        let limit = self.settings().max_rooms_per_connection;
        let known = self.directory.find(wish.room);
        let asks = self.asks_application(id, known);
        if !asks {
            self.may(id, RoomRight::Join, wish.room)?;
            if wish.want_members {
                self.may(id, RoomRight::Members, wish.room)?;
            }
            if wish.since.is_some() {
                self.may(id, RoomRight::History, wish.room)?;
            }
        }
        let room = RoomId::parse(wish.room).ok_or((ErrorCode::InvalidRoom, "this is no room name"))?;
        let to = home::of_room(wish.room, self.mesh.shards());
        let congested = self.mesh.is_congested(to);
        let Some(session) = self.session_of(id) else { return Ok(Outcome::Done) };
        if session.joining(wish.room).is_some() {
            return Ok(Outcome::Park(room));
        }
        let inside = known.is_some_and(|slice| session.membership(slice).is_some());
        let pending = session.unsettled.as_ref().map_or(0, |unsettled| unsettled.joining.len());
        if !inside && session.rooms.len() + pending >= limit {
            self.cells.reached(Limit::RoomsPerConnection);
            let message = "this connection is in as many rooms as it may: leave one first";
            return Err((ErrorCode::TooManyRooms, message).into());
        }
        if congested {
            return Err(BUSY);
        }
        self.meter_join(id, now)?;
        let span = self.follow_in(id, "join", SpanKind::Server, wish.room);
        let Some(session) = self.session_of(id) else { return Ok(Outcome::Done) };
        session.unsettled().joining.push(Joining {
            room: room.clone(),
            message_id: message_id.map(Into::into),
            echo: wish.echo,
            want_members: wish.want_members,
            since: wish.since,
            resume: wish.resume,
            asked_at: now.ms(),
            parked: Vec::new(),
            span,
        });
        if asks && !self.ask_application(id, &room, now) {
            let _ = self.session_of(id).and_then(|session| session.take_joining(&room));
            return Err(BUSY);
        } else if !asks {
            self.ask_to_join(id, &room, false);
        }
        Ok(Outcome::Later)
    }

    /// Sends a pending join to the room's home, if it is known to be allowed; `again` when it may have been lost.
    pub(super) fn ask_to_join(&mut self, id: ConnectionId, room: &RoomId, again: bool) {
        let socket = self.socket_id(id).text().as_str().into();
        let Some(session) = self.session_of(id) else { return };
        let Some(identity) = &session.identity else { return };
        if identity.is_asking() && !identity.may(RoomRight::Join, room.as_str()) {
            // The application has not said yes yet.
            return;
        }
        let member = Member { user: identity.user.clone(), name: identity.name.clone(), socket };
        let Some(joining) = session.joining(room.as_str()) else { return };
        let asker = Asker { connection: id, message_id: joining.message_id.clone() };
        let (want_members, since) = (joining.want_members, joining.since);
        let join = Join { room: room.clone(), asker, member, want_members, since, again };
        let to = home::of_room(room.as_str(), self.mesh.shards());
        self.mesh.send(to, Envelope::Join(Box::new(join)));
    }

    /// Where the connection stands in the room, or why it is not there.
    pub(super) fn place(
        &mut self,
        id: ConnectionId,
        room: &str,
    ) -> Result<Result<Membership, RoomId>, Refused> {
        let slice = self.directory.find(room);
        let Some(session) = self.session_of(id) else { return Err(NOT_IN_ROOM) };
        if let Some(joining) = session.joining(room) {
            return Ok(Err(joining.room.clone()));
        }
        slice.and_then(|slice| session.membership(slice)).map(Ok).ok_or(NOT_IN_ROOM)
    }

    fn leave(&mut self, id: ConnectionId, room: &str, message_id: Option<&str>) -> Result<Outcome, Refused> {
        let membership = match self.place(id, room)? {
            Ok(membership) => membership,
            Err(room) => return Ok(Outcome::Park(room)),
        };
        let room = self.directory.slice(membership.slice).room.clone();
        let user = self.session_of(id).and_then(|session| {
            session.rooms.retain(|other| *other != membership);
            session.identity.as_mut().map(|identity| {
                identity.revoke(&room);
                identity.user.clone()
            })
        });
        self.leave_slice(membership);
        if let Some(user) = user {
            self.leave_home(id, room.clone(), &user);
        }
        self.outboxes.push(id.slot, &event::room_left(room.as_str(), message_id));
        Ok(Outcome::Done)
    }

    /// Takes the membership out of its slice; the connection's own record is the caller's.
    pub(super) fn leave_slice(&mut self, membership: Membership) {
        if let Some(moved) = self.directory.remove(membership)
            && let Some(session) = self.session(moved.slot)
        {
            session.follow(moved);
        }
    }

    pub(super) fn leave_home(&mut self, id: ConnectionId, room: RoomId, user: &UserId) {
        let to = home::of_room(room.as_str(), self.mesh.shards());
        self.mesh.send(to, Envelope::Leave { room, connection: id, user: user.clone() });
    }

    /// THE path of a message: encoded once, marked for the members here, handed to the other shards
    /// with members, and to the uplink.
    fn publish(
        &mut self,
        id: ConnectionId,
        room: &str,
        data: &str,
        message_id: Option<&str>,
        now: Now,
    ) -> Result<Outcome, Refused> {
        let membership = match self.place(id, room)? {
            Ok(membership) => membership,
            Err(room) => return Ok(Outcome::Park(room)),
        };
        self.may(id, RoomRight::Publish, room)?;
        let socket = self.socket_id(id).text();
        let mut span = self.follow_in(id, "publish", SpanKind::Producer, room);
        let Some(sender) =
            self.sessions[id.slot as usize].as_ref().and_then(|session| session.identity.as_ref())
        else {
            return Err(NOT_IN_ROOM);
        };
        let slice = self.directory.slice(membership.slice);
        let message = event::RoomMessage {
            room: slice.room.as_str(),
            sender: sender.user.as_str(),
            sender_socket: Some(socket.as_str()),
            timestamp_ms: now.unix_ms,
            message_id,
            offset: None,
            data,
        };
        let frame = event::room_message(&message);
        if cfg!(feature = "encode-for-each") {
            // For benches/choices: the sender hears nothing, and the first receiver's frame is written already.
            slice
                .members
                .iter()
                .skip(2)
                .for_each(|_| drop(std::hint::black_box(event::room_message(&message))));
        }
        if slice.history {
            let room = slice.room.clone();
            return self.store(id, room, &frame, message_id, span, now);
        }
        if let Some(uplink) = &mut self.uplink
            && !uplink.publish(&slice.room, &frame, span.take())
        {
            return Err(BUSY);
        }
        self.deliver_to_slice(membership.slice, Some(id.slot), &frame);
        let slice = self.directory.slice(membership.slice);
        for shard in slice.route.shards().without(self.id) {
            let envelope =
                Envelope::RoomFrame { room: slice.room.clone(), sender: None, frame: frame.clone() };
            if !self.mesh.offer(shard, envelope) {
                self.mesh.lost(shard, &slice.room, None);
                self.cells.mesh_dropped.add(1);
            }
        }
        span.into_iter().for_each(|span| span.finish(None));
        if let Some(message_id) = message_id {
            self.outboxes.push(id.slot, &event::message_ack(message_id, Some(slice.room.as_str()), None));
        }
        Ok(Outcome::Done)
    }

    fn message_user(
        &mut self,
        id: ConnectionId,
        target: &str,
        data: &str,
        message_id: Option<&str>,
        now: Now,
    ) -> Result<(), Refused> {
        let target =
            UserId::parse(target).ok_or((ErrorCode::InvalidMessage, "targetUserId has 1 to 256 bytes"))?;
        let Some(sender) = self.session_of(id).and_then(|session| session.identity.as_ref()) else {
            return Ok(());
        };
        let frame = event::user_message(sender.user.as_str(), now.unix_ms, message_id, data);
        let to = home::of_user(target.as_str(), self.mesh.shards());
        if self.mesh.is_congested(to) {
            return Err(BUSY);
        }
        self.publish_to_others(id, Target::User(target.clone()), frame::payload(&frame))?;
        self.mesh.send(to, Envelope::ToUser { user: target, frame });
        if let Some(message_id) = message_id {
            self.outboxes.push(id.slot, &event::message_ack(message_id, None, None));
        }
        Ok(())
    }

    fn message_everyone(
        &mut self,
        id: ConnectionId,
        data: &str,
        message_id: Option<&str>,
        now: Now,
    ) -> Result<(), Refused> {
        let Some(sender) = self.session_of(id).and_then(|session| session.identity.as_ref()) else {
            return Ok(());
        };
        if !sender.may_broadcast() {
            return Err((ErrorCode::Forbidden, "this needs a token with the broadcast permission").into());
        }
        let frame = event::global_message(sender.user.as_str(), now.unix_ms, data);
        self.publish_to_others(id, Target::Global, frame::payload(&frame))?;
        for shard in self.mesh.others() {
            self.mesh.send(shard, Envelope::GlobalFrame { frame: frame.clone() });
        }
        self.deliver_to_everyone(&frame);
        if let Some(message_id) = message_id {
            self.outboxes.push(id.slot, &event::message_ack(message_id, None, None));
        }
        Ok(())
    }

    fn publish_to_others(
        &mut self,
        id: ConnectionId,
        target: Target,
        event: bytes::Bytes,
    ) -> Result<(), Refused> {
        let span = self.follow(id, "publish", SpanKind::Producer);
        match &self.uplink {
            Some(uplink) if uplink.state != LinkState::Down => {
                let publication = publication(span, target, event);
                uplink.publications.try_send(publication).map_err(|_| BUSY)
            }
            _ => Ok(()),
        }
    }

    fn list_members(
        &mut self,
        id: ConnectionId,
        room: &str,
        message_id: Option<&str>,
        now: Now,
    ) -> Result<Outcome, Refused> {
        let membership = match self.place(id, room)? {
            Ok(membership) => membership,
            Err(room) => return Ok(Outcome::Park(room)),
        };
        self.may(id, RoomRight::Members, room)?;
        let room = self.directory.slice(membership.slice).room.clone();
        let asker = Asker { connection: id, message_id: message_id.map(Into::into) };
        self.ask(Asked { room, asker, question: Question::Members, since: now.ms() })
    }
}

/// The reply to `authenticate`; an anonymous user's authentication does not end.
pub(super) fn authenticated(identity: &Identity, message_id: Option<&str>) -> bytes::Bytes {
    let expires_at_ms = identity.expires_at.unwrap_or_default().saturating_mul(1000);
    event::authentication_success(identity.user.as_str(), expires_at_ms, message_id)
}
