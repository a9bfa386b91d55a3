//! A connection's life: accepted, upgraded, attached, open, closed.

use std::ops::ControlFlow;

use bytes::Bytes;

use super::admission::GUEST;
use super::envelope::Envelope;
use super::session::{Allowance, Phase, Session};
use super::{Action, Now, Shard, home, key};
use crate::accept::extension::Deflate;
use crate::accept::request::{self, Head, Refusal, Request};
use crate::accept::upgrade::Upgrade;
use crate::accept::{api, http, upgrade};
use crate::codec::close::CloseCode;
use crate::codec::frame;
use crate::codec::message::{Event, MessageLimits};
use crate::codec::violation::Violation;
use crate::command::authorize::Identity;
use crate::command::event;
use crate::identity::{ConnectionId, UserId};
use crate::limits;
use crate::metrics::kinds::{Ending, Limit};
use crate::quota::Place;
use crate::ring::Key;

/// Bytes beyond one message of the largest size that a client may send before it has heard the first one.
const EARLY_BYTES: usize = 16 * 1024;

const UNAVAILABLE: &str = "503 Service Unavailable";

/// Who a client that is let in is, what it has asked for, and where its address counts.
type Admitted = (Option<Identity>, Upgrade, Option<Place>);

impl Shard {
    /// A client has connected.
    pub fn handle_accepted(&mut self, accepted: Key, now: Now) {
        let slot = accepted.slot as usize;
        if slot >= self.sessions.len() {
            self.sessions.resize_with(slot + 1, || None);
        }
        let id = ConnectionId { shard: self.id, slot: accepted.slot, generation: accepted.generation };
        self.sessions[slot] = Some(Session::new(id, now, self.settings().message_burst));
        self.outboxes.open(accepted.slot);
        self.cells.accepts.add(1);
        if !self.begin_tls(accepted.slot) {
            return self.drop_connection(id, now);
        }
        self.actions.push(Action::Receive(accepted));
        self.handshakes.push_back(id);
        self.bound_handshakes(now);
    }

    /// Refuses the oldest handshakes beyond the bound: whoever means it has sent its head long before.
    fn bound_handshakes(&mut self, now: Now) {
        let most = self.settings().limits.max_handshakes;
        if self.handshakes.len() <= most {
            return;
        }
        let sessions = &self.sessions;
        self.handshakes.retain(|id| {
            let session = sessions[id.slot as usize].as_ref();
            session.is_some_and(|session| session.id == *id && session.phase == Phase::Handshake)
        });
        while self.handshakes.len() > most {
            let Some(oldest) = self.handshakes.pop_front() else { return };
            self.cells.reached(Limit::Handshakes);
            let reason = "too many handshakes are under way: come back later";
            let refusal = Refusal { status: UNAVAILABLE, reason, header: "Retry-After: 5\r\n" };
            self.refuse_incomplete(oldest.slot, &refusal, now);
        }
    }

    /// Plaintext came in from a client.
    pub(super) fn read(&mut self, from: Key, bytes: &mut [u8], now: Now) {
        let early_bytes = self.settings().max_message_bytes.saturating_add(EARLY_BYTES);
        let Some(session) = self.session(from.slot) else { return };
        session.heard_at = now.ms();
        match session.phase {
            Phase::Handshake => self.read_head(from.slot, bytes, now),
            Phase::Requesting => self.read_body(from.slot, bytes, now),
            Phase::Attaching => {
                let early = &mut session.unsettled().early;
                if early.len() + bytes.len() > early_bytes {
                    self.close(
                        from.slot,
                        CloseCode::PolicyViolation,
                        "too much before the first message",
                        now,
                    );
                } else {
                    early.extend_from_slice(bytes);
                }
            }
            Phase::Open | Phase::Closing => self.read_frames(from.slot, bytes, now),
            Phase::Finishing | Phase::Gone => {}
        }
    }

    /// Has those acknowledged who may send the rest of their request only then: nothing goes out to them that would do it.
    pub(super) fn acknowledge_parts(&mut self) {
        let mut requesting = std::mem::take(&mut self.requesting);
        requesting.dedup();
        for from in requesting.drain(..) {
            let session = self.session(from.slot).filter(|session| key(session.id) == from);
            if session.is_some_and(|session| session.awaits_rest()) && self.outboxes.is_empty(from.slot) {
                self.actions.push(Action::Acknowledge(from));
            }
        }
        self.requesting = requesting;
    }

    /// The client has finished sending, or the connection broke. What waits is still sent: a client that
    /// closes only its own end reads on (RFC 9112, section 9.6), and with a broken one the send fails.
    pub fn handle_ended(&mut self, from: Key, now: Now) {
        if let Some(session) = self.session(from.slot) {
            if session.phase == Phase::Requesting {
                // The answer is still awaited; if nobody reads it, sending it fails.
                session.ended = true;
                return;
            }
            let id = session.id;
            self.forget(id, Ending::Broken);
            if self.outboxes.is_empty(id.slot) {
                self.drop_connection(id, now);
            } else if let Some(session) = self.session(id.slot) {
                session.ended = true;
                session.enter(Phase::Finishing, now);
                self.outboxes.shut(id.slot);
            }
        }
        self.step_local(now);
    }

    /// A send is over; the outbox has been told.
    pub fn handle_sent(&mut self, to: Key, intact: bool, now: Now) {
        let Some(session) = self.session(to.slot) else { return };
        let (id, finishing, ended) = (session.id, session.phase == Phase::Finishing, session.ended);
        if !intact || (finishing && ended && self.outboxes.is_empty(to.slot)) {
            self.forget(id, Ending::Broken);
            self.drop_connection(id, now);
            self.step_local(now);
        } else if finishing && self.outboxes.is_empty(to.slot) {
            self.finish_sending(to);
        }
    }

    /// The socket is closed, its slot free.
    pub fn handle_closed(&mut self, closed: Key) {
        self.sessions[closed.slot as usize] = None;
        self.correlations.remove(closed.slot);
        self.tls.remove(closed.slot);
    }

    fn read_head(&mut self, slot: u32, bytes: &[u8], now: Now) {
        let Some(session) = self.session(slot) else { return };
        let mut head = std::mem::take(&mut session.unsettled().early);
        head.extend_from_slice(bytes);
        match request::parse(&head) {
            Head::Incomplete => {
                if let Some(session) = self.session(slot) {
                    session.unsettled().early = head;
                }
            }
            Head::Refused(refusal) => {
                let answer = http::fitted(request::method(&head), http::refuse(&refusal));
                self.answer(slot, answer, now);
            }
            Head::Request(request, length) if request.path == "/ws" => {
                self.correlate(slot, &request, "upgrade");
                match self.admit(slot, &request, now) {
                    Ok((identity, upgrade, address)) => {
                        self.came_from(slot, address);
                        self.upgrade(slot, upgrade, identity, &head[length..], now);
                    }
                    Err(answer) => self.answer(slot, http::fitted(request.method, answer), now),
                }
            }
            Head::Request(request, length) if api::is_api(request.path) => {
                self.correlate(slot, &request, "call");
                self.read_call(slot, &request, &head[length..], now);
            }
            Head::Request(request, _) => {
                let answer = http::respond(&request, &self.instance, now.since_start_ms);
                self.answer(slot, http::fitted(request.method, answer), now);
            }
        }
    }

    /// Refuses a request of which more was to come.
    pub(super) fn refuse_incomplete(&mut self, slot: u32, refusal: &Refusal, now: Now) {
        let early = self.session(slot).and_then(|session| session.unsettled.as_ref());
        let method = early.map_or("", |unsettled| request::method(&unsettled.early));
        let answer = http::fitted(method, http::refuse(refusal));
        self.answer(slot, answer, now);
    }

    /// Whether the server takes one more client, as whom, and counted where; or else what it is answered.
    fn admit(&self, slot: u32, request: &Request<'_>, now: Now) -> Result<Admitted, String> {
        let refuse = |refusal: Refusal| http::refuse(&refusal);
        let settings = &self.settings;
        self.bound_accepts(now).map_err(refuse)?;
        let upgrade =
            upgrade::check(request, &settings.allowed_origins, settings.compression).map_err(refuse)?;
        self.steer(request)?;
        let identity = self.identify(upgrade.token.as_deref(), now).map_err(refuse)?;
        let address = self.admit_address(slot, request).map_err(refuse)?;
        Ok((identity, upgrade, address))
    }

    /// The user whose token it is, if there is one.
    fn identify(&self, token: Option<&str>, now: Now) -> Result<Option<Identity>, Refusal> {
        let (Some(token), Some(verifier)) = (token, &self.verifier) else { return Ok(None) };
        let identity = verifier.verify(token, now.unix_ms / 1000);
        identity.map(Some).map_err(|_| {
            let reason = "the token was refused: it must be signed with this server's key and not expired";
            Refusal { status: "401 Unauthorized", reason, header: "WWW-Authenticate: Bearer\r\n" }
        })
    }

    /// Answers a plain HTTP request and finishes the connection.
    pub(super) fn answer(&mut self, slot: u32, mut response: String, now: Now) {
        let unheard = self.tls.is_handshaking(slot);
        self.cells.statuses.count(&response);
        if let Some(id) = self.session(slot).map(|session| session.id) {
            response = self.identified(id, response);
            self.conclude_request(id, response.split(' ').nth(1).unwrap_or_default());
        }
        if let Some(session) = self.session(slot) {
            let id = session.id;
            if unheard {
                return self.drop_connection(id, now);
            }
            session.enter(Phase::Finishing, now);
            session.unsettled = None;
        }
        self.outboxes.finish(slot, &Bytes::from(response), true);
    }

    fn upgrade(&mut self, slot: u32, upgrade: Upgrade, identity: Option<Identity>, rest: &[u8], now: Now) {
        let required = self.settings().auth_required;
        let Some(id) = self.session(slot).map(|session| session.id) else { return };
        let response = self.identified(id, upgrade.response);
        self.outboxes.push(slot, &Bytes::from(response));
        self.cells.connections.add(1);
        let Some(session) = self.session(slot) else { return };
        let id = session.id;
        session.counted = true;
        session.window = upgrade.deflate.map_or(0, Deflate::window);
        session.unsettled().early = rest.to_vec();
        session.unsettled().room = upgrade.room.map(Into::into);
        session.enter(Phase::Attaching, now);
        match identity {
            None if required => self.establish(slot, now),
            identity => {
                let identity = identity.unwrap_or_else(|| self.anonymous(id));
                self.attach(id, identity, now);
            }
        }
    }

    /// An anonymous user is named after its connection, which is unique.
    fn anonymous(&self, id: ConnectionId) -> Identity {
        let name = format!("{GUEST}{}", self.socket_id(id));
        let user = UserId::parse(&name).expect("a socket id is far shorter than a user id may be");
        let identity = Identity::anonymous(user, self.settings().default_room_permissions);
        if self.authorizer.is_some() { identity.asking() } else { identity }
    }

    /// The connection is the user's; the user's home shard makes it reachable. Whoever calls this adds
    /// it to `users` once the client may hear messages.
    pub(super) fn attach(&mut self, id: ConnectionId, identity: Identity, now: Now) {
        let identity = self.presentable(identity);
        let user = identity.user.clone();
        let Some(session) = self.session_of(id) else { return };
        if let Some(rate) = identity.rate {
            session.allowance = Allowance::full(rate.burst.get().into(), now);
        }
        session.identity = Some(Box::new(identity));
        let to = home::of_user(user.as_str(), self.mesh.shards());
        self.mesh.send(to, Envelope::Attach { connection: id, user });
    }

    /// The first message goes out, and frames that came early are read.
    pub(super) fn establish(&mut self, slot: u32, now: Now) {
        let Some(id) = self.session(slot).map(|session| session.id) else { return };
        if self.close_if_banned(id, now) {
            return;
        }
        let settings = self.settings();
        let (heartbeat, max_bytes) = (settings.ping_interval, settings.max_message_bytes);
        let Some(session) = self.session(slot) else { return };
        let id = session.id;
        session.enter(Phase::Open, now);
        let unsettled = session.unsettled();
        let (mut early, room) = (std::mem::take(&mut unsettled.early), unsettled.room.take());
        session.settle();
        let user = session.identity.as_ref().map(|identity| identity.user.clone());
        let frame = event::connection_established(&event::ConnectionEstablished {
            socket: self.socket_id(id).text().as_str(),
            instance: self.instance.id.as_str(),
            user: user.as_ref().map(UserId::as_str),
            heartbeat_ms: heartbeat.as_millis() as u64,
            max_message_bytes: max_bytes as u64,
        });
        self.outboxes.push(slot, &frame);
        self.settle_request(id);
        if let Some(user) = &user {
            self.users.add(user, slot);
        }
        self.watch_expiry(id, now);
        if self.uplink.is_some() && !self.is_linked() {
            self.outboxes.push(slot, &event::cluster_status(event::ClusterStatus::Degraded));
        }
        self.announce_drain(id, now);
        if let Some(room) = room {
            // As if the client had asked, so that it gets the same answers.
            let request = serde_json::json!({ "type": "join_room", "roomId": room });
            self.handle_text(slot, &request.to_string(), now);
        }
        if !early.is_empty() {
            self.read_frames(slot, &mut early, now);
        }
    }

    /// Decodes what arrived and handles every message in it.
    fn read_frames(&mut self, slot: u32, bytes: &mut [u8], now: Now) {
        let bounds = MessageLimits {
            message_bytes: self.settings().max_message_bytes,
            fragments: limits::MESSAGE_FRAGMENTS,
        };
        let Some(session) = self.session(slot) else { return };
        let mut decoder = std::mem::take(&mut session.decoder);
        let compression = session.window > 0;
        let mut inflater = compression.then(|| std::mem::take(&mut self.inflater));
        let outcome =
            decoder.feed(bytes, &bounds, inflater.as_mut(), &mut |event| self.handle_event(slot, event, now));
        if let Some(inflater) = inflater {
            self.inflater = inflater;
        }
        match (outcome, self.session(slot)) {
            (Err(violation), Some(_)) => self.violated(slot, violation, now),
            (Ok(()), Some(session)) => session.decoder = decoder,
            (_, None) => {}
        }
        self.step_local(now);
    }

    fn handle_event(&mut self, slot: u32, event: Event<'_>, now: Now) -> ControlFlow<()> {
        let Some(session) = self.session(slot) else { return ControlFlow::Break(()) };
        match (session.phase, event) {
            (Phase::Open | Phase::Closing, Event::Close { code, .. }) => {
                self.answer_close(slot, code, now);
                return ControlFlow::Break(());
            }
            (Phase::Open, Event::Text(text)) => self.handle_text(slot, text, now),
            (Phase::Open, Event::Binary(_)) => {
                self.close(slot, CloseCode::UnsupportedData, "messages are JSON in text frames", now);
            }
            (Phase::Open, Event::Ping(payload)) => self.outboxes.push(slot, &frame::pong(payload)),
            (Phase::Open, Event::Pong(_)) => session.pinged = false,
            _ => {}
        }
        match self.session(slot) {
            Some(session) if matches!(session.phase, Phase::Open | Phase::Closing) => {
                ControlFlow::Continue(())
            }
            _ => ControlFlow::Break(()),
        }
    }

    /// The peer has said close: RFC 6455, section 5.5.1, has us echo its code and close the socket.
    fn answer_close(&mut self, slot: u32, code: Option<u16>, now: Now) {
        let Some(session) = self.session(slot) else { return };
        let (id, phase) = (session.id, session.phase);
        self.forget(id, Ending::Client(code));
        if phase == Phase::Open {
            self.outboxes.finish(slot, &frame::close_reply(code), false);
        }
        self.finish(slot, now);
    }

    fn violated(&mut self, slot: u32, violation: Violation, now: Now) {
        self.cells.violations.add(1);
        if violation.close_code() == CloseCode::MessageTooBig {
            self.cells.reached(Limit::MessageBytes);
        }
        self.close(slot, violation.close_code(), &violation.to_string(), now);
        // The stream cannot be read any further, so the peer's close frame cannot be awaited.
        self.finish(slot, now);
    }

    /// Sends a close frame; the peer has a few seconds to answer it.
    pub(super) fn close(&mut self, slot: u32, code: CloseCode, reason: &str, now: Now) {
        let Some(session) = self.session(slot).filter(|session| session.phase < Phase::Closing) else {
            return;
        };
        let id = session.id;
        session.enter(Phase::Closing, now);
        self.forget(id, Ending::Server(code));
        // Whoever does not read would not come to the close frame through a full outbox.
        let discard = code == CloseCode::SlowReader;
        if discard {
            self.cells.outbox_dropped_bytes.add(self.outboxes.bytes(slot) as u64);
        }
        self.outboxes.finish(slot, &frame::close(code.as_u16(), reason), discard);
    }

    /// Nothing more is read; the socket is closed after what waits has gone out.
    fn finish(&mut self, slot: u32, now: Now) {
        let empty = self.outboxes.is_empty(slot);
        let Some(session) = self.session(slot) else { return };
        session.enter(Phase::Finishing, now);
        if empty {
            let to = key(session.id);
            self.finish_sending(to);
        }
    }

    /// The client has said that it sends nothing more, or can say nothing that is understood: it leaves its
    /// rooms, and what waits for it still goes out.
    pub(super) fn finish_connection(&mut self, slot: u32, now: Now) {
        let Some(session) = self.session(slot).filter(|session| session.phase < Phase::Finishing) else {
            return;
        };
        let id = session.id;
        self.forget(id, Ending::Broken);
        self.outboxes.shut(slot);
        self.finish(slot, now);
        self.step_local(now);
    }

    /// Whether the connection is there and open: it has neither to be upgraded yet nor is it being closed.
    pub fn is_open(&mut self, of: Key) -> bool {
        self.session(of.slot).is_some_and(|session| key(session.id) == of && session.phase == Phase::Open)
    }

    /// The client has sent more than an overloaded shard can read in time: it is told so, and the rest stays unread.
    pub fn close_unread(&mut self, from: Key, now: Now) {
        if self.is_open(from) {
            self.cells.unread_closes.add(1);
            let reason = "the server is overloaded and cannot read all that you send: send less";
            self.close(from.slot, CloseCode::SentTooMuch, reason, now);
            self.finish(from.slot, now);
            self.actions.push(Action::StopReceiving(from));
        }
    }

    /// A connection's outbox has overflowed: whoever reads this slowly is told so and closed.
    pub(super) fn close_overflowed(&mut self, now: Now) {
        for slot in self.outboxes.take_overflowed() {
            self.cells.slow_closes.add(1);
            self.cells.outboxes_full.add(1);
            self.close(
                slot,
                CloseCode::SlowReader,
                "the outbox is full: read faster, or send less to this room",
                now,
            );
        }
    }

    /// The connection handles one of its messages with a panic: it goes, the shard stays.
    pub fn handle_panic(&mut self, on: Key, now: Now) {
        self.cells.panics.add(1);
        if let Some(id) = self.session(on.slot).map(|session| session.id) {
            let (connection, request) = (self.socket_id(id).text(), self.request_id(id));
            tracing::error!(
                connection = connection.as_str(),
                request = &*request,
                "a message made the server panic: the connection is closed"
            );
        }
        self.close(on.slot, CloseCode::ServerFault, "internal error", now);
    }

    /// Takes the connection out of its rooms and away from its user. Doing it twice changes nothing.
    fn forget(&mut self, id: ConnectionId, ending: Ending) {
        let Some(session) = self.session_of(id) else { return };
        if std::mem::take(&mut session.counted) {
            self.cells.connections.sub(1);
            self.cells.closes.count(ending);
            let (connection, request) = (self.socket_id(id).text(), self.request_id(id));
            tracing::debug!(
                connection = connection.as_str(),
                request = &*request,
                ?ending,
                "a connection has ended"
            );
        }
        self.leave_address(id);
        let Some(session) = self.session_of(id) else { return };
        let rooms = std::mem::take(&mut session.rooms);
        let joining = session.unsettled.take().map(|unsettled| unsettled.joining).unwrap_or_default();
        let Some(identity) = session.identity.take() else { return };
        for membership in rooms {
            let room = self.directory.slice(membership.slice).room.clone();
            self.leave_slice(membership);
            self.leave_home(id, room, &identity.user);
        }
        for joining in joining {
            self.leave_home(id, joining.room, &identity.user);
        }
        self.users.remove(&identity.user, id.slot);
        let to = home::of_user(identity.user.as_str(), self.mesh.shards());
        self.mesh.send(to, Envelope::Detach { connection: id, user: identity.user });
    }
}

#[cfg(test)]
mod tests {
    use std::net::{IpAddr, Ipv4Addr};
    use std::sync::Arc;

    use super::*;
    use crate::accept::address::Network;
    use crate::config::{ApiKeys, Settings};
    use crate::identity::ShardId;
    use crate::instance::{Instance, Phase};
    use crate::shard::mesh::Mesh;

    const NOW: Now = Now { since_start_ms: 1000, unix_ms: 1_790_000_000_000 };

    const UPGRADE: &str = "GET /ws HTTP/1.1\r\nHost: localhost\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\
        Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n";

    const PROXY: IpAddr = IpAddr::V4(Ipv4Addr::new(127, 0, 0, 1));

    /// How often a shard asks for an acknowledgement while a client sends this, turn by turn, each in its parts.
    fn acknowledgements(turns: &[&[&str]]) -> usize {
        acknowledgements_of(IpAddr::from([127, 0, 0, 9]), turns)
    }

    fn acknowledgements_of(peer: IpAddr, turns: &[&[&str]]) -> usize {
        let mut settings = Settings::for_tests();
        settings.administration.keys = ApiKeys::parse("key").unwrap();
        settings.limits.proxy_protocol = true;
        settings.limits.trusted_proxies = Network::parse(&PROXY.to_string()).into_iter().collect();
        let instance = Arc::new(Instance::new(settings, 1));
        instance.enter(Phase::Serving);
        let mut shard = Shard::new(ShardId(0), instance, None, Mesh::new(ShardId(0), vec![None]), None);
        let client = Key { slot: 0, generation: 0 };
        shard.handle_accepted(client, NOW);
        shard.handle_peer(client, peer);
        let mut asked = 0;
        for parts in turns {
            parts.iter().for_each(|part| shard.handle_received(client, &mut part.as_bytes().to_vec(), NOW));
            shard.finish_turn(NOW);
            let actions = shard.take_actions();
            asked += actions.iter().filter(|action| matches!(action, Action::Acknowledge(_))).count();
        }
        asked
    }

    #[test]
    fn a_request_in_parts_is_acknowledged_until_it_is_whole() {
        let (first, rest) = UPGRADE.split_at(9);
        let (second, third) = rest.split_at(40);
        assert_eq!(acknowledgements(&[&[first], &[second], &[third]]), 2);
        assert_eq!(acknowledgements(&[&[first, second], &[third]]), 1);
        assert_eq!(acknowledgements(&[&[first, second, third]]), 0, "the answer does it");
        assert_eq!(acknowledgements(&[&["GET /health HTTP/1.1\r\nHost: localhost\r\n\r\n"]]), 0);
    }

    #[test]
    fn what_a_proxy_says_in_front_of_a_request_is_acknowledged() {
        let (first, rest) = ("\r\n\r\n\0\r\nQUIT\n\x21\x11\0\x0c", "\x7f\0\0\x01\x7f\0\0\x01\0\x50\0\x50");
        assert_eq!(acknowledgements_of(PROXY, &[&[first], &[rest], &[UPGRADE]]), 2);
        assert_eq!(acknowledgements_of(PROXY, &[&[first, rest, UPGRADE]]), 0);
    }

    #[test]
    fn a_body_in_parts_is_acknowledged_until_it_is_whole() {
        let head = |more| {
            format!(
                "POST /api/v1/rooms/r/messages HTTP/1.1\r\nHost: localhost\r\nAuthorization: Bearer key\r\n\
                 Content-Length: 12\r\n{more}\r\n"
            )
        };
        let (first, rest) = (r#"{"data""#, r#":{} }"#);
        assert_eq!(acknowledgements(&[&[&head("")], &[first], &[rest]]), 2);
        assert_eq!(acknowledgements(&[&[&head(""), first, rest]]), 0);
        assert_eq!(acknowledgements(&[&[&head("Expect: 100-continue\r\n")]]), 0, "100 Continue does it");
    }
}
