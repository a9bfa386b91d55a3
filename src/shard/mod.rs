//! One core owns its connections and its slice of every room.
//!
//! [`Shard`] is sans-IO: it takes what happened (`handle_*`) and the time, and leaves what is to be
//! done in its outboxes, its mesh and its list of [`Action`]s. The driver joins it to a ring.

mod admission;
pub mod api;
mod authorization;
mod connection;
pub mod correlation;
mod drain;
pub mod driver;
pub mod envelope;
mod expiry;
pub mod history;
pub mod home;
pub mod mesh;
pub mod outlet;
pub mod overload;
mod requests;
mod resume;
mod secure;
mod session;
mod step;
mod sweep;

use std::collections::VecDeque;
use std::sync::Arc;

use bytes::Bytes;
use crossbeam_channel::Sender;
use hashbrown::HashSet;

use self::api::Api;
use self::correlation::Correlations;
use self::drain::Drain;
use self::envelope::{ControlMessage, LinkState, Publication, Reloaded, Target, UplinkCommand};
use self::expiry::Expiries;
use self::mesh::Mesh;
use self::outlet::Outlet;
use self::secure::TlsStreams;
use self::session::{Phase, Session};
use self::sweep::Asked;
use crate::authorization::Question;
use crate::codec::deflate::{Deflater, Inflater};
use crate::codec::frame;
use crate::command::authorize::TokenVerifier;
use crate::command::decode::Scratch;
use crate::config::Settings;
use crate::hashing::Hashing;
use crate::identity::{ConnectionId, RoomId, ShardId, SocketId};
use crate::instance::Instance;
use crate::limits;
use crate::metrics::ShardCells;
use crate::ring::Key;
use crate::room::archive::Archive;
use crate::room::directory::Directory;
use crate::room::presence::Homes;
use crate::room::traffic::Traffic;
use crate::room::users::{ShardUsers, UserHomes};
use crate::send::outbox::Outboxes;
use crate::trace::OpenSpan;

/// The time at which something happens.
#[derive(Clone, Copy, Debug)]
pub struct Now {
    /// Milliseconds since the process started; never goes back.
    pub since_start_ms: u64,
    /// Milliseconds since 1970, as told to clients.
    pub unix_ms: u64,
}

impl Now {
    /// The monotonic time as connections keep it: it wraps after 49 days, and only differences count.
    fn ms(self) -> u32 {
        self.since_start_ms as u32
    }
}

/// What the driver is to do with a socket.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Action {
    /// Start to receive.
    Receive(Key),
    /// Receive nothing more, and leave what comes in the socket.
    StopReceiving(Key),
    /// Acknowledge what has come: the peer may send the rest of its request only then (RFC 1122, section 4.2.3.4).
    Acknowledge(Key),
    /// Send nothing after what has been sent.
    FinishSending(Key),
    /// Close the socket.
    Close(Key),
}

/// The way to the uplink's threads.
#[derive(Debug)]
pub struct UplinkPort {
    /// To the ingress thread.
    pub commands: Outlet<UplinkCommand>,
    /// To the publisher thread.
    pub publications: Sender<Publication>,
    /// The link as this shard was last told.
    pub state: LinkState,
    /// Rooms in which this shard has published since the link was lost: at most [`limits::ROOMS_ALONE`].
    pub published_alone: HashSet<RoomId, Hashing>,
    /// Whether the link has been up or is known to be down. Until then no client is accepted: it could
    /// neither be promised that a room's messages reach it nor told that they may not.
    pub settled: bool,
}

impl UplinkPort {
    /// Remembers that members of this room on other instances miss a message, to be told later. False when no more
    /// rooms can be remembered: the message must not be delivered then, or they would never know.
    fn note_published_alone(&mut self, room: &RoomId) -> bool {
        if self.published_alone.contains(room) {
            return true;
        }
        self.published_alone.len() < limits::ROOMS_ALONE && self.published_alone.insert(room.clone())
    }

    /// Hands a room's message to the publisher or, while the link is down, remembers that others miss it. False when
    /// neither is possible now: then it must not be delivered here either.
    fn publish(&mut self, room: &RoomId, frame: &Bytes, span: Option<Box<OpenSpan>>) -> bool {
        if self.state == LinkState::Down {
            return self.note_published_alone(room);
        }
        let publication = correlation::publication(span, Target::Room(room.clone()), frame::payload(frame));
        self.publications.try_send(publication).is_ok()
    }
}

/// Everything that one core owns.
pub struct Shard {
    id: ShardId,
    instance: Arc<Instance>,
    /// The settings that hold now.
    settings: Arc<Settings>,
    cells: Arc<ShardCells>,
    verifier: Option<Arc<TokenVerifier>>,
    sessions: Vec<Option<Session>>,
    outboxes: Outboxes,
    tls: TlsStreams,
    directory: Directory,
    homes: Homes,
    archive: Archive,
    users: ShardUsers,
    user_homes: UserHomes,
    mesh: Mesh,
    uplink: Option<UplinkPort>,
    /// The way to the application that says who may join what.
    authorizer: Option<Sender<Question>>,
    scratch: Scratch,
    /// For all connections that agreed on compression: no context is taken over between messages.
    deflater: Deflater,
    inflater: Inflater,
    actions: Vec<Action>,
    /// Connections that have sent something of a request in this turn; some may have gone or sent all of it.
    requesting: Vec<Key>,
    asked: Vec<Asked>,
    /// Accepted, in that order; those that have sent their head meanwhile may still be among them.
    handshakes: VecDeque<ConnectionId>,
    sweep_from: usize,
    /// Connections whose tokens run out before the sweep sees them again.
    expiries: Expiries,
    drain: Option<Drain>,
    /// Whether messages to others are refused now, because there are too many.
    sheds: bool,
    api: Api,
    correlations: Correlations,
    traffic: Traffic,
    /// When a refused message may be logged again, in ms since the process started.
    log_refusal_at: u64,
}

impl Shard {
    /// A shard without connections.
    pub fn new(
        id: ShardId,
        instance: Arc<Instance>,
        verifier: Option<Arc<TokenVerifier>>,
        mesh: Mesh,
        uplink: Option<UplinkPort>,
    ) -> Self {
        let archive = Archive::new(
            instance.settings.history.bounds(),
            instance.settings.history.memory / instance.settings.shards,
            (u64::from(instance.boot) << 32) ^ (u64::from(id.0) << 24),
        );
        let homes = Homes::new(instance.boot);
        Self {
            id,
            archive,
            cells: instance.shards[id.index()].clone(),
            deflater: Deflater::new(instance.settings.compression_threshold),
            outboxes: Outboxes::new(instance.settings.outbox_bytes),
            tls: TlsStreams::default(),
            settings: instance.live(),
            instance,
            verifier,
            sessions: Vec::new(),
            directory: Directory::default(),
            homes,
            users: ShardUsers::default(),
            user_homes: UserHomes::default(),
            mesh,
            uplink,
            authorizer: None,
            scratch: Scratch::default(),
            inflater: Inflater::default(),
            actions: Vec::new(),
            requesting: Vec::new(),
            asked: Vec::new(),
            handshakes: VecDeque::new(),
            sweep_from: 0,
            expiries: Expiries::default(),
            drain: None,
            sheds: false,
            api: Api::default(),
            correlations: Correlations::default(),
            traffic: Traffic::default(),
            log_refusal_at: 0,
        }
    }

    /// The same shard, which asks the application through `authorizer` who may join what.
    #[must_use]
    pub fn asking(mut self, authorizer: Option<Sender<Question>>) -> Self {
        self.authorizer = authorizer;
        self
    }

    /// The same shard with a way to the control thread.
    #[must_use]
    pub fn administrated(mut self, control: Outlet<ControlMessage>) -> Self {
        self.api = Api::new(control);
        self
    }

    /// Its number.
    pub fn id(&self) -> ShardId {
        self.id
    }

    /// Settings and keys were read again.
    fn adopt(&mut self, reloaded: &Reloaded) {
        self.settings = reloaded.settings.clone();
        self.verifier = reloaded.verifier.clone();
        self.deflater.adopt(self.settings.compression_threshold);
        self.outboxes.adopt(self.settings.outbox_bytes);
    }

    fn settings(&self) -> &Settings {
        &self.settings
    }

    /// The session in `slot`, unless its socket is gone.
    fn session(&mut self, slot: u32) -> Option<&mut Session> {
        let session = self.sessions.get_mut(slot as usize)?.as_mut()?;
        (session.phase != Phase::Gone).then_some(session)
    }

    /// The session of a connection that may have gone meanwhile.
    fn session_of(&mut self, connection: ConnectionId) -> Option<&mut Session> {
        self.session(connection.slot).filter(|session| session.id == connection)
    }

    fn socket_id(&self, connection: ConnectionId) -> SocketId {
        SocketId { boot: self.instance.boot, connection }
    }

    /// Whether other instances can be reached, or are about to be.
    fn is_linked(&self) -> bool {
        self.uplink.as_ref().is_some_and(|uplink| uplink.state != LinkState::Down)
    }

    /// Whether clients may be accepted.
    pub fn is_settled(&self) -> bool {
        self.uplink.as_ref().is_none_or(|uplink| uplink.settled)
    }

    /// From now on messages to others are refused, or are not: see [`overload::Overload`].
    pub fn shed(&mut self, sheds: bool) {
        self.sheds = sheds;
    }

    /// What waits to be sent.
    pub fn outboxes(&mut self) -> &mut Outboxes {
        &mut self.outboxes
    }

    /// Takes the list of what is to be done with sockets.
    pub fn take_actions(&mut self) -> Vec<Action> {
        std::mem::take(&mut self.actions)
    }

    /// Ends a turn: slow readers are dealt with, other threads get what is for them.
    pub fn finish_turn(&mut self, now: Now) {
        self.close_overflowed(now);
        self.step_local(now);
        self.acknowledge_parts();
        self.mesh.flush();
        if let Some(uplink) = &mut self.uplink {
            uplink.commands.flush();
        }
        self.api.flush();
    }

    /// Whether no connection is left.
    pub fn is_empty(&self) -> bool {
        self.sessions.iter().all(Option::is_none)
    }
}

fn key(connection: ConnectionId) -> Key {
    Key { slot: connection.slot, generation: connection.generation }
}
