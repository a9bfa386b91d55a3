//! One instance's uplink in the world: what `uplink/driver.rs` does with threads and sockets, here in turns.

use std::sync::Arc;
use std::time::{Duration, Instant};

use crossbeam_channel::Receiver;

use super::pipe::Ms;
use super::random::Random;
use super::redis::{RedisModel, Role};
use crate::config::RedisSettings;
use crate::identity::InstanceId;
use crate::metrics::UplinkCells;
use crate::shard::envelope::{Envelope, Publication, UplinkCommand};
use crate::shard::outlet::Outlet;
use crate::uplink::batch::Origin;
use crate::uplink::channel::Channels;
use crate::uplink::delivery::Delivery;
use crate::uplink::following::Following;
use crate::uplink::history::{Epochs, HistoryCaller, HistoryRules};
use crate::uplink::ingress::{Expect, Ingress, PublisherLink};
use crate::uplink::lane;
use crate::uplink::link::{Event, Handshake, Link, LinkError};
use crate::uplink::publisher::{Batching, Publisher, Sent};
use crate::uplink::registry::{self, Load};
use crate::uplink::store_queue::StoreQueue;

/// The world's clock, as the uplink's logic reads it.
#[derive(Clone, Copy)]
pub(super) struct Clock {
    pub(super) base: Instant,
    pub(super) now: Ms,
}

impl Clock {
    fn instant(self) -> Instant {
        self.base + Duration::from_millis(self.now)
    }

    pub(super) fn unix_ms(self) -> u64 {
        super::EPOCH_UNIX_MS + self.now
    }
}

/// What the uplink is connected to on the shards' side.
pub(super) struct ShardSide {
    pub(super) shards: Vec<Outlet<Envelope>>,
    pub(super) answers: Vec<Outlet<Envelope>>,
    pub(super) commands: Receiver<UplinkCommand>,
    pub(super) publications: Receiver<Publication>,
    pub(super) cells: Arc<UplinkCells>,
}

pub(super) struct Uplink {
    number: usize,
    instance: InstanceId,
    origin: Origin,
    settings: RedisSettings,
    ingress: Ingress,
    ingress_socket: Option<u32>,
    commands: Receiver<UplinkCommand>,
    publisher: Publisher,
    link: Link<Sent>,
    publisher_socket: Option<u32>,
    publications: Receiver<Publication>,
    /// When what has gathered is sent.
    flush_at: Ms,
    heartbeat_at: Ms,
    // As `Pair` of the driver.
    publisher_up: bool,
    losses: u64,
    wanted: u64,
    seen: u64,
    served: u64,
}

impl Uplink {
    pub(super) fn new(
        number: usize,
        instance: &InstanceId,
        (settings, rules): (&RedisSettings, &HistoryRules),
        side: ShardSide,
        random: &mut Random,
        clock: Clock,
    ) -> Self {
        let origin = Origin(random.next());
        let now = clock.instant();
        let following = Following::new(rules.clone(), random.next());
        let delivery = Delivery::new(origin, side.shards, following, Arc::clone(&side.cells));
        let delivery = delivery.expect("zstd has memory");
        let caller = HistoryCaller::new(&settings.prefix, origin, rules.clone());
        let stores = StoreQueue::new(caller, Epochs::new(random.next()), side.answers);
        let ingress_link: Link<Expect> = link(settings, random.next(), now);
        let gate = lane::closed();
        let shared = (Arc::clone(&gate), Arc::clone(&side.cells));
        let this = (instance, origin);
        let ingress = Ingress::new(settings, this, ingress_link, delivery, false, shared, now);
        let batching = Batching {
            size: settings.batch_bytes,
            compress_from: settings.batch_compress_bytes,
            // There is little to say in the world: most hosts use the lane for every batch, some for many at once.
            batches_per_peer: usize::from(random.chance(250)),
        };
        let channels = Channels::new(&settings.prefix);
        let publisher = Publisher::new(channels, this, batching, stores, gate, side.cells);
        Self {
            number,
            instance: instance.clone(),
            origin,
            settings: settings.clone(),
            ingress,
            ingress_socket: None,
            commands: side.commands,
            publisher: publisher.expect("zstd has memory"),
            link: link(settings, random.next(), now),
            publisher_socket: None,
            publications: side.publications,
            flush_at: 0,
            heartbeat_at: 0,
            publisher_up: false,
            losses: 0,
            wanted: 0,
            seen: 0,
            served: 0,
        }
    }

    /// Whether everything that was published has been taken by Redis.
    pub(super) fn is_drained(&self) -> bool {
        self.publications.is_empty() && self.link.is_up() && self.link.awaited() == 0
    }

    /// The process has died: its sockets close, what they had sent may still arrive.
    pub(super) fn die(&mut self, redis: &mut RedisModel, clock: Clock) {
        for socket in [self.ingress_socket.take(), self.publisher_socket.take()].into_iter().flatten() {
            redis.abandon(socket, clock.now);
        }
    }

    pub(super) fn turn(&mut self, redis: &mut RedisModel, random: &mut Random, clock: Clock) {
        if let Err(error) = self.ingress_turn(redis, random, clock) {
            if let Some(socket) = self.ingress_socket.take() {
                redis.abandon(socket, clock.now);
            }
            if !matches!(error, LinkError::OtherConnection) {
                self.wanted += 1;
            }
            self.ingress.lost(&error, clock.instant());
        }
        self.ingress.flush();
        self.gather(random, clock);
        if self.publisher_turn(redis, random, clock).is_err() {
            if let Some(socket) = self.publisher_socket.take() {
                redis.abandon(socket, clock.now);
            }
            let unanswered = self.link.lost(clock.instant());
            self.publisher.link_lost(unanswered);
            if std::mem::take(&mut self.publisher_up) {
                self.losses += 1;
            }
        }
        self.publisher.flush_answers();
    }

    fn ingress_turn(
        &mut self,
        redis: &mut RedisModel,
        random: &mut Random,
        clock: Clock,
    ) -> Result<(), LinkError> {
        let now = clock.instant();
        if self.ingress.link().connect_due(now) {
            self.ingress_socket = Some(connect(redis, self.number, Role::Ingress, clock)?);
            self.ingress.link().connected(now);
        }
        if let Some(socket) = self.ingress_socket {
            let mut events = Vec::new();
            receive(redis, socket, self.ingress.link(), &mut events, clock)?;
            for event in events {
                self.ingress.event(event, clock.unix_ms(), now)?;
            }
        }
        while self.ingress.takes_commands()
            && let Ok(command) = self.commands.try_recv()
        {
            self.ingress.command(command, now);
        }
        let up = self.served == self.wanted && self.publisher_up;
        self.ingress.tick(PublisherLink { losses: self.losses, up }, now)?;
        if let Some(socket) = self.ingress_socket {
            transmit(redis, socket, self.ingress.link(), random, clock);
        }
        Ok(())
    }

    /// Takes publications now and then, so that several share a batch.
    fn gather(&mut self, random: &mut Random, clock: Clock) {
        if clock.now >= self.flush_at {
            self.flush_at = clock.now + random.below(10);
            while !self.publisher.is_full()
                && let Ok(publication) = self.publications.try_recv()
            {
                self.publisher.add(publication);
            }
        }
    }

    fn publisher_turn(
        &mut self,
        redis: &mut RedisModel,
        random: &mut Random,
        clock: Clock,
    ) -> Result<(), LinkError> {
        let now = clock.instant();
        if self.wanted != self.seen {
            self.seen = self.wanted;
            if self.link.is_up() {
                return Err(LinkError::OtherConnection);
            }
        }
        if self.link.connect_due(now) {
            self.publisher_socket = Some(connect(redis, self.number, Role::Publisher, clock)?);
            self.link.connected(now);
        }
        self.publisher.flush(&mut self.link, now);
        if self.link.is_up() && self.heartbeat_at <= clock.now {
            self.heartbeat_at = clock.now + self.settings.heartbeat_interval.as_millis() as u64;
            let load = Load::default();
            let heartbeat = registry::heartbeat(&self.instance, self.origin, load, clock.unix_ms(), false);
            self.publisher.heartbeat(&mut self.link, heartbeat, now);
        }
        self.link.tick(now)?;
        let Some(socket) = self.publisher_socket else { return Ok(()) };
        let mut events = Vec::new();
        receive(redis, socket, &mut self.link, &mut events, clock)?;
        for event in events {
            match event {
                Event::Up => {
                    self.publisher.link_up(&mut self.link, now);
                    self.heartbeat_at = clock.now;
                    self.served = self.seen;
                    self.publisher_up = true;
                }
                Event::Reply(Sent::Stores(call), answer) => {
                    self.publisher.stored(call, answer, &mut self.link, now)?;
                }
                Event::Reply(_, Err(error)) => {
                    let error = crate::uplink::link::words(&error);
                    return Err(LinkError::Refused { step: "PUBLISH", error });
                }
                Event::Reply(Sent::Lane(sent), Ok(answer)) => {
                    self.publisher.lane_answered(sent, &answer, &mut self.link, now);
                }
                Event::Reply(Sent::Heartbeat, Ok(_)) => self.link.settled(),
                Event::Reply(Sent::Batch(_) | Sent::Companion, Ok(_)) | Event::Message { .. } => {}
            }
        }
        transmit(redis, socket, &mut self.link, random, clock);
        Ok(())
    }
}

fn link<T>(settings: &RedisSettings, seed: u64, now: Instant) -> Link<T> {
    let handshake =
        Handshake { username: None, password: settings.password.clone(), db: settings.db, name: "w".into() };
    Link::new(handshake, settings.timeout, seed, now)
}

fn connect(redis: &mut RedisModel, instance: usize, role: Role, clock: Clock) -> Result<u32, LinkError> {
    let refused = std::io::Error::from(std::io::ErrorKind::ConnectionRefused);
    redis.connect(instance, role, clock.now).ok_or(LinkError::Socket(refused))
}

fn receive<T>(
    redis: &mut RedisModel,
    socket: u32,
    link: &mut Link<T>,
    events: &mut Vec<Event<T>>,
    clock: Clock,
) -> Result<(), LinkError> {
    let closed = || LinkError::Socket(std::io::ErrorKind::UnexpectedEof.into());
    let connection = redis.connection(socket).ok_or_else(closed)?;
    while let Some(bytes) = connection.down.receive(clock.now) {
        link.receive(&bytes, clock.instant(), events)?;
    }
    if connection.down.has_ended(clock.now) { Err(closed()) } else { Ok(()) }
}

fn transmit<T>(redis: &mut RedisModel, socket: u32, link: &mut Link<T>, random: &mut Random, clock: Clock) {
    if let Some(connection) = redis.connection(socket) {
        let due = clock.now + random.below(3);
        connection.up.send(link.output(), due, random);
    }
    link.wrote(link.output().len());
}
