//! What shards say to each other and to the uplink, and what the uplink says to shards.

use std::sync::Arc;

use bytes::Bytes;
use crossbeam_channel::Sender;

pub use super::correlation::Cause;
use crate::accept::api::{Answer, Route};
use crate::authorization::Verdict;
use crate::ban::{Ban, Bans};
use crate::command::authorize::TokenVerifier;
use crate::config::Settings;
use crate::identity::{ConnectionId, InstanceId, RoomId, ShardId, SocketId, UserId};
use crate::room::history::{NotRecovered, Position};
pub use crate::room::presence::Member;
use crate::room::route::RoomRoute;
use crate::trace::OpenSpan;

/// A request that waits for its answer: which connection asked, and by what `messageId`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Asker {
    /// The connection that gets the reply.
    pub connection: ConnectionId,
    /// The `messageId` that the reply carries.
    pub message_id: Option<Box<str>>,
}

/// What a running server takes over when its settings are read again.
pub struct Reloaded {
    /// The settings that hold from now on.
    pub settings: Arc<Settings>,
    /// What tokens are verified with.
    pub verifier: Option<Arc<TokenVerifier>>,
}

/// Shows neither settings nor keys, which are secrets in part.
impl std::fmt::Debug for Reloaded {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Reloaded")
    }
}

/// To a shard: from another shard, from itself (through the same code), or from the uplink.
#[derive(Debug)]
pub enum Envelope {
    // ── to the shard that is home to the room ─────────────────────────────────────────────
    /// A connection wants to be in the room.
    Join(Box<Join>),
    /// A connection is no longer in the room.
    Leave {
        /// The room.
        room: RoomId,
        /// The connection that left or died.
        connection: ConnectionId,
        /// Its user.
        user: UserId,
    },
    /// A connection asks who is in the room.
    ListMembers {
        /// The room.
        room: RoomId,
        /// Who gets the list.
        asker: Asker,
    },

    /// A message for a room with history; only when there is no cluster, in which the uplink stores.
    Store(Box<Store>),
    /// A connection asks for a room's past.
    ReadHistory(Box<ReadHistory>),

    // ── to the shard that owns the connection ─────────────────────────────────────────────
    /// The connection is in the room from now on; every later message of the same queue reaches it.
    Joined(Box<Joined>),
    /// What the application says about a join.
    Authorized {
        /// The room.
        room: RoomId,
        /// Who wants to join.
        connection: ConnectionId,
        /// Whether it may.
        verdict: Verdict,
    },
    /// The answer to `ListMembers`.
    Members {
        /// The room.
        room: RoomId,
        /// Who asked.
        asker: Asker,
        /// How many users are in the room, in the whole cluster.
        member_count: u32,
        /// All of them.
        members: Vec<Member>,
    },
    /// The answer to a [`Store`].
    Stored {
        /// The room.
        room: RoomId,
        /// Who sent the message.
        asker: Asker,
        /// What became of it.
        outcome: StoreOutcome,
    },
    /// The answer to [`ReadHistory`].
    History {
        /// The room.
        room: RoomId,
        /// Who asked.
        asker: Asker,
        /// The part that was asked for; nothing when it cannot be read now.
        page: Option<HistoryPage>,
    },
    /// The connection's user can be reached from everywhere from now on.
    Attached {
        /// The connection.
        connection: ConnectionId,
    },

    /// The connection's user has as many others as may be: it is to be closed.
    TooManyConnections {
        /// The connection.
        connection: ConnectionId,
    },

    // ── to every shard with members of the room ───────────────────────────────────────────
    /// A room message, encoded once as a complete unmasked WebSocket frame.
    RoomFrame {
        /// The room.
        room: RoomId,
        /// The connection that sent it, which gets it only if it joined with `echo`. Nothing for messages that
        /// the shard of their sender has dealt with already, or that no connection of this instance has sent.
        sender: Option<ConnectionId>,
        /// The frame.
        frame: Bytes,
    },
    /// A user came into the room or left it.
    Presence(Box<Presence>),
    /// Members may have missed messages that cannot be replayed.
    RoomResync {
        /// The room, or every room of the shard.
        room: Option<RoomId>,
        /// Why, as the client is told.
        reason: &'static str,
        /// Where the room's history goes on from, if the room has one and that is known.
        position: Option<Position>,
    },

    // ── to the shard that is home to the user ─────────────────────────────────────────────
    /// A connection of the user has come up.
    Attach {
        /// The connection.
        connection: ConnectionId,
        /// Its user.
        user: UserId,
    },
    /// A connection of the user has gone.
    Detach {
        /// The connection.
        connection: ConnectionId,
        /// Its user.
        user: UserId,
    },
    /// A frame for all connections of the user: the home shard passes it to the shards that have some.
    ToUser {
        /// The user.
        user: UserId,
        /// The frame.
        frame: Bytes,
    },

    // ── to the shards that have connections of the user, or to every shard ────────────────
    /// A frame for all connections of the user on this shard.
    UserFrame {
        /// The user.
        user: UserId,
        /// The frame.
        frame: Bytes,
    },
    /// A frame for every authenticated connection of the shard.
    GlobalFrame {
        /// The frame.
        frame: Bytes,
    },
    /// The state of the link to the other instances changed.
    Link(LinkState),

    // ── administration ────────────────────────────────────────────────────────────────────
    /// To the room's home: a frame of a room without history that no member has sent, for all its members here.
    ToRoom {
        /// The room.
        room: RoomId,
        /// The frame.
        frame: Bytes,
    },
    /// Who is banned from now on; those who are connected are closed.
    Bans(Arc<Bans>),
    /// Settings and keys were read again.
    Reloaded(Arc<Reloaded>),
    /// The control thread asks, or has something done; answered with [`ControlMessage::Part`].
    Ask {
        /// Its number for it.
        task: u64,
        /// What it asks.
        question: Question,
    },
    /// The control thread's answer to a request of this shard.
    Answered {
        /// The request.
        ticket: u32,
        /// The answer.
        answer: Answer,
    },
    /// A request to `/api/` that came in on the separate port and was found to be permitted.
    Api(Box<PortRequest>),
}

/// A request of the separate port.
#[derive(Debug)]
pub struct PortRequest {
    /// What it asks for.
    pub route: Route,
    /// Its body.
    pub body: Vec<u8>,
    /// The request itself, for what it causes.
    pub cause: Cause,
    /// Where the answer goes.
    pub reply: Sender<Answer>,
}

/// What the control thread asks of every shard.
#[derive(Clone, Debug)]
pub enum Question {
    /// The user's connections.
    Sessions(UserId),
    /// Close the user's connections with 4503 and this reason.
    Disconnect(UserId, String),
    /// The busiest rooms, at most so many.
    Rooms(usize),
}

/// One shard's part of the answer to a [`Question`].
#[derive(Debug)]
pub enum Part {
    /// The user's connections.
    Sessions(Vec<SessionFacts>),
    /// How many were closed.
    Disconnected(u64),
    /// Rooms, each with its connections and the messages that they were sent, on this shard.
    Rooms(Vec<(RoomId, u64, u64)>),
}

/// One connection of a user.
#[derive(Debug)]
pub struct SessionFacts {
    /// Its `socketId`.
    pub socket: String,
    /// Rooms that it is in.
    pub rooms: usize,
    /// Milliseconds for which it has been open.
    pub open_ms: u64,
}

/// To the control thread.
#[derive(Debug)]
pub enum ControlMessage {
    /// An administrator's request.
    Order {
        /// What is wanted.
        order: Order,
        /// Who waits for the answer.
        reply: ReplyTo,
    },
    /// A shard's part of the answer to [`Envelope::Ask`].
    Part {
        /// The question's number.
        task: u64,
        /// The part.
        part: Part,
    },
    /// A request of the separate port: for a shard that is awake.
    Api(Box<PortRequest>),
}

/// Who waits for the answer to an [`Order`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ReplyTo {
    /// The shard.
    pub shard: ShardId,
    /// The shard's number for the request.
    pub ticket: u32,
}

/// What an administrator wants of the whole cluster.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Order {
    /// The instances.
    Instances,
    /// The busiest rooms, at most so many.
    Rooms(usize),
    /// A user's connections.
    User(UserId),
    /// Close a user's connections.
    Disconnect(UserId, String),
    /// Keep a user out.
    Ban(UserId, Ban),
    /// Let a user in again.
    Unban(UserId),
    /// Who is banned.
    Bans,
    /// Send an instance's clients away and stop it.
    Drain(InstanceId),
}

impl Order {
    /// Its name in administrative commands.
    pub fn name(&self) -> &'static str {
        match self {
            Self::Instances => "instances",
            Self::Rooms(_) => "rooms",
            Self::User(_) => "user",
            Self::Disconnect(..) => "disconnect",
            Self::Ban(..) => "ban",
            Self::Unban(_) => "unban",
            Self::Bans => "bans",
            Self::Drain(_) => "drain",
        }
    }

    /// Whether it does more than ask.
    pub fn changes_something(&self) -> bool {
        matches!(self, Self::Disconnect(..) | Self::Ban(..) | Self::Unban(_) | Self::Drain(_))
    }
}

/// A connection's wish to be in a room.
#[derive(Debug)]
pub struct Join {
    /// The room.
    pub room: RoomId,
    /// Who asks.
    pub asker: Asker,
    /// Who comes.
    pub member: Member,
    /// Whether the reply lists the members.
    pub want_members: bool,
    /// Where the client stopped reading the room, if it wants what it has missed since.
    pub since: Option<Position>,
    /// Whether the same request was sent before and got no answer in time.
    pub again: bool,
}

/// A granted [`Join`].
#[derive(Debug)]
pub struct Joined {
    /// The room.
    pub room: RoomId,
    /// Who asked.
    pub asker: Asker,
    /// The shards that have members: where this one's messages go.
    pub route: Arc<RoomRoute>,
    /// How many users are in the room, in the whole cluster, this one included.
    pub member_count: u32,
    /// All of them, if the request wanted that.
    pub members: Option<Vec<Member>>,
    /// Where the room's history stands, if it has one that can be reached: the next message that the connection
    /// gets is the one after.
    pub history: Option<Position>,
    /// The frames of what was missed since [`Join::since`], oldest first, up to `history`; or why not. Of no
    /// meaning without `since`.
    pub recovery: Result<Vec<Bytes>, NotRecovered>,
}

/// A message for a room with history: nobody hears of it before it is stored.
#[derive(Debug)]
pub struct Store {
    /// The room.
    pub room: RoomId,
    /// Who gets the ack. With its `messageId` and `user` repetitions are told from new messages.
    pub asker: Asker,
    /// Whose message it is.
    pub user: UserId,
    /// The connection that does not get it unless it joined with `echo`.
    pub sender: Option<ConnectionId>,
    /// The `room_message` as JSON, without `offset`.
    pub event: Bytes,
    /// Where the message is followed: its span, and the correlation id that it came with.
    pub trace: Option<Box<(Box<OpenSpan>, Box<str>)>>,
}

/// What became of a [`Store`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum StoreOutcome {
    /// The message has this offset; for a repetition it is the first one's.
    Stored(u64),
    /// Nothing was done.
    Unavailable,
    /// Whether it was stored is not known.
    Timeout,
}

/// A request for a room's past.
#[derive(Debug)]
pub struct ReadHistory {
    /// The room.
    pub room: RoomId,
    /// Who gets the page.
    pub asker: Asker,
    /// Messages after this one only (in reverse: before it).
    pub since: Option<Position>,
    /// Messages at most.
    pub limit: usize,
    /// Whether the newest comes first.
    pub reverse: bool,
}

/// A part of a room's past.
#[derive(Debug)]
pub struct HistoryPage {
    /// Where the room stands.
    pub position: Position,
    /// The frames of the messages, in the order asked for. Empty when `since` is of another epoch.
    pub frames: Vec<Bytes>,
}

/// A user came into a room (its first connection) or left it (its last one).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Presence {
    /// The room.
    pub room: RoomId,
    /// Came (true) or left.
    pub joined: bool,
    /// Who.
    pub member: Member,
    /// How many users are in the room now, in the whole cluster.
    pub member_count: u32,
}

/// The link to the other instances, as shards see it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LinkState {
    /// No Redis: joins are granted from what this instance knows, publications stay here.
    Down,
    /// Redis answers: every home shard now sends [`UplinkCommand::Restore`] for each room and each
    /// user it is home to, then [`UplinkCommand::Restored`]. New joins go to the uplink from now on.
    Restoring,
    /// Everything is subscribed and registered again. Also the state after a first connection.
    Up,
}

/// A connection that counts among those of its user.
#[derive(Clone, Copy, Debug)]
pub struct Counted {
    /// The connection.
    pub socket: SocketId,
    /// How many the user may have at the moment, on all instances together.
    pub most: u32,
}

/// To the uplink's ingress thread, from the shard that is home to the room or the user. Commands of
/// one shard are carried out in the order sent.
#[derive(Debug)]
pub enum UplinkCommand {
    /// A connection joins. `enters` is false when the user was already in the room on this instance:
    /// then nothing changes in Redis, and only the count (and the list) is wanted. The answer is
    /// [`Envelope::Joined`], sent to the shard of `join.asker`, never before the subscription to the
    /// room's channel is active.
    Join {
        /// The request.
        join: Box<Join>,
        /// Whether this is the user's first connection in the room on this instance.
        enters: bool,
        /// Where the room's messages go from now on.
        route: Arc<RoomRoute>,
    },
    /// The user's last connection on this instance has left the room.
    Leave {
        /// The room.
        room: RoomId,
        /// Who left.
        member: Member,
        /// Whether the instance has no member of the room any more: it unsubscribes.
        last: bool,
    },
    /// A connection asks for a room's past: answered with [`Envelope::History`].
    ReadHistory(Box<ReadHistory>),
    /// A connection asks who is in the room, in the whole cluster: answered with [`Envelope::Members`].
    ListMembers {
        /// The room.
        room: RoomId,
        /// Who gets the list.
        asker: Asker,
    },
    /// A connection of the user: once the user's channel is subscribed, send [`Envelope::Attached`] to
    /// the connection's shard. Also for a user who has others here, whose subscription may be under way.
    Attach {
        /// The user.
        user: UserId,
        /// Who waits for it.
        connection: ConnectionId,
        /// How it is counted, if the connections of the user are limited: one too many over all instances is answered
        /// with [`Envelope::TooManyConnections`].
        counted: Option<Counted>,
    },
    /// A connection of the user has gone.
    Detach {
        /// The user.
        user: UserId,
        /// Its name, if it was counted.
        counted: Option<SocketId>,
        /// Whether it was the last one on this instance: unsubscribe.
        last: bool,
    },
    /// Answer to [`LinkState::Restoring`]: a room with members, to be subscribed and registered.
    Restore {
        /// The room.
        room: RoomId,
        /// Where its messages go.
        route: Arc<RoomRoute>,
        /// This instance's users in the room that the uplink has registered before.
        members: Vec<Member>,
        /// Those that came while the link was down: the other instances have not heard of them.
        newcomers: Vec<Member>,
        /// Whether members were told meanwhile who is in the room, as far as this instance knew.
        told: bool,
    },
    /// Answer to [`LinkState::Restoring`]: users with connections, to be subscribed.
    RestoreUsers {
        /// The users, and their connections that are counted.
        users: Vec<(UserId, Vec<SocketId>)>,
    },
    /// Answer to [`LinkState::Restoring`]: rooms in which this shard has published while the link was down. The other
    /// instances' members are told to resync.
    PublishedAlone {
        /// The rooms.
        rooms: Vec<RoomId>,
    },
    /// The shard has sent everything for [`LinkState::Restoring`].
    Restored {
        /// The shard.
        shard: ShardId,
    },
}

/// To the uplink's publisher thread.
#[derive(Debug)]
pub enum Publication {
    /// One event for the other instances.
    Event {
        /// Who gets it.
        target: Target,
        /// The event's JSON text as clients receive it, without a WebSocket header.
        event: Bytes,
    },
    /// The same, followed.
    Traced(Box<TracedEvent>),
    /// A message to be stored, numbered and published in one step; answered with [`Envelope::Stored`]. All
    /// instances get it from Redis in the order of its offsets, this one too.
    Store(Box<Store>),
}

/// One event for the other instances that is followed on its way.
#[derive(Debug)]
pub struct TracedEvent {
    /// Its span, which ends when it is published.
    pub span: Box<OpenSpan>,
    /// The correlation id of the request that it came with.
    pub request: Box<str>,
    /// Who gets it.
    pub target: Target,
    /// The event's JSON text.
    pub event: Bytes,
}

/// Who gets a publication.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Target {
    /// Every member of the room.
    Room(RoomId),
    /// Every connection of the user.
    User(UserId),
    /// Every authenticated connection.
    Global,
}
