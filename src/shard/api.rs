//! Requests to `/api/`: who may ask, what a shard carries out by itself, and what it asks others for.

use bytes::Bytes;
use hashbrown::HashMap;
use serde_json::json;
use std::sync::Arc;

use crossbeam_channel::Sender;

use super::correlation::{Cause, publication};
use super::envelope::{
    Asker, ControlMessage, Envelope, HistoryPage, LinkState, Member, Order, Part, Publication, Question,
    ReadHistory, ReplyTo, SessionFacts, Store, StoreOutcome, Target,
};
use super::outlet::Outlet;
use super::session::Phase;
use super::{Now, Shard, home};
use crate::accept::api::{self, Answer, Page, Route};
use crate::accept::http;
use crate::accept::request::Request;
use crate::ban::{Ban, Bans};
use crate::codec::close::CloseCode;
use crate::codec::frame;
use crate::command::authorize::TokenVerifier;
use crate::command::decode::decode_publication;
use crate::command::event::{self, RoomMessage};
use crate::config::Settings;
use crate::identity::{ConnectionId, RoomId, UserId};
use crate::limits;
use crate::metrics::kinds::Limit;
use crate::room::history::{Epoch, Position};

/// Milliseconds in which a request has its answer: more than a store in Redis and its timeout take.
pub(super) const ANSWER_MS: u32 = 5000;

/// Requests of one shard that wait for others, at most.
const PENDING: usize = 10_000;

/// The slot of what no connection of the ring has asked: answers to it come here.
const API_SLOT: u32 = u32::MAX;

/// The `senderId` of messages that came in over HTTP.
const SENDER: &str = "server";

/// What is kept of requests to `/api/`.
#[derive(Default)]
pub(super) struct Api {
    control: Option<Outlet<ControlMessage>>,
    pending: HashMap<u32, Pending>,
    next: u32,
    /// Who may not be connected.
    pub(super) bans: Arc<Bans>,
    /// The call that is being carried out.
    pub(super) cause: Option<Cause>,
}

/// A request that waits.
struct Pending {
    caller: Caller,
    kind: Kind,
    since: u32,
}

/// Who gets the answer.
enum Caller {
    Connection(ConnectionId),
    Port(Sender<Answer>),
}

/// What the answer is made of.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    Control,
    Count,
    Members,
    Stored,
    History,
}

impl Api {
    pub(super) fn new(control: Outlet<ControlMessage>) -> Self {
        Self { control: Some(control), ..Self::default() }
    }

    pub(super) fn flush(&mut self) {
        if let Some(control) = &mut self.control {
            control.flush();
        }
    }

    fn wait(&mut self, caller: Caller, kind: Kind, now: Now) -> u32 {
        self.next = self.next.wrapping_add(1);
        self.pending.insert(self.next, Pending { caller, kind, since: now.ms() });
        self.next
    }
}

/// Whether whoever brings `credential` may use the interface at the time `unix_seconds`.
///
/// # Errors
/// The answer to whoever may not.
pub fn authorize(
    credential: Option<&str>,
    settings: &Settings,
    verifier: Option<&TokenVerifier>,
    unix_seconds: u64,
) -> Result<(), Answer> {
    let refused = |message| {
        let answer = Answer::error("401 Unauthorized", "unauthenticated", message);
        answer.with_header("WWW-Authenticate: Bearer\r\n")
    };
    let Some(credential) = credential else {
        return Err(refused(
            "send an API key or a token with admin, as Authorization: Bearer … or X-API-Key",
        ));
    };
    if settings.administration.keys.admit(credential) {
        return Ok(());
    }
    match verifier.map(|verifier| verifier.verify(credential, unix_seconds)) {
        Some(Ok(identity)) if identity.is_admin() => Ok(()),
        Some(Ok(_)) => Err(Answer::error("403 Forbidden", "forbidden", "the token has no admin permission")),
        _ => Err(refused("this is neither an API key of this server nor a token that it accepts")),
    }
}

/// Bytes of the largest body that is taken.
pub fn most_body_bytes(settings: &Settings) -> usize {
    settings.max_message_bytes + limits::REQUEST_BODY_SPARE_BYTES
}

impl Shard {
    /// The head of a request for `/api/` is complete; `body` is what came behind it.
    pub(super) fn read_call(&mut self, slot: u32, request: &Request<'_>, body: &[u8], now: Now) {
        let settings = self.settings();
        if settings.administration.port.is_some() {
            let answer = Answer::error("404 Not Found", "not_found", "this is served on ADMIN_PORT");
            return self.answer(slot, http::fitted(request.method, answer.encode()), now);
        }
        let verifier = self.verifier.as_deref();
        let call = authorize(api::credential(request), settings, verifier, now.unix_ms / 1000)
            .and_then(|()| api::parse(request, most_body_bytes(settings)));
        let call = match call {
            Ok(call) => call,
            Err(answer) => return self.answer(slot, http::fitted(request.method, answer.encode()), now),
        };
        let incomplete = body.len() < call.body_bytes;
        if incomplete && call.expects_continue {
            self.outboxes.push(slot, &Bytes::from_static(b"HTTP/1.1 100 Continue\r\n\r\n"));
        }
        let Some(session) = self.session(slot) else { return };
        session.enter(Phase::Requesting, now);
        session.unsettled().request = Some(call);
        session.unsettled().early.clear();
        self.read_body(slot, body, now);
    }

    /// More of a request's body has come.
    pub(super) fn read_body(&mut self, slot: u32, bytes: &[u8], now: Now) {
        let Some(session) = self.session(slot) else { return };
        let id = session.id;
        let unsettled = session.unsettled();
        // What comes behind the body is not read: the connection ends with the answer.
        let Some(call) = &unsettled.request else { return };
        let missing = call.body_bytes.saturating_sub(unsettled.early.len());
        unsettled.early.extend_from_slice(&bytes[..missing.min(bytes.len())]);
        if unsettled.early.len() < call.body_bytes {
            return;
        }
        let body = std::mem::take(&mut unsettled.early);
        let Some(call) = unsettled.request.take() else { return };
        self.api.cause = Some(self.cause(id));
        self.execute(Caller::Connection(id), call.route, &body, now);
        self.step_local(now);
    }

    pub(super) fn refuse_slow_request(&mut self, slot: u32, now: Now) {
        let reading = self.session(slot).is_some_and(|session| session.unsettled().request.is_some());
        let answer = if reading { Answer::slow_body() } else { Answer::timed_out() };
        self.answer(slot, answer.encode(), now);
    }

    /// Requests that others do not answer.
    pub(super) fn look_at_api(&mut self, now: Now) {
        let late: Vec<u32> = self
            .api
            .pending
            .iter()
            .filter(|(_, pending)| now.ms().wrapping_sub(pending.since) >= ANSWER_MS)
            .map(|(ticket, _)| *ticket)
            .collect();
        for ticket in late {
            self.conclude(ticket, Answer::timed_out(), now);
        }
    }

    fn conclude(&mut self, ticket: u32, answer: Answer, now: Now) {
        if let Some(pending) = self.api.pending.remove(&ticket) {
            self.reply(&pending.caller, &answer, now);
        }
    }

    fn reply(&mut self, caller: &Caller, answer: &Answer, now: Now) {
        match caller {
            Caller::Connection(id) => {
                if self.session_of(*id).is_some_and(|session| session.phase == Phase::Requesting) {
                    self.answer(id.slot, answer.encode(), now);
                }
            }
            // Whoever asked may have gone.
            Caller::Port(sender) => drop(sender.try_send(answer.clone())),
        }
    }

    fn execute(&mut self, caller: Caller, route: Route, body: &[u8], now: Now) {
        if self.api.pending.len() >= PENDING {
            self.cells.reached(Limit::Calls);
            let answer =
                Answer::error("429 Too Many Requests", "rate_limited", "too many requests wait: slow down");
            return self.reply(&caller, &answer.with_header("Retry-After: 1\r\n"), now);
        }
        match route {
            Route::PublishToRoom(room) => self.api_publish(caller, room, body, now),
            Route::SendToUser(user) => {
                let answer = self.api_send(&Target::User(user), body, now);
                self.reply(&caller, &answer, now);
            }
            Route::Broadcast => {
                let answer = self.api_send(&Target::Global, body, now);
                self.reply(&caller, &answer, now);
            }
            Route::Room(room) => self.api_members(caller, room, Kind::Count, now),
            Route::Members(room) => self.api_members(caller, room, Kind::Members, now),
            Route::History(room, page) => self.api_history(caller, room, page, now),
            other => match order(other, body, now) {
                Ok(order) => {
                    self.note_order(&order);
                    self.api_order(caller, order, now);
                }
                Err(answer) => self.reply(&caller, &answer, now),
            },
        }
    }

    fn api_order(&mut self, caller: Caller, order: Order, now: Now) {
        let ticket = self.api.wait(caller, Kind::Control, now);
        let message = ControlMessage::Order { order, reply: ReplyTo { shard: self.id, ticket } };
        let sent = self.api.control.as_mut().map(|control| control.offer(message));
        if !matches!(sent, Some(Ok(()))) {
            self.conclude(ticket, Answer::unavailable("too much is being administrated: try again"), now);
        }
    }

    fn asker(&self, ticket: u32, message_id: Option<&str>) -> Asker {
        let connection = ConnectionId { shard: self.id, slot: API_SLOT, generation: ticket };
        Asker { connection, message_id: message_id.map(Into::into) }
    }

    fn api_members(&mut self, caller: Caller, room: RoomId, kind: Kind, now: Now) {
        let ticket = self.api.wait(caller, kind, now);
        let asker = self.asker(ticket, None);
        let to = home::of_room(room.as_str(), self.mesh.shards());
        self.mesh.send(to, Envelope::ListMembers { room, asker });
    }

    fn api_history(&mut self, caller: Caller, room: RoomId, page: Page, now: Now) {
        let settings = &self.settings().history;
        if !settings.covers(room.as_str()) {
            let answer =
                Answer::error("404 Not Found", "no_history", "this room keeps no history: see HISTORY_ROOMS");
            return self.reply(&caller, &answer, now);
        }
        let limit = page.limit.unwrap_or(settings.page).min(settings.page);
        let since = page.since.map(|(epoch, offset)| Position { epoch: Epoch(epoch), offset });
        let ticket = self.api.wait(caller, Kind::History, now);
        let asker = self.asker(ticket, None);
        let to = home::of_room(room.as_str(), self.mesh.shards());
        let read = ReadHistory { room, asker, since, limit, reverse: page.reverse };
        self.mesh.send(to, Envelope::ReadHistory(Box::new(read)));
    }

    fn api_publish(&mut self, caller: Caller, room: RoomId, body: &[u8], now: Now) {
        let kept = self.settings().history.covers(room.as_str());
        let mut scratch = std::mem::take(&mut self.scratch);
        let published = read_publication(body, &mut scratch).map(|(message_id, data)| {
            let frame = event::room_message(&RoomMessage {
                room: room.as_str(),
                sender: SENDER,
                sender_socket: None,
                timestamp_ms: now.unix_ms,
                message_id,
                offset: None,
                data,
            });
            (frame, message_id.map(Box::<str>::from))
        });
        self.scratch = scratch;
        match published {
            Err(answer) => self.reply(&caller, &answer, now),
            Ok((frame, message_id)) if kept => {
                self.api_store(caller, room, frame, message_id.as_deref(), now)
            }
            Ok((frame, _)) => {
                let answer = self.api_deliver(&Target::Room(room), frame);
                self.reply(&caller, &answer, now);
            }
        }
    }

    fn api_store(&mut self, caller: Caller, room: RoomId, frame: Bytes, message_id: Option<&str>, now: Now) {
        let ticket = self.api.wait(caller, Kind::Stored, now);
        let asker = self.asker(ticket, message_id);
        let user = UserId::parse(SENDER).expect("the name has an allowed length");
        let trace = self.follow_call(Some(room.as_str()));
        let trace = trace.map(|span| Box::new((span, self.caused_by())));
        let event = frame::payload(&frame);
        let store = Store { room: room.clone(), asker, user, sender: None, event, trace };
        let sent = match &self.uplink {
            Some(uplink) => {
                uplink.state != LinkState::Down
                    && uplink.publications.try_send(Publication::Store(Box::new(store))).is_ok()
            }
            None => {
                let to = home::of_room(room.as_str(), self.mesh.shards());
                let free = !self.mesh.is_congested(to);
                if free {
                    self.mesh.send(to, Envelope::Store(Box::new(store)));
                }
                free
            }
        };
        if !sent {
            self.conclude(
                ticket,
                Answer::unavailable("the room's history cannot be reached: nothing was done"),
                now,
            );
        }
    }

    fn api_send(&mut self, target: &Target, body: &[u8], now: Now) -> Answer {
        let mut scratch = std::mem::take(&mut self.scratch);
        let frame = read_publication(body, &mut scratch).map(|(message_id, data)| match target {
            Target::User(_) => event::user_message(SENDER, now.unix_ms, message_id, data),
            _ => event::global_message(SENDER, now.unix_ms, data),
        });
        self.scratch = scratch;
        match frame {
            Ok(frame) => self.api_deliver(target, frame),
            Err(answer) => answer,
        }
    }

    /// Hands a frame to everyone whom `target` names, here and on the other instances.
    fn api_deliver(&mut self, target: &Target, frame: Bytes) -> Answer {
        let shards = self.mesh.shards();
        let home = match target {
            Target::Room(room) => Some(home::of_room(room.as_str(), shards)),
            Target::User(user) => Some(home::of_user(user.as_str(), shards)),
            Target::Global => None,
        };
        let busy = || Answer::unavailable("the server is overloaded: nothing was done, try again");
        if home.is_some_and(|home| self.mesh.is_congested(home)) {
            return busy();
        }
        let room = if let Target::Room(room) = target { Some(room.as_str()) } else { None };
        let span = self.follow_call(room);
        if let Some(uplink) = &mut self.uplink {
            let taken = match target {
                Target::Room(room) => uplink.publish(room, &frame, span),
                _ if uplink.state == LinkState::Down => true,
                _ => {
                    let publication = publication(span, target.clone(), frame::payload(&frame));
                    uplink.publications.try_send(publication).is_ok()
                }
            };
            if !taken {
                return busy();
            }
        }
        match (target, home) {
            (Target::Room(room), Some(home)) => {
                self.mesh.send(home, Envelope::ToRoom { room: room.clone(), frame });
            }
            (Target::User(user), Some(home)) => {
                self.mesh.send(home, Envelope::ToUser { user: user.clone(), frame })
            }
            _ => {
                for shard in self.mesh.others() {
                    self.mesh.send(shard, Envelope::GlobalFrame { frame: frame.clone() });
                }
                self.deliver_to_everyone(&frame);
            }
        }
        Answer::raw(if self.is_cut_off() { r#"{"complete":false}"# } else { "{}" }.to_owned())
    }

    /// Whether other instances cannot be reached: what is answered is this one's own.
    fn is_cut_off(&self) -> bool {
        self.uplink.as_ref().is_some_and(|uplink| uplink.state == LinkState::Down)
    }

    // ── what comes back, and what the control thread asks ─────────────────────────────────

    /// Takes what is about `/api/`; gives back everything else.
    pub(super) fn step_api(&mut self, envelope: Envelope, now: Now) -> Option<Envelope> {
        match envelope {
            Envelope::Members { room, asker, member_count, members } if asker.connection.slot == API_SLOT => {
                self.counted(&room, asker.connection.generation, member_count, &members, now);
            }
            Envelope::Stored { asker, outcome, .. } if asker.connection.slot == API_SLOT => {
                self.conclude(asker.connection.generation, stored(outcome), now);
            }
            Envelope::History { room, asker, page } if asker.connection.slot == API_SLOT => {
                let most = self.settings().outbox_bytes / 2;
                self.conclude(asker.connection.generation, paged(&room, page, most), now);
            }
            Envelope::Answered { ticket, answer } => self.conclude(ticket, answer, now),
            Envelope::Api(request) => {
                self.api.cause = Some(request.cause);
                self.execute(Caller::Port(request.reply), request.route, &request.body, now);
            }
            Envelope::ToRoom { room, frame } => self.home_to_room(&room, &frame),
            Envelope::Bans(bans) => self.take_bans(bans, now),
            Envelope::Ask { task, question } => self.answer_control(task, question, now),
            other => return Some(other),
        }
        None
    }

    fn counted(&mut self, room: &RoomId, ticket: u32, member_count: u32, members: &[Member], now: Now) {
        let kept = self.settings().history.covers(room.as_str());
        let mut body = json!({ "roomId": room.as_str(), "memberCount": member_count });
        match self.api.pending.get(&ticket).map(|pending| pending.kind) {
            Some(Kind::Members) => {
                let entry = |member: &Member| {
                    let mut entry = json!({ "userId": member.user.as_str(), "socketId": &*member.socket });
                    if let Some(name) = &member.name {
                        entry["name"] = json!(&**name);
                    }
                    entry
                };
                body["members"] = members.iter().map(entry).collect();
            }
            _ => body["history"] = json!(kept),
        }
        if self.is_cut_off() {
            body["complete"] = json!(false);
        }
        self.conclude(ticket, Answer::ok(&body), now);
    }

    fn home_to_room(&mut self, room: &RoomId, frame: &Bytes) {
        let Some(home) = self.homes.get(room.as_str()) else { return };
        for shard in home.route.shards() {
            let envelope = Envelope::RoomFrame { room: room.clone(), sender: None, frame: frame.clone() };
            if !self.mesh.offer(shard, envelope) {
                self.mesh.lost(shard, room, None);
                self.cells.mesh_dropped.add(1);
            }
        }
    }

    fn take_bans(&mut self, bans: Arc<Bans>, now: Now) {
        self.api.bans = bans;
        let bans = self.api.bans.clone();
        for (user, ban) in bans.iter().filter(|(_, ban)| now.unix_ms < ban.until_ms) {
            self.disconnect(user, &ban.reason, now);
        }
    }

    /// Closes the connection if its user is banned.
    pub(super) fn close_if_banned(&mut self, id: ConnectionId, now: Now) -> bool {
        if self.api.bans.is_empty() {
            return false;
        }
        let bans = self.api.bans.clone();
        let Some(identity) = self.session_of(id).and_then(|session| session.identity.as_ref()) else {
            return false;
        };
        let Some(ban) = bans.of(identity.user.as_str(), now.unix_ms) else { return false };
        self.close(id.slot, CloseCode::Disconnected, &ban.reason, now);
        true
    }

    fn disconnect(&mut self, user: &UserId, reason: &str, now: Now) -> u64 {
        let slots: Vec<_> = self.users.slots(user.as_str()).collect();
        for slot in &slots {
            self.close(*slot, CloseCode::Disconnected, reason, now);
        }
        slots.len() as u64
    }

    fn answer_control(&mut self, task: u64, question: Question, now: Now) {
        let part = match question {
            Question::Disconnect(user, reason) => Part::Disconnected(self.disconnect(&user, &reason, now)),
            Question::Sessions(user) => Part::Sessions(self.sessions_of(&user, now)),
            Question::Rooms(most) => {
                let slices = self.directory.numbers().map(|number| self.directory.slice(number));
                let mut rooms: Vec<_> = slices
                    .map(|slice| (slice.room.clone(), slice.members.len() as u64, slice.deliveries()))
                    .collect();
                rooms.sort_unstable_by_key(|(_, members, sent)| std::cmp::Reverse((*sent, *members)));
                rooms.truncate(most);
                Part::Rooms(rooms)
            }
        };
        if let Some(control) = &mut self.api.control {
            control.send(ControlMessage::Part { task, part });
        }
    }

    fn sessions_of(&self, user: &UserId, now: Now) -> Vec<SessionFacts> {
        let slots = self.users.slots(user.as_str());
        let sessions = slots.filter_map(|slot| self.sessions[slot as usize].as_ref());
        sessions
            .map(|session| SessionFacts {
                socket: self.socket_id(session.id).to_string(),
                rooms: session.rooms.len(),
                open_ms: now.ms().wrapping_sub(session.since).into(),
            })
            .collect()
    }
}

/// The order that a route and its body make.
fn order(route: Route, body: &[u8], now: Now) -> Result<Order, Answer> {
    let (reason, duration) = api::read_order(body)?;
    let reason = reason.unwrap_or_else(|| "disconnected by an administrator".to_owned());
    Ok(match route {
        Route::Rooms(most) => Order::Rooms(most),
        Route::User(user) => Order::User(user),
        Route::Disconnect(user) => Order::Disconnect(user, reason),
        Route::Ban(user) => {
            let duration =
                duration.ok_or_else(|| Answer::invalid("durationMs is missing: how long the ban holds"))?;
            Order::Ban(user, Ban { until_ms: now.unix_ms.saturating_add(duration), reason })
        }
        Route::Unban(user) => Order::Unban(user),
        Route::Bans => Order::Bans,
        Route::Drain(instance) => Order::Drain(instance),
        _ => Order::Instances,
    })
}

fn read_publication<'a>(
    body: &'a [u8],
    scratch: &'a mut crate::command::decode::Scratch,
) -> Result<(Option<&'a str>, &'a str), Answer> {
    let text = std::str::from_utf8(body).map_err(|_| Answer::invalid("the body is not UTF-8"))?;
    match decode_publication(text, scratch) {
        Ok(publication) => Ok((publication.message_id, publication.data)),
        Err(rejection) => Err(Answer::error("400 Bad Request", rejection.code.as_str(), &rejection.message)),
    }
}

fn stored(outcome: StoreOutcome) -> Answer {
    match outcome {
        StoreOutcome::Stored(offset) => Answer::ok(&json!({ "offset": offset })),
        StoreOutcome::Unavailable => {
            Answer::unavailable("the room's history cannot be reached: nothing was done")
        }
        StoreOutcome::Timeout => Answer::timed_out(),
    }
}

/// The messages are JSON already and go out as they are, as many as fit into `most` bytes; the others are for the
/// next page.
fn paged(room: &RoomId, page: Option<HistoryPage>, most: usize) -> Answer {
    let Some(HistoryPage { position, frames }) = page else {
        return Answer::unavailable("the room's history cannot be read now");
    };
    let mut body = format!(
        "{{\"roomId\":\"{}\",\"epoch\":\"{}\",\"offset\":{},\"messages\":[",
        room.as_str(),
        position.epoch,
        position.offset
    );
    for (place, message) in frames.iter().enumerate() {
        if place > 0 && body.len() + message.len() > most {
            break;
        }
        if place > 0 {
            body.push(',');
        }
        body.push_str(&String::from_utf8_lossy(&frame::payload(message)));
    }
    body.push_str("]}");
    Answer::raw(body)
}
