//! All rooms with history that have members here: their followers, the reads they want, the memory they take.

use std::time::Instant;

use hashbrown::HashMap;

use super::follower::{Follower, Heard, Missed, Waiting};
use super::history::{Epochs, Extent, HistoryRules, Kept, Read};
use crate::command::event::numbered;
use crate::hashing::Hashing;
use crate::identity::RoomId;
use crate::room::history::{Bounds, Epoch, Position};
use crate::shard::envelope::{HistoryPage, Joined, Member, ReadHistory};

/// Rounds in which all positions are compared with those in Redis, one round per second.
const CHECK_ROUNDS: u64 = 4;

/// The followers' clock begins here, so that messages can be older than the process.
const CLOCK_START_MS: u64 = 1 << 40;

/// A follower, and which one of the room's it is: an answer may come when it has been given up.
struct Followed {
    id: u64,
    follower: Follower,
    /// Whether members have missed nothing since the link was last up, as far as this room is concerned.
    continuous: bool,
    presence: FollowedPresence,
}

/// What members have been told of who is in a room.
#[derive(Default)]
struct FollowedPresence {
    /// The number of the last join or leave that they heard of; 0 if the room was known to have none.
    last: Option<u64>,
    /// Whether they have missed some, or were told what only this instance knew.
    stale: bool,
    /// Whether they were told to resync since, for another reason.
    resynced: bool,
}

/// The followers of this instance.
pub struct Following {
    rules: HistoryRules,
    bounds: Bounds,
    followed: HashMap<RoomId, Followed, Hashing>,
    bytes: usize,
    epochs: Epochs,
    next_id: u64,
    started: Option<Instant>,
    now_ms: u64,
    round: u64,
    reads: Vec<Read>,
}

impl Following {
    /// No followers yet. `seed` is random.
    pub fn new(rules: HistoryRules, seed: u64) -> Self {
        let bounds = rules.settings.bounds();
        Self {
            rules,
            bounds,
            followed: HashMap::default(),
            bytes: 0,
            epochs: Epochs::new(seed),
            next_id: 0,
            started: None,
            now_ms: CLOCK_START_MS,
            round: 0,
            reads: Vec::new(),
        }
    }

    /// The rules that say which rooms have history.
    pub fn rules(&self) -> &HistoryRules {
        &self.rules
    }

    /// Whether the room called `name` has history.
    pub fn covers(&self, name: &str) -> bool {
        self.rules.settings.covers(name)
    }

    /// Whether any room has history.
    pub fn is_used(&self) -> bool {
        !self.rules.settings.rooms.is_empty()
    }

    /// An epoch to begin with.
    pub fn draw_epoch(&mut self) -> Epoch {
        self.epochs.draw()
    }

    /// What happens next, happens now.
    pub fn clock(&mut self, now: Instant) {
        let started = *self.started.get_or_insert(now);
        self.now_ms = CLOCK_START_MS + now.saturating_duration_since(started).as_millis() as u64;
    }

    /// The time, in milliseconds of the followers' clock.
    pub fn now_ms(&self) -> u64 {
        self.now_ms
    }

    /// The reads to be sent.
    pub fn take_reads(&mut self) -> Vec<Read> {
        std::mem::take(&mut self.reads)
    }

    /// Someone is about to join: what the answer needs is read while Redis is asked about presence.
    pub fn prepare(&mut self, room: &RoomId, since: Option<Position>) {
        let reply_bytes = self.rules.reply_bytes;
        // What lies ahead of the room may be under way: that is looked at when the join is answered.
        let known = self.followed.get(room).and_then(|followed| followed.follower.position());
        let since = since.filter(|since| known.is_none_or(|known| since.offset <= known.offset));
        self.with(room, |follower, _, _| follower.hold(since, reply_bytes).1);
    }

    /// A join is granted: its answer, unless that waits for a read.
    pub fn join(&mut self, mut joined: Box<Joined>, since: Option<Position>) -> Option<Box<Joined>> {
        let reply_bytes = self.rules.reply_bytes;
        let room = joined.room.clone();
        let mut held = false;
        self.with(&room, |follower, _, _| {
            let (holds, extent) = follower.hold(since, reply_bytes);
            held = holds;
            extent
        });
        if held {
            self.with(&room, |follower, _, _| {
                follower.wait(Waiting { joined, since });
                None
            });
            return None;
        }
        self.complete(&mut joined, since);
        Some(joined)
    }

    fn complete(&mut self, joined: &mut Joined, since: Option<Position>) {
        let (now_ms, bounds, reply_bytes) = (self.now_ms, self.bounds, self.rules.reply_bytes);
        let Some(followed) = self.followed.get_mut(&joined.room) else { return };
        let before = followed.follower.bytes();
        joined.recovery = match since {
            Some(since) => followed.follower.recover(since, reply_bytes, now_ms, &bounds),
            None => Ok(Vec::new()),
        };
        joined.history = followed.follower.position();
        self.bytes = self.bytes - before + followed.follower.bytes();
    }

    /// The room is back after the link was lost: what was missed is read. `told` says whether anyone has been told
    /// meanwhile who is in the room, as far as this instance knew.
    pub fn restore(&mut self, room: &RoomId, told: bool) {
        self.with(room, |follower, _, _| follower.catch_up());
        if let Some(followed) = self.followed.get_mut(room) {
            followed.continuous = followed.follower.position().is_some();
            followed.presence.stale |= told;
            followed.presence.resynced = false;
        }
    }

    /// Someone came to the room or left it: whose join still waits for a read is not told later, and so now.
    pub fn presence(&mut self, room: &str, joined: bool, member_count: u32, member: &Member) {
        if let Some(followed) = self.followed.get_mut(room) {
            followed.follower.presence(joined, member_count, member);
        }
    }

    /// Members have heard of the join or leave of this number. False when they have missed one before it.
    pub fn changed(&mut self, room: &str, number: u64) -> bool {
        let Some(followed) = self.followed.get_mut(room) else { return true };
        let last = followed.presence.last.replace(number).unwrap_or(0);
        // Behind 0 a numbering begins, wherever that is.
        last == 0 || number <= last.saturating_add(1)
    }

    /// Someone has joined when the room's last join or leave was the one of this number. Where others are already in the
    /// room, what they have heard stands: the joiner's own announcement may come behind the answer, or be lost.
    pub fn joined_at(&mut self, room: &str, number: u64) {
        if let Some(followed) = self.followed.get_mut(room) {
            followed.presence.last.get_or_insert(number);
        }
    }

    /// The room was registered again when its last join or leave was the one of the number `before`; by that,
    /// members of this instance may have come and gone up to the number `after`.
    pub fn restored(&mut self, room: &str, (before, after): (u64, u64)) {
        let Some(followed) = self.followed.get_mut(room) else { return };
        let presence = &mut followed.presence;
        // Whether the own announcements come in front of the answer depends on the version of Redis.
        let told = presence.last.is_some_and(|last| (before..=after).contains(&last));
        presence.stale |= presence.last.is_some() && !told;
        presence.last = presence.last.filter(|_| told).or(Some(before));
    }

    /// Whether members hold someone as present who has gone, or know nothing of someone who has come; asked once.
    pub fn is_presence_stale(&mut self, room: &str) -> bool {
        self.followed.get_mut(room).is_some_and(|followed| {
            let FollowedPresence { stale, resynced, .. } = &mut followed.presence;
            std::mem::take(stale) && !*resynced
        })
    }

    /// Whether nothing of the room was missed, or it is being given to the members; asked once.
    pub fn continues(&mut self, room: &str) -> bool {
        let Some(followed) = self.followed.get_mut(room) else { return false };
        std::mem::replace(&mut followed.continuous, true)
    }

    /// Where the room stands.
    pub fn position(&self, room: &str) -> Option<Position> {
        self.followed.get(room).and_then(|followed| followed.follower.position())
    }

    /// Nobody here is in the room any more.
    pub fn leave(&mut self, room: &RoomId) {
        if let Some(followed) = self.followed.remove(room) {
            self.bytes -= followed.follower.bytes();
        }
    }

    /// Keeps only the followers of rooms that `stays` names.
    pub fn retain(&mut self, stays: impl Fn(&str) -> bool) {
        self.followed.retain(|room, _| stays(room.as_str()));
        self.bytes = self.followed.values().map(|followed| followed.follower.bytes()).sum();
    }

    /// The connection is gone: reads are, and joins that waited. What is kept stays.
    pub fn link_lost(&mut self) {
        self.reads.clear();
        self.followed.values_mut().for_each(|followed| followed.follower.link_lost());
    }

    /// A stored message of a followed room was heard; nothing if the room is not followed.
    pub fn stored(&mut self, name: &str, position: Position, event: &str) -> Option<Heard> {
        let room = self.followed.get_key_value(name)?.0.clone();
        let mut heard = Heard::Nothing;
        self.with(&room, |follower, now_ms, bounds| {
            heard = follower.stored(position, || numbered(event, position.offset), now_ms, bounds);
            if let Heard::Gap(extent) = &heard { Some(*extent) } else { None }
        });
        self.bound();
        Some(heard)
    }

    /// A read was answered, or failed: what members get now, and the joins that it answers.
    pub fn answered(&mut self, read: &Read, kept: Option<Kept>) -> (Missed, Vec<Box<Joined>>) {
        let reply_bytes = self.rules.reply_bytes;
        if self.followed.get(&read.room).is_none_or(|followed| followed.id != read.follower) {
            return (Missed::default(), Vec::new());
        }
        let (mut missed, mut released) = (Missed::default(), Vec::new());
        self.with(&read.room, |follower, now_ms, bounds| {
            let Some(kept) = kept else {
                follower.failed();
                released = follower.give_up();
                return None;
            };
            missed = follower.answered(kept, read.extent, now_ms, bounds);
            let (ready, extent) = follower.released(read.extent, reply_bytes);
            released = ready;
            extent
        });
        if missed.resync.is_some()
            && let Some(followed) = self.followed.get_mut(&read.room)
        {
            followed.presence.resynced = true;
        }
        let mut joins = Vec::new();
        for Waiting { mut joined, since } in released {
            self.complete(&mut joined, since);
            joins.push(joined);
        }
        self.bound();
        (missed, joins)
    }

    /// Rooms whose positions are to be compared now; call it once a second. Also forgets what is too old.
    pub fn check(&mut self) -> Vec<RoomId> {
        self.round += 1;
        let (mut rooms, mut bytes) = (Vec::new(), 0);
        for (room, followed) in &mut self.followed {
            if followed.id % CHECK_ROUNDS == self.round % CHECK_ROUNDS {
                followed.follower.trim(self.now_ms, &self.bounds);
                if !followed.follower.is_reading() {
                    rooms.push(room.clone());
                }
            }
            bytes += followed.follower.bytes();
        }
        self.bytes = bytes;
        rooms
    }

    /// Redis says where a room stands: what was missed is read.
    pub fn compare(&mut self, room: &RoomId, there: Option<Position>) {
        let Some(followed) = self.followed.get(room) else { return };
        if followed.follower.position() != there {
            self.with(room, |follower, _, _| follower.catch_up());
        }
    }

    /// A page out of memory; nothing when Redis must be asked.
    pub fn page(&mut self, request: &ReadHistory) -> Option<HistoryPage> {
        let followed = self.followed.get_mut(&request.room)?;
        let before = followed.follower.bytes();
        let what = (request.limit, request.reverse);
        let frames = followed.follower.page(request.since, what, self.now_ms, &self.bounds);
        self.bytes = self.bytes - before + followed.follower.bytes();
        let mut frames = frames?;
        let mut bytes = 0;
        let fits = frames.iter().take_while(|frame| {
            bytes += frame.len();
            bytes <= self.rules.reply_bytes
        });
        let fits = fits.count().max(1);
        frames.truncate(fits);
        Some(HistoryPage { position: followed.follower.position()?, frames })
    }

    /// Lets a room's follower do something; what it wants read is noted.
    fn with(&mut self, room: &RoomId, act: impl FnOnce(&mut Follower, u64, &Bounds) -> Option<Extent>) {
        let next_id = &mut self.next_id;
        let followed = self.followed.entry(room.clone()).or_insert_with(|| {
            *next_id += 1;
            let presence = FollowedPresence::default();
            Followed { id: *next_id, follower: Follower::default(), continuous: true, presence }
        });
        let before = followed.follower.bytes();
        if let Some(extent) = act(&mut followed.follower, self.now_ms, &self.bounds) {
            self.reads.push(Read { room: room.clone(), follower: followed.id, extent });
        }
        self.bytes = self.bytes - before + followed.follower.bytes();
    }

    /// Keeps the memory of all followers within its bound: each forgets its older half.
    fn bound(&mut self) {
        if self.bytes > self.rules.settings.memory {
            self.bytes = 0;
            for followed in self.followed.values_mut() {
                followed.follower.halve(self.now_ms, &self.bounds);
                self.bytes += followed.follower.bytes();
            }
        }
    }
}
