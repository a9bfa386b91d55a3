//! Subscriptions to channels; connections of users, and how many each user has over all instances.

use std::sync::Arc;
use std::time::Instant;

use redis::{ServerError, Value, cmd};

use super::{Expect, Ingress};
use crate::identity::{ConnectionId, RoomId, SocketId, UserId};
use crate::room::route::RoomRoute;
use crate::shard::envelope::{Counted, Envelope};
use crate::uplink::channel::Channel;
use crate::uplink::link::{LinkError, PASSING};
use crate::uplink::script_queue::Outgoing;
use crate::uplink::sessions::{Call, UserSessions};

impl Ingress {
    pub(super) fn subscribe_room(&mut self, room: &RoomId, route: Arc<RoomRoute>, now: Instant) {
        if self.delivery.add_room(room, route) {
            self.subscribe(Channel::Room(room.as_str()), None, now);
        }
    }

    pub(super) fn subscribe(&mut self, channel: Channel<'_>, waits: Option<ConnectionId>, now: Instant) {
        self.link.send(cmd("SUBSCRIBE").arg(self.channels.name(channel)), Expect::Subscribe(waits), now);
    }

    pub(super) fn unsubscribe(&mut self, channel: Channel<'_>, now: Instant) {
        self.link.send(cmd("UNSUBSCRIBE").arg(self.channels.name(channel)), Expect::Nothing, now);
    }

    /// A connection of the user is answered once it can be reached and is known not to be one too many.
    pub(super) fn attach(
        &mut self,
        user: UserId,
        connection: ConnectionId,
        counted: Option<Counted>,
        now: Instant,
    ) {
        let counted = counted.filter(|_| self.sessions.counts());
        // Subscribing once more changes nothing, and its answer comes at the right moment.
        let waits = counted.is_none().then_some(connection);
        self.subscribe(Channel::User(user.as_str()), waits, now);
        self.delivery.add_user(user.clone());
        if let Some(Counted { socket, most }) = counted {
            self.call_sessions(Call::Attach { user, socket, most }, now);
        }
    }

    pub(super) fn detach(&mut self, user: UserId, counted: Option<SocketId>, last: bool, now: Instant) {
        if last {
            self.unsubscribe(Channel::User(user.as_str()), now);
            self.delivery.remove_user(&user);
        }
        if let Some(socket) = counted {
            self.call_sessions(Call::Detach { user, socket }, now);
        }
    }

    pub(super) fn restore_users(&mut self, users: Vec<UserSessions>, now: Instant) {
        for (user, _) in &users {
            if self.delivery.add_user(user.clone()) {
                self.subscribe(Channel::User(user.as_str()), None, now);
            }
        }
        let counted = users.into_iter().filter(|(_, sockets)| !sockets.is_empty()).collect();
        for call in Call::restoring(counted) {
            self.call_sessions(call, now);
        }
    }

    /// What Redis has of this instance is forgotten before the shards say what there is; from now on it counts.
    pub(super) fn reset_sessions(&mut self, now: Instant) {
        self.call_sessions(Call::Reset, now);
        if self.sessions.counts() {
            self.link.send(cmd("SUBSCRIBE").arg(self.sessions.alive_channel()), Expect::Subscribe(None), now);
        }
    }

    pub(super) fn call_sessions(&mut self, call: Call, now: Instant) {
        if self.sessions.counts()
            && let Some(outgoing) = self.session_scripts.submit(call)
        {
            self.send_sessions(outgoing, now);
        }
    }

    fn send_sessions(&mut self, outgoing: Outgoing<Call>, now: Instant) {
        let command = self.sessions.command(&outgoing.call, outgoing.with_text);
        self.link.send(&command, Expect::Sessions(outgoing.call), now);
    }

    /// A call was answered.
    pub(super) fn sessions_answer(
        &mut self,
        call: Call,
        answer: Result<Value, ServerError>,
        now: Instant,
    ) -> Result<(), LinkError> {
        let mut outgoing = Vec::new();
        let answered = self.session_scripts.answered(call, answer, |out| outgoing.push(out));
        for out in outgoing {
            self.send_sessions(out, now);
        }
        let Some((call, answer)) = answered else { return Ok(()) };
        let fits = match answer {
            Ok(value) => value != Value::Int(0),
            // Nobody is kept out because the count cannot be had now.
            Err(error) if PASSING.contains(&error.code()) => true,
            Err(error) => return Err(super::refused("the script that counts connections", &error)),
        };
        if let Some(connection) = call.waiting() {
            let answer = if fits {
                Envelope::Attached { connection }
            } else {
                Envelope::TooManyConnections { connection }
            };
            self.delivery.control(connection.shard, answer);
        }
        Ok(())
    }
}
