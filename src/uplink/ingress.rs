//! What comes from Redis and what shards ask of it: subscriptions, presence, and the link's state.
//!
//! Everything runs over one connection, so everything has one order: a join's SUBSCRIBE goes out in
//! front of its script call, and the reply to the call is followed by every later message of the room.

use std::sync::Arc;
use std::time::{Duration, Instant};

use hashbrown::HashSet;
use redis::{ServerError, Value};

use super::batch::Origin;
use super::channel::{Channel, Channels};
use super::delivery::Delivery;
use super::history::{self, HistoryCaller};
use super::lane::{Gate, Lanes};
use super::link::{BACKOFF_LONGEST, Event, Link, LinkError, words};
use super::presence::{self, Call, Caller, KEY_TTL, Registered};
use super::registry::Registry;
use super::script_queue::{Outgoing, ScriptQueue};
use super::sessions::{self, SessionCaller};
use crate::config::RedisSettings;
use crate::hashing::Hashing;
use crate::identity::{ConnectionId, InstanceId, RoomId};
use crate::limits;
use crate::metrics::UplinkCells;
use crate::room::history::NotRecovered;
use crate::shard::envelope::{Asker, Envelope, Join, Joined, LinkState, Member, ReadHistory, UplinkCommand};

mod attaching;
mod listening;
mod membership;
mod reading;

/// Commands without an answer, above which no more are taken from the shards: their queue bounds the rest.
const AWAITED: usize = 10_000;

/// Rooms to be told of what they missed: those of several shards, or losses in a row.
const PUBLISHED_ALONE: usize = 8 * limits::ROOMS_ALONE;

/// Renewals within the life of a key: two may be late or lost.
const RENEWALS_PER_TTL: u32 = 4;

/// Between two rounds in which rooms are looked at that may have gone quiet.
const CHECK_EVERY: Duration = Duration::from_secs(1);

/// What a command on the ingress connection was.
#[derive(Debug)]
pub enum Expect {
    /// A subscription, and who waits for it.
    Subscribe(Option<ConnectionId>),
    /// Something whose answer says nothing.
    Nothing,
    /// A call of the presence script.
    Script(Call),
    /// A call of the history script.
    History(history::Call),
    /// A PING in front of a page.
    Page(Box<ReadHistory>),
    /// A call of the script that counts the connections of users.
    Sessions(sessions::Call),
}

/// The publisher's connection, as the ingress needs to know it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PublisherLink {
    /// How often it was lost.
    pub losses: u64,
    /// Whether it is up, looked at after `losses`: a loss in between is then seen as one.
    pub up: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Stage {
    /// No connection, or its handshake is not done.
    Down,
    /// The instance's registration is under way.
    Registering,
    /// Registered; the publisher's connection is not up yet.
    Alone,
    /// The shards send what they have; a bit for each that has finished.
    Restoring { restored: u64 },
    /// All shards have finished; rooms that nobody has any more are being removed.
    Sweeping,
    /// Everything works.
    Up,
    /// The instance is taking itself out of Redis.
    Leaving,
    /// Nothing of the instance is left in Redis, or it cannot be reached.
    Left,
}

/// When the periodic calls are due.
#[derive(Debug)]
struct Timers {
    register: Instant,
    reap: Instant,
    renew: Instant,
    check: Instant,
}

/// The ingress thread's logic.
pub struct Ingress {
    link: Link<Expect>,
    channels: Channels,
    caller: Caller,
    scripts: ScriptQueue<Call>,
    sessions: SessionCaller,
    session_scripts: ScriptQueue<sessions::Call>,
    history: HistoryCaller,
    history_scripts: ScriptQueue<history::Call>,
    delivery: Delivery,
    registry: Registry,
    lanes: Lanes,
    this: InstanceId,
    origin: Origin,
    stage: Stage,
    timers: Timers,
    heartbeat: Duration,
    /// Silence after which others take this instance for gone.
    silence: Duration,
    reap_every: Duration,
    /// When this process last asked to be registered with success; nothing before the first time.
    registered: Option<Instant>,
    /// Whether others still hold those members as present that this instance has announced.
    held: bool,
    /// Whether members may have missed something since the link was last up.
    missed: bool,
    /// What the shards were told last.
    told: LinkState,
    publisher_losses: u64,
    /// Rooms in which this instance has published unheard, until the others have been told.
    published_alone: HashSet<RoomId, Hashing>,
    cells: Arc<UplinkCells>,
}

impl Ingress {
    /// An ingress without a connection. `reached` says whether this process has already registered; by `gate` the
    /// publisher is told when it may use the instance's lane.
    pub fn new(
        settings: &RedisSettings,
        (instance, origin): (&InstanceId, Origin),
        link: Link<Expect>,
        mut delivery: Delivery,
        reached: bool,
        (gate, cells): (Gate, Arc<UplinkCells>),
        now: Instant,
    ) -> Self {
        let (prefix, silence) = (&settings.prefix, settings.silence());
        let lanes = Lanes::new((instance, origin), settings.lane_peers, silence, gate);
        let history = HistoryCaller::new(prefix, origin, delivery.following().rules().clone());
        let mut ingress = Self {
            link,
            history,
            history_scripts: ScriptQueue::default(),
            channels: Channels::new(prefix),
            caller: Caller::new(prefix, instance, origin, settings.heartbeat_interval, silence),
            scripts: ScriptQueue::default(),
            sessions: SessionCaller::new(prefix, (instance, origin), settings.counts_connections),
            session_scripts: ScriptQueue::default(),
            delivery,
            registry: Registry::new(instance, silence),
            lanes,
            this: instance.clone(),
            origin,
            stage: Stage::Down,
            timers: Timers { register: now, reap: now, renew: now, check: now },
            heartbeat: settings.heartbeat_interval,
            silence,
            reap_every: settings.look_interval(),
            registered: reached.then_some(now),
            held: false,
            missed: !reached,
            told: LinkState::Restoring,
            publisher_losses: 0,
            published_alone: HashSet::default(),
            cells,
        };
        ingress.cells.instances.set(1);
        if !reached {
            ingress.tell(LinkState::Down);
        }
        ingress
    }

    /// The connection, for the driver to read and write.
    pub fn link(&mut self) -> &mut Link<Expect> {
        &mut self.link
    }

    /// Whether commands may be taken from the shards now.
    pub fn takes_commands(&self) -> bool {
        let scripts = self.scripts.waiting() + self.session_scripts.waiting();
        self.link.awaited() + scripts + self.history_scripts.waiting() < AWAITED
    }

    /// When [`Ingress::tick`] is due next.
    pub fn deadline(&self) -> Instant {
        let deadline = self.link.deadline();
        if self.is_unregistered() {
            return deadline;
        }
        let deadline = deadline.min(self.timers.register).min(self.timers.reap).min(self.timers.renew);
        if self.delivery.is_following() { deadline.min(self.timers.check) } else { deadline }
    }

    /// Whether the instance is not in Redis, as far as it knows, or is just going.
    fn is_unregistered(&self) -> bool {
        matches!(self.stage, Stage::Down | Stage::Registering | Stage::Leaving | Stage::Left)
    }

    /// Moves what waits into the shards' queues. True when something still waits.
    pub fn flush(&mut self) -> bool {
        self.delivery.flush()
    }

    /// Begins to take the instance out of Redis.
    pub fn leave(&mut self, now: Instant) {
        if self.stage == Stage::Left || self.stage == Stage::Leaving {
            return;
        }
        self.stage = if self.link.is_connected() { Stage::Leaving } else { Stage::Left };
        self.cells.link_up.set(0);
        if self.link.is_up() {
            self.call(Call::Unregister, now);
        }
    }

    /// Whether there is nothing more to do after [`Ingress::leave`].
    pub fn has_left(&self) -> bool {
        self.stage == Stage::Left
    }

    /// The connection is gone, or could not be made: the shards go on without it.
    pub fn lost(&mut self, error: &LinkError, now: Instant) {
        let unanswered = self.link.lost(now);
        self.scripts.clear();
        self.session_scripts.clear();
        self.history_lost(unanswered);
        self.delivery.remove_all();
        self.lanes.lost();
        self.cells.link_up.set(0);
        if error.is_lasting_refusal() {
            self.cells.link_refused.set(1);
        }
        if matches!(self.stage, Stage::Leaving | Stage::Left) {
            self.stage = Stage::Left;
            return;
        }
        if self.told != LinkState::Down {
            self.cells.link_losses.add(1);
            tracing::warn!(%error, "the link to Redis is lost");
        } else if matches!(error, LinkError::Refused { .. } | LinkError::Other(_)) {
            tracing::warn!(%error, "Redis is there, but the link cannot be used");
        } else {
            tracing::debug!(%error, "Redis still cannot be reached");
        }
        self.stage = Stage::Down;
        self.missed = true;
        self.tell(LinkState::Down);
    }

    fn tell(&mut self, state: LinkState) {
        if state == LinkState::Restoring || state != self.told {
            self.told = state;
            self.delivery.link(state);
        }
    }

    /// Does what is due: PING, heartbeats, reaping, renewal, and the next stage once both links are up.
    ///
    /// # Errors
    /// When the connection is of no more use: the driver closes it and calls [`Ingress::lost`].
    pub fn tick(&mut self, publisher: PublisherLink, now: Instant) -> Result<(), LinkError> {
        self.link.tick(now)?;
        match self.stage {
            Stage::Alone if publisher.up => {
                self.publisher_losses = publisher.losses;
                self.begin_restoring(now);
            }
            Stage::Restoring { .. } | Stage::Sweeping | Stage::Up
                if publisher.losses != self.publisher_losses =>
            {
                return Err(LinkError::OtherConnection);
            }
            _ => {}
        }
        self.registry.forget_silent(now);
        self.registry.tell(&self.cells);
        if self.is_unregistered() {
            return Ok(());
        }
        if self.timers.register <= now {
            self.timers.register = now + self.heartbeat;
            self.register(now);
        }
        if self.timers.reap <= now {
            self.timers.reap = now + self.reap_every;
            self.call(Call::Reap, now);
        }
        if self.timers.renew <= now {
            self.timers.renew = now + KEY_TTL / RENEWALS_PER_TTL;
            self.call(Call::Renew { cursor: "0".to_owned() }, now);
            self.call_sessions(sessions::Call::Renew, now);
        }
        if self.timers.check <= now && self.delivery.is_following() {
            self.timers.check = now + CHECK_EVERY;
            self.delivery.following().clock(now);
            self.check_positions(now);
        }
        Ok(())
    }

    /// Carries out what a shard asks. While the link is down, nothing: the shards answer by themselves
    /// and say everything again when it is back.
    pub fn command(&mut self, command: UplinkCommand, now: Instant) {
        if !matches!(self.stage, Stage::Restoring { .. } | Stage::Sweeping | Stage::Up) {
            match command {
                UplinkCommand::ReadHistory(request) => self.delivery.page(*request, None),
                // Whoever waits for it may have asked before its shard heard of the loss.
                UplinkCommand::Attach { connection, .. } => {
                    self.delivery.control(connection.shard, Envelope::Attached { connection });
                }
                // The shard has forgotten them.
                UplinkCommand::PublishedAlone { rooms } => self.note_published_alone(rooms),
                _ => {}
            }
            return;
        }
        self.delivery.following().clock(now);
        match command {
            UplinkCommand::Join { join, enters, route } => self.join(join, enters, route, now),
            UplinkCommand::Leave { room, member, last } => self.leave_room(room, member.user, last, now),
            UplinkCommand::ReadHistory(request) => self.ask_page(request, now),
            UplinkCommand::ListMembers { room, asker } => self.call(Call::Members { room, asker }, now),
            UplinkCommand::Attach { user, connection, counted } => {
                self.attach(user, connection, counted, now);
            }
            UplinkCommand::Detach { user, counted, last } => self.detach(user, counted, last, now),
            UplinkCommand::Restore { room, route, members, newcomers, told } => {
                self.subscribe_room(&room, route, now);
                if self.delivery.following().covers(room.as_str()) {
                    self.delivery.following().restore(&room, told);
                    self.send_reads(now);
                }
                self.restore(room, members, newcomers, now);
            }
            UplinkCommand::RestoreUsers { users } => self.restore_users(users, now),
            UplinkCommand::PublishedAlone { rooms } => self.note_published_alone(rooms),
            UplinkCommand::Restored { shard } => self.shard_restored(shard.0, now),
        }
    }

    fn begin_restoring(&mut self, now: Instant) {
        self.stage = Stage::Restoring { restored: 0 };
        self.reset_sessions(now);
        self.tell(LinkState::Restoring);
    }

    fn shard_restored(&mut self, shard: u8, now: Instant) {
        let all = u64::MAX >> (64 - self.delivery.shards());
        if let Stage::Restoring { restored } = &mut self.stage {
            *restored |= 1 << shard;
            if *restored == all {
                self.tell_others_to_resync(now);
                // Its answer comes after those to everything that the shards have restored.
                self.stage = Stage::Sweeping;
                self.call(Call::Occupied, now);
            }
        }
    }

    fn swept(&mut self, occupied: Vec<String>, now: Instant) {
        self.sweep(occupied, now);
        if self.stage == Stage::Sweeping {
            self.stage = Stage::Up;
            self.published_alone.clear();
            self.link.settled();
            self.cells.link_up.set(1);
            self.cells.link_refused.set(0);
            if std::mem::take(&mut self.missed) {
                self.delivery.resync_after_loss();
            }
            self.tell(LinkState::Up);
            tracing::info!(instances = self.registry.alive(), "the link to Redis is up");
        }
    }

    fn call(&mut self, call: Call, now: Instant) {
        if let Some(outgoing) = self.scripts.submit(call) {
            send(&self.caller, &mut self.link, outgoing, now);
        }
    }

    /// Takes what came over the connection. `timestamp` is the time in milliseconds since 1970.
    ///
    /// # Errors
    /// When Redis refused something that the uplink cannot do without: the driver closes the
    /// connection and calls [`Ingress::lost`].
    pub fn event(&mut self, event: Event<Expect>, timestamp: u64, now: Instant) -> Result<(), LinkError> {
        self.delivery.following().clock(now);
        match event {
            Event::Up => self.link_up(now),
            Event::Message { channel, payload } => {
                self.message(&channel, &payload, timestamp, now);
                self.send_reads(now);
            }
            Event::Reply(Expect::History(call), answer) => self.history_answer(call, answer, now)?,
            Event::Reply(Expect::Sessions(call), answer) => self.sessions_answer(call, answer, now)?,
            Event::Reply(Expect::Page(request), answer) => {
                answer.map_err(|error| refused("PING", &error))?;
                self.page_due(request, now);
            }
            Event::Reply(Expect::Script(call), answer) => {
                let (caller, link) = (&self.caller, &mut self.link);
                let final_answer = self.scripts.answered(call, answer, |out| send(caller, link, out, now));
                if let Some((call, answer)) = final_answer {
                    let answer = answer.map_err(|error| refused("a presence script", &error))?;
                    self.script_answer(call, answer, now)?;
                }
            }
            Event::Reply(Expect::Subscribe(waits), answer) => {
                answer.map_err(|error| refused("SUBSCRIBE", &error))?;
                if let Some(connection) = waits {
                    self.delivery.control(connection.shard, Envelope::Attached { connection });
                }
            }
            Event::Reply(Expect::Nothing, answer) => {
                answer.map_err(|error| refused("PUBLISH or UNSUBSCRIBE", &error))?;
            }
        }
        Ok(())
    }

    fn link_up(&mut self, now: Instant) {
        self.caller.reconnected();
        self.sessions.reconnected();
        if self.stage == Stage::Leaving {
            // The order to stop came during the handshake; the name has been registered before it.
            return self.call(Call::Unregister, now);
        }
        self.stage = Stage::Registering;
        // When Redis itself was away, all instances look silent: first they get the time to come back.
        let reap = now + self.reap_every.max(BACKOFF_LONGEST.min(self.silence));
        let renew = now + KEY_TTL / RENEWALS_PER_TTL;
        self.timers = Timers { register: now + self.heartbeat, reap, renew, check: now + CHECK_EVERY };
        self.load_history(now);
        self.subscribe(Channel::Instances, None, now);
        self.subscribe(Channel::Global, None, now);
        self.register(now);
    }

    fn register(&mut self, now: Instant) {
        self.call(Call::Register { first: self.registered.is_none(), at: now }, now);
    }

    fn message(&mut self, channel: &[u8], payload: &[u8], timestamp: u64, now: Instant) {
        match self.channels.parse(channel) {
            Some(Channel::Instances) => self.of_instances(payload, timestamp, now),
            Some(Channel::Lane(_)) => self.delivery.deliver_lane(payload, timestamp),
            Some(channel) => self.delivery.deliver(channel, payload, timestamp),
            None => {}
        }
    }

    fn script_answer(&mut self, call: Call, answer: Value, now: Instant) -> Result<(), LinkError> {
        let unreadable = LinkError::Other("a presence script gave an answer of the wrong shape");
        match call {
            Call::Join { join, route, .. } => {
                let (member_count, members) = presence::decode_members(&answer).ok_or(unreadable)?;
                if let Some(number) = presence::decode_change(&answer) {
                    self.delivery.following().joined_at(join.room.as_str(), number);
                }
                let Join { room, asker, want_members, since, .. } = *join;
                let members = want_members.then_some(members);
                let joined = Joined {
                    room,
                    asker,
                    route,
                    member_count,
                    members,
                    history: None,
                    recovery: Err(NotRecovered::NoHistory),
                };
                self.join_granted(Box::new(joined), since, now);
            }
            Call::Members { room, asker } => {
                let (member_count, members) = presence::decode_members(&answer).ok_or(unreadable)?;
                self.members(room, asker, member_count, members);
            }
            Call::Occupied => self.swept(presence::decode_list(answer).ok_or(unreadable)?, now),
            Call::Register { at, .. } => {
                self.registration(presence::decode_registered(answer).ok_or(unreadable)?, at, now)?;
            }
            Call::Reap => {
                let silent = presence::decode_text(&answer).ok_or(unreadable)?;
                if !silent.is_empty() {
                    tracing::warn!(instance = %silent, "an instance has gone silent: its members leave");
                    self.registry.gone(&silent);
                    self.lanes.gone(&silent);
                    self.cells.instances.set(self.registry.alive() as u64);
                    self.call(Call::Reap, now);
                }
            }
            Call::Renew { .. } => {
                let cursor = presence::decode_text(&answer).ok_or(unreadable)?;
                if cursor != "0" {
                    self.call(Call::Renew { cursor }, now);
                }
            }
            Call::Unregister if answer != Value::Int(1) => self.call(Call::Unregister, now),
            Call::Unregister => self.stage = Stage::Left,
            Call::Restore { room, .. } => {
                let numbers = presence::decode_restored(answer).ok_or(unreadable)?;
                self.delivery.restored(room.as_str(), numbers, self.stage == Stage::Up);
            }
            Call::Leave { .. } | Call::Probe => {}
        }
        Ok(())
    }

    fn members(&mut self, room: RoomId, asker: Asker, member_count: u32, members: Vec<Member>) {
        let shard = asker.connection.shard;
        self.delivery.control(shard, Envelope::Members { room, asker, member_count, members });
    }

    fn registration(&mut self, answer: Registered, at: Instant, now: Instant) -> Result<(), LinkError> {
        match answer {
            Registered::Held { .. } => {
                return Err(LinkError::Other("another live process uses this INSTANCE_ID"));
            }
            Registered::Clearing if self.stage == Stage::Leaving => {}
            Registered::Clearing => self.register(now),
            Registered::Alive { known, instances } => {
                // Nobody can have removed it since: that takes a longer silence.
                let held = self.registered.is_some_and(|last| now < last + self.silence);
                self.registered = Some(at);
                self.listen((at, known), &instances, now);
                for instance in instances {
                    self.registry.heard(instance, now);
                }
                self.cells.instances.set(self.registry.alive() as u64);
                match self.stage {
                    Stage::Registering => {
                        self.stage = Stage::Alone;
                        self.held = held;
                    }
                    Stage::Restoring { .. } | Stage::Sweeping | Stage::Up if !known => {
                        tracing::warn!(
                            "Redis has lost this instance, or others took it for dead: registering again"
                        );
                        self.held = held;
                        // Leaves of members that Redis no longer knew were announced to nobody.
                        self.missed = true;
                        self.begin_restoring(now);
                    }
                    _ => {}
                }
            }
        }
        Ok(())
    }
}

fn send(caller: &Caller, link: &mut Link<Expect>, outgoing: Outgoing<Call>, now: Instant) {
    let command = caller.command(&outgoing.call, outgoing.with_text);
    link.send(&command, Expect::Script(outgoing.call), now);
}

fn refused(step: &'static str, error: &ServerError) -> LinkError {
    LinkError::Refused { step, error: words(error) }
}
