//! One process in the world: shards and an uplink, and the sockets of its clients.

use std::collections::BTreeMap;
use std::sync::Arc;

use crossbeam_channel::{Receiver, bounded};

use super::pipe::{Ms, Pipe};
use super::random::Random;
use super::redis::RedisModel;
use super::uplink::{Clock, ShardSide, Uplink};
use crate::command::authorize::TokenVerifier;
use crate::config::Settings;
use crate::identity::ShardId;
use crate::instance::{Instance, Phase};
use crate::ring::{Key, SendBatch};
use crate::shard::envelope::{Envelope, LinkState};
use crate::shard::history::recovery_bytes;
use crate::shard::mesh::Mesh;
use crate::shard::outlet::{Outlet, Waker};
use crate::shard::{Action, Now, Shard, UplinkPort};
use crate::uplink::history::HistoryRules;

/// Messages in a queue between threads: few, so that queues run full in the world.
const QUEUE: usize = 64;

/// Messages taken from one queue in a turn.
const ENVELOPES_PER_TURN: usize = 32;

/// Milliseconds between ticks of a shard, as its driver has them.
const TICK_MS: Ms = 100;

/// A client's connection, with both directions.
#[derive(Debug, Default)]
pub(super) struct Socket {
    pub(super) up: Pipe,
    pub(super) down: Pipe,
}

/// All clients' connections, by number.
pub(super) type Sockets = BTreeMap<u32, Socket>;

#[derive(Default)]
struct Slot {
    generation: u32,
    socket: Option<u32>,
    ended: bool,
    /// What is being sent, and when that is done.
    sending: Option<(Ms, Box<SendBatch>)>,
}

struct ShardThread {
    shard: Shard,
    inboxes: Vec<Receiver<Envelope>>,
    slots: Vec<Slot>,
    tick_at: Ms,
    stands_until: Ms,
}

/// One process.
pub(super) struct Host {
    pub(super) instance: Arc<Instance>,
    shards: Vec<ShardThread>,
    pub(super) uplink: Uplink,
}

impl Host {
    pub(super) fn new(
        number: usize,
        settings: &Settings,
        verifier: &Arc<TokenVerifier>,
        random: &mut Random,
        clock: Clock,
    ) -> Self {
        let instance = Arc::new(Instance::new(settings.clone(), random.next() as u32));
        let count = settings.shards;
        let waker = || Waker::new().expect("the process has a descriptor left");
        let mut outlets: Vec<Vec<_>> = (0..count).map(|_| Vec::new()).collect();
        let mut inboxes: Vec<Vec<_>> = (0..count).map(|_| Vec::new()).collect();
        let wakers: Vec<_> = (0..count).map(|_| waker()).collect();
        for (from, outlets) in outlets.iter_mut().enumerate() {
            for to in 0..count {
                let outlet = (from != to).then(|| {
                    let (outlet, inbox) = Outlet::new(QUEUE, wakers[to].clone());
                    inboxes[to].push(inbox);
                    outlet
                });
                outlets.push(outlet);
            }
        }
        let (commands, ingress) = bounded(QUEUE);
        let (publications, publisher) = bounded(QUEUE);
        let ingress_waker = waker();
        let (mut to_shards, mut answers) = (Vec::new(), Vec::new());
        for (waker, inboxes) in wakers.iter().zip(&mut inboxes) {
            let (outlet, inbox) = Outlet::new(QUEUE, waker.clone());
            to_shards.push(outlet);
            inboxes.push(inbox);
            let (outlet, inbox) = Outlet::new(QUEUE, waker.clone());
            answers.push(outlet);
            inboxes.push(inbox);
        }
        let port = || UplinkPort {
            commands: Outlet::to(commands.clone(), ingress_waker.clone()),
            publications: publications.clone(),
            state: LinkState::Restoring,
            published_alone: Default::default(),
            settled: false,
        };
        let shards = outlets.into_iter().zip(inboxes).enumerate().map(|(index, (outlets, inboxes))| {
            let id = ShardId(index as u8);
            let mesh = Mesh::new(id, outlets);
            let shard = Shard::new(id, instance.clone(), Some(verifier.clone()), mesh, Some(port()));
            ShardThread { shard, inboxes, slots: Vec::new(), tick_at: 0, stands_until: 0 }
        });
        let shards = shards.collect();
        let cells = instance.uplink.clone().expect("the settings have a Redis");
        let side =
            ShardSide { shards: to_shards, answers, commands: ingress, publications: publisher, cells };
        let rules = HistoryRules {
            settings: settings.history.clone(),
            reply_bytes: recovery_bytes(settings.outbox_bytes),
        };
        let redis = settings.redis.as_ref().expect("the settings have a Redis");
        let uplink = Uplink::new(number, &instance.id, (redis, &rules), side, random, clock);
        instance.enter(Phase::Serving);
        Self { instance, shards, uplink }
    }

    /// Takes a client in, unless the process does not accept yet.
    pub(super) fn accept(&mut self, socket: u32, random: &mut Random, clock: Clock) -> bool {
        let shard = random.below(self.shards.len() as u64) as usize;
        let thread = &mut self.shards[shard];
        if !thread.shard.is_settled() {
            return false;
        }
        let free = thread.slots.iter().position(|slot| slot.socket.is_none());
        let place = free.unwrap_or_else(|| {
            thread.slots.push(Slot::default());
            thread.slots.len() - 1
        });
        let slot = &mut thread.slots[place];
        (slot.socket, slot.ended) = (Some(socket), false);
        let key = Key { slot: place as u32, generation: slot.generation };
        thread.shard.handle_accepted(key, now(clock));
        true
    }

    /// Batches that it has taken from others' lanes.
    pub(super) fn over_lanes(&self) -> u64 {
        self.instance.uplink.as_ref().map_or(0, |cells| cells.lane_batches_in.get())
    }

    /// A shard's thread does not get its core for a while.
    pub(super) fn stall(&mut self, shard: usize, until: Ms) {
        let count = self.shards.len();
        self.shards[shard % count].stands_until = until;
    }

    /// The process dies: all of its sockets break.
    pub(super) fn die(&mut self, sockets: &mut Sockets, redis: &mut RedisModel, clock: Clock) {
        self.uplink.die(redis, clock);
        for slot in self.shards.iter().flat_map(|thread| &thread.slots) {
            if let Some(socket) = slot.socket.and_then(|socket| sockets.get_mut(&socket)) {
                socket.up.break_off(clock.now);
                socket.down.finish(clock.now);
            }
        }
    }

    pub(super) fn turn(
        &mut self,
        redis: &mut RedisModel,
        sockets: &mut Sockets,
        random: &mut Random,
        clock: Clock,
    ) {
        self.uplink.turn(redis, random, clock);
        let mut order: Vec<_> = (0..self.shards.len()).collect();
        random.shuffle(&mut order);
        for shard in order {
            if self.shards[shard].stands_until <= clock.now {
                self.shards[shard].turn(sockets, random, clock);
            }
        }
    }
}

fn now(clock: Clock) -> Now {
    Now { since_start_ms: clock.now, unix_ms: clock.unix_ms() }
}

impl ShardThread {
    fn turn(&mut self, sockets: &mut Sockets, random: &mut Random, clock: Clock) {
        let at = now(clock);
        for place in 0..self.slots.len() {
            self.complete_send(place, at);
            self.read(place, sockets, at);
        }
        for inbox in &self.inboxes {
            for _ in 0..ENVELOPES_PER_TURN {
                let Ok(envelope) = inbox.try_recv() else { break };
                self.shard.handle_envelope(envelope, at);
            }
        }
        if self.tick_at <= clock.now {
            self.tick_at = clock.now + TICK_MS;
            self.shard.handle_tick(at);
        }
        self.shard.finish_turn(at);
        self.act(sockets, random, clock);
        self.flush(sockets, random, clock);
    }

    fn key(&self, place: usize) -> Key {
        Key { slot: place as u32, generation: self.slots[place].generation }
    }

    fn complete_send(&mut self, place: usize, at: Now) {
        if self.slots[place].sending.as_ref().is_some_and(|(due, _)| *due <= at.since_start_ms)
            && let Some((_, batch)) = self.slots[place].sending.take()
        {
            self.shard.outboxes().sent(place as u32, batch);
            self.shard.handle_sent(self.key(place), true, at);
        }
    }

    fn read(&mut self, place: usize, sockets: &mut Sockets, at: Now) {
        let Some(number) = self.slots[place].socket else { return };
        let Some(socket) = sockets.get_mut(&number) else {
            // It ended, and was forgotten, while this thread stood still.
            if !std::mem::replace(&mut self.slots[place].ended, true) {
                self.shard.handle_ended(self.key(place), at);
            }
            return;
        };
        while let Some(mut bytes) = socket.up.receive(at.since_start_ms) {
            self.shard.handle_received(
                Key { slot: place as u32, generation: self.slots[place].generation },
                &mut bytes,
                at,
            );
        }
        if socket.up.has_ended(at.since_start_ms) && !std::mem::replace(&mut self.slots[place].ended, true) {
            self.shard.handle_ended(self.key(place), at);
        }
    }

    fn act(&mut self, sockets: &mut Sockets, random: &mut Random, clock: Clock) {
        for action in self.shard.take_actions() {
            let (Action::Receive(key)
            | Action::StopReceiving(key)
            | Action::Acknowledge(key)
            | Action::FinishSending(key)
            | Action::Close(key)) = action;
            let place = key.slot as usize;
            let socket = self.slots[place].socket.and_then(|socket| sockets.get_mut(&socket));
            match action {
                Action::Receive(_) | Action::StopReceiving(_) | Action::Acknowledge(_) => {}
                Action::FinishSending(_) => {
                    if let Some(socket) = socket {
                        socket.down.finish(clock.now + random.below(20));
                    }
                }
                Action::Close(_) => {
                    if let Some(socket) = socket {
                        socket.down.finish(clock.now + random.below(20));
                        socket.up.break_off(clock.now);
                    }
                    if let Some((_, batch)) = self.slots[place].sending.take() {
                        self.shard.outboxes().sent(key.slot, batch);
                        self.shard.handle_sent(key, false, now(clock));
                    }
                    self.shard.handle_closed(key);
                    let slot = &mut self.slots[place];
                    (slot.socket, slot.generation) = (None, slot.generation + 1);
                }
            }
        }
    }

    fn flush(&mut self, sockets: &mut Sockets, random: &mut Random, clock: Clock) {
        let slots = &mut self.slots;
        self.shard.outboxes().flush(clock.now as u32, usize::MAX, |place, mut batch| {
            let slot = &mut slots[place as usize];
            let Some(socket) = slot.socket.and_then(|socket| sockets.get_mut(&socket)) else {
                return Err(batch);
            };
            let bytes: Vec<u8> = batch.drain().flat_map(|segment| segment.as_slice().to_vec()).collect();
            socket.down.send(&bytes, clock.now + random.below(20), random);
            // A reader that stands still takes nothing.
            let done = socket.down.held_until.max(clock.now + random.below(10));
            slot.sending = Some((done, batch));
            Ok(())
        });
    }
}
