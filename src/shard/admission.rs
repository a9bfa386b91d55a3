//! Who may come in, and how much each may do: the limits of addresses, users, rooms and connections.

use std::borrow::Cow;
use std::net::IpAddr;

use super::envelope::Envelope;
use super::requests::Refused;
use super::session::Phase;
use super::{Now, Shard};
use crate::accept::address;
use crate::accept::http;
use crate::accept::proxy::{self, Preface};
use crate::accept::request::{Refusal, Request};
use crate::codec::close::CloseCode;
use crate::command::authorize::Identity;
use crate::command::decode::{self, Command};
use crate::command::display_name;
use crate::command::rejection::{ErrorCode, Rejection};
use crate::command::rules::Kind;
use crate::identity::{ConnectionId, SocketId, UserId};
use crate::instance::Phase as InstancePhase;
use crate::metrics::kinds::Limit;
use crate::permission::RoomRight;
use crate::quota::{Place, Rate};
use crate::ring::Key;
use crate::steering::Steering;

/// Messages in a row over a rate, after which the client is closed.
const LIMITED_MESSAGES: u16 = 1000;

/// How the user ids of connections without a token begin; their socket id follows.
pub(super) const GUEST: &str = "guest-";

const UNAVAILABLE: &str = "503 Service Unavailable";

/// The refusal of a request over a rate, with the milliseconds until it may be made again.
pub(super) fn over_the_rate(wait_ms: u64) -> Refused {
    Refused(ErrorCode::RateLimited, "too many messages: slow down", Some(wait_ms))
}

impl Shard {
    // ── connections ───────────────────────────────────────────────────────────────────────

    /// Whether [`Shard::handle_peer`] wants to be told of each accepted socket.
    pub fn wants_peers(&self) -> bool {
        self.instance.quotas.counts_addresses() || self.settings().limits.proxy_protocol
    }

    /// The address at the other end of an accepted socket.
    pub fn handle_peer(&mut self, accepted: Key, peer: IpAddr) {
        let limits = &self.settings.limits;
        let prefaced = limits.proxy_protocol && address::is_trusted(peer, &limits.trusted_proxies);
        if let Some(session) = self.session(accepted.slot).filter(|session| session.phase == Phase::Handshake)
        {
            session.unsettled().peer = Some(peer);
            session.unsettled().prefaced = prefaced;
        }
    }

    /// One more request for `/ws`, which is refused beyond the rate of them. Nothing else counts towards it: a rush of
    /// clients must not make probes fail.
    pub(super) fn bound_accepts(&self, now: Now) -> Result<(), Refusal> {
        if self.instance.quotas.accept(now.since_start_ms).is_ok() {
            return Ok(());
        }
        self.cells.refused_connections.add(1);
        self.cells.reached(Limit::AcceptRate);
        let reason = "too many connections at once: come back later";
        Err(Refusal { status: UNAVAILABLE, reason, header: "Retry-After: 1\r\n" })
    }

    /// Whether a trusted proxy has yet to say for whom it speaks. Its header comes in front of everything else, also of
    /// TLS.
    pub(super) fn is_prefaced(&mut self, slot: u32) -> bool {
        self.settings().limits.proxy_protocol
            && self.session(slot).is_some_and(|session| {
                session.phase == Phase::Handshake
                    && session.unsettled.as_ref().is_some_and(|unsettled| unsettled.prefaced)
            })
    }

    /// Takes bytes of the header of the PROXY protocol; what follows it, if anything does.
    pub(super) fn read_preface(&mut self, slot: u32, bytes: &[u8], now: Now) -> Option<Vec<u8>> {
        let unsettled = self.session(slot)?.unsettled();
        unsettled.early.extend_from_slice(bytes);
        match proxy::parse(&unsettled.early) {
            Preface::Incomplete => None,
            Preface::Complete { client, length } => {
                unsettled.prefaced = false;
                unsettled.peer = client.or(unsettled.peer);
                let mut header = std::mem::take(&mut unsettled.early);
                let rest = header.split_off(length);
                (!rest.is_empty()).then_some(rest)
            }
            Preface::Invalid => {
                let reason = "a trusted proxy begins with a header of the PROXY protocol, version 2";
                self.answer(slot, http::refuse(&Refusal::new("400 Bad Request", reason)), now);
                None
            }
        }
    }

    /// Whether this instance takes new clients, or another one is to; then what they are answered.
    pub(super) fn steer(&self, request: &Request<'_>) -> Result<(), String> {
        let busy = |reason, header| http::refuse(&Refusal { status: UNAVAILABLE, reason, header });
        if self.instance.phase() == InstancePhase::Draining {
            self.cells.steered.add(1);
            let reason = "this instance is draining: another one takes this client";
            return Err(busy(reason, "Retry-After: 1\r\n"));
        }
        let answer = match &**self.instance.steering.load() {
            Steering::Welcome if self.instance.is_full() => {
                self.cells.reached(Limit::Connections);
                return Err(busy("this instance is full", "Retry-After: 5\r\n"));
            }
            Steering::Welcome => return Ok(()),
            Steering::Elsewhere => {
                busy("this instance is overloaded: another one takes this client", "Retry-After: 1\r\n")
            }
            Steering::Redirect(to) => http::redirect(request, to),
        };
        self.cells.steered.add(1);
        Err(answer)
    }

    /// Counts one more connection of the client's address, which is to be given to [`Shard::came_from`] at once.
    pub(super) fn admit_address(&self, slot: u32, request: &Request<'_>) -> Result<Option<Place>, Refusal> {
        let session = self.sessions[slot as usize].as_ref();
        let peer = session.and_then(|session| session.unsettled.as_ref()?.peer);
        let Some(peer) = peer else { return Ok(None) };
        let client = address::client(peer, request, &self.settings().limits.trusted_proxies);
        let Some(place) = self.instance.quotas.place_of(client) else { return Ok(None) };
        if self.instance.quotas.enter(place) {
            return Ok(Some(place));
        }
        self.cells.refused_connections.add(1);
        self.cells.reached(Limit::ConnectionsPerAddress);
        let reason = "this address has as many connections as it may: close one first";
        Err(Refusal { status: "429 Too Many Requests", reason, header: "Retry-After: 30\r\n" })
    }

    /// The connection counts as one of its address until [`Shard::leave_address`].
    pub(super) fn came_from(&mut self, slot: u32, address: Option<Place>) {
        if let Some(session) = self.session(slot) {
            session.address = address;
        }
    }

    pub(super) fn leave_address(&mut self, id: ConnectionId) {
        if let Some(place) = self.session_of(id).and_then(|session| session.address.take()) {
            self.instance.quotas.leave(place);
        }
    }

    /// As the home of the user: whether the connection that was just counted is one too many on this instance alone. It
    /// counts until its shard has closed it. Whether it is one too many over all instances the uplink finds out.
    pub(super) fn refuses_another(&mut self, connection: ConnectionId, user: &UserId) -> bool {
        let most = self.settings().limits.max_connections_per_user;
        let refused = most > 0 && self.user_homes.connections(user.as_str()).len() > most as usize;
        if refused {
            self.mesh.send(connection.shard, Envelope::TooManyConnections { connection });
        }
        refused
    }

    /// How the uplink counts the connection among those that its user has on all instances. Guests need no counting:
    /// each is named after its only connection.
    pub(super) fn counted_session(&self, connection: ConnectionId, user: &UserId) -> Option<SocketId> {
        let socket = self.socket_id(connection);
        let limited = self.settings().limits.max_connections_per_user > 0;
        let is_guest = user.as_str().strip_prefix(GUEST) == Some(socket.text().as_str());
        (limited && !is_guest).then_some(socket)
    }

    /// The users that this shard is home to, with their connections as [`Shard::counted_session`] names them.
    pub(super) fn counted_users(&self) -> Vec<(UserId, Vec<SocketId>)> {
        let counted = |user: &UserId, connections: &[ConnectionId]| {
            connections.iter().filter_map(|connection| self.counted_session(*connection, user)).collect()
        };
        self.user_homes.iter().map(|(user, some)| (user.clone(), counted(user, some))).collect()
    }

    pub(super) fn close_excess(&mut self, connection: ConnectionId, now: Now) {
        if self.session_of(connection).is_some() {
            self.cells.refused_connections.add(1);
            self.cells.reached(Limit::ConnectionsPerUser);
            let code = CloseCode::TooManyConnections;
            self.close(connection.slot, code, "this user has as many connections as it may", now);
        }
    }

    /// The identity with a name that can be shown to others.
    pub(super) fn presentable(&self, mut identity: Identity) -> Identity {
        if self.settings().input.sanitize_names
            && let Some(name) = &identity.name
            && let Cow::Owned(clean) = display_name::sanitized(name)
        {
            identity.name = (!clean.is_empty()).then(|| clean.into());
        }
        identity
    }

    // ── messages ──────────────────────────────────────────────────────────────────────────

    /// Counts a message of `bytes` bytes against the limits of its connection (but for MESSAGE_RATE), user and address.
    ///
    /// # Errors
    /// Milliseconds until one is welcome again.
    pub(super) fn meter_message(&mut self, slot: u32, bytes: usize, now: Now) -> Result<(), u64> {
        let settings = &self.settings;
        let burst = (2 * settings.max_message_bytes).max(settings.limits.byte_rate as usize);
        let rate = Rate::new(settings.limits.byte_rate, burst as u64);
        let Some(session) = self.sessions[slot as usize].as_mut() else { return Ok(()) };
        if let Some(rate) = rate {
            let meter = session.meter.get_or_insert_default();
            meter.bytes = rate
                .take(meter.bytes, bytes as u64, now.since_start_ms)
                .inspect_err(|_| self.cells.reached(Limit::ByteRate))?;
        }
        let user = session.identity.as_ref().map(|identity| identity.user.as_str());
        let (quotas, cells, now_ms) = (&self.instance.quotas, &self.cells, now.since_start_ms);
        quotas.message(user, None, now_ms).inspect_err(|_| cells.reached(Limit::UserMessageRate))?;
        quotas
            .message(None, session.address, now_ms)
            .inspect_err(|_| cells.reached(Limit::AddressMessageRate))
    }

    /// Counts a message to others against the limits of its room and of the cluster. One that goes nowhere, because its
    /// sender may not send it or is still joining, does not count.
    pub(super) fn meter_publication(
        &mut self,
        id: ConnectionId,
        command: &Command<'_>,
        now: Now,
    ) -> Result<(), Refused> {
        if !self.instance.quotas.counts_publications() || !self.would_go_out(id, command) {
            return Ok(());
        }
        let room = match command {
            Command::RoomMessage { room, .. } => Some(*room),
            _ => None,
        };
        let taken = self.instance.quotas.publication(room, now.since_start_ms);
        taken.inspect_err(|_| self.cells.reached(Limit::PublicationRate)).map_err(over_the_rate)
    }

    /// Whether the command is a message to others that its sender may send now.
    fn would_go_out(&mut self, id: ConnectionId, command: &Command<'_>) -> bool {
        match command {
            Command::RoomMessage { room, .. } => {
                matches!(self.place(id, room), Ok(Ok(_))) && self.may(id, RoomRight::Publish, room).is_ok()
            }
            Command::UserMessage { .. } => {
                self.session_of(id).is_some_and(|session| session.identity.is_some())
            }
            Command::GlobalMessage { .. } => self.session_of(id).is_some_and(|session| {
                session.identity.as_ref().is_some_and(|identity| identity.may_broadcast())
            }),
            _ => false,
        }
    }

    /// Counts a join against the connection's limit.
    pub(super) fn meter_join(&mut self, id: ConnectionId, now: Now) -> Result<(), Refused> {
        let (limits, cells) = (&self.settings().limits, self.cells.clone());
        let Some(rate) = Rate::new(limits.join_rate, limits.join_burst.into()) else { return Ok(()) };
        let Some(session) = self.session_of(id) else { return Ok(()) };
        let meter = session.meter.get_or_insert_default();
        meter.joins = rate
            .take(meter.joins, 1, now.since_start_ms)
            .inspect_err(|_| cells.reached(Limit::JoinRate))
            .map_err(|wait| Refused(ErrorCode::RateLimited, "too many joins: slow down", Some(wait)))?;
        Ok(())
    }

    /// Counts what was over a rate; closes whoever goes on and on, and says so.
    pub(super) fn is_hopelessly_over(&mut self, slot: u32, over: bool, now: Now) -> bool {
        let Some(session) = self.session(slot) else { return false };
        session.limited = if over { session.limited + 1 } else { 0 };
        let hopeless = session.limited >= LIMITED_MESSAGES;
        if over {
            self.cells.limited.add(1);
        }
        if hopeless {
            self.close(slot, CloseCode::SentTooMuch, "the rate limit was ignored for long", now);
        }
        hopeless
    }

    /// The refusal of a message to others that breaks one of the operator's rules.
    pub(super) fn broken_rule<'a>(
        &mut self,
        slot: u32,
        request: &decode::Request<'a>,
    ) -> Option<Rejection<'a>> {
        if self.settings().input.rules.is_empty() {
            return None;
        }
        let (kind, room, data) = match &request.command {
            Command::RoomMessage { room, data } => (Kind::RoomMessage, Some(*room), *data),
            Command::UserMessage { data, .. } => (Kind::UserMessage, None, *data),
            Command::GlobalMessage { data } => (Kind::GlobalMessage, None, *data),
            _ => return None,
        };
        let id = self.session(slot)?.id;
        if !self.would_go_out(id, &request.command) {
            return None;
        }
        let broken = self.settings().input.rules.check(kind, room, data).err()?;
        let message = Cow::Owned(broken.reason);
        Some(Rejection { code: broken.code, message, message_id: request.message_id })
    }
}
