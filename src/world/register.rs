//! What `presence.lua` keeps in Redis and does there, operation by operation.

use std::collections::{BTreeMap, BTreeSet};

use super::pipe::Ms;

/// Rooms that one call clears at most.
const ROOMS_PER_CALL: usize = 100;

/// A reply in the shape of RESP.
#[derive(Clone, Debug)]
pub(super) enum Reply {
    Number(i64),
    Bulk(Vec<u8>),
    List(Vec<Reply>),
    Error(&'static str),
}

pub(super) const OUTDATED: &str = "OUTDATED the instance has another connection";

impl Reply {
    pub(super) fn text(text: &str) -> Self {
        Self::Bulk(text.as_bytes().to_vec())
    }

    pub(super) fn write(&self, out: &mut Vec<u8>) {
        match self {
            Self::Number(number) => out.extend_from_slice(format!(":{number}\r\n").as_bytes()),
            Self::Bulk(bytes) => {
                out.extend_from_slice(format!("${}\r\n", bytes.len()).as_bytes());
                out.extend_from_slice(bytes);
                out.extend_from_slice(b"\r\n");
            }
            Self::Error(text) => out.extend_from_slice(format!("-{text}\r\n").as_bytes()),
            Self::List(items) => {
                out.extend_from_slice(format!("*{}\r\n", items.len()).as_bytes());
                items.iter().for_each(|item| item.write(out));
            }
        }
    }
}

/// A message that an operation publishes: channel and payload.
pub(super) type Publishes = Vec<(Vec<u8>, Vec<u8>)>;

/// The keys of the script.
#[derive(Clone, Debug, Default)]
pub(super) struct Register {
    entries: BTreeMap<String, BTreeMap<String, Vec<u8>>>,
    members: BTreeMap<String, BTreeMap<String, i64>>,
    occupied: BTreeMap<String, BTreeSet<String>>,
    pub(super) registry: BTreeMap<String, Ms>,
    pub(super) boots: BTreeMap<String, String>,
    changes: BTreeMap<String, u64>,
    /// Rooms, and when the key expires.
    told: Option<(BTreeSet<String>, Ms)>,
    /// By instance and user, what `sessions.lua` keeps: it goes with the instance.
    pub(super) sessions: BTreeMap<String, BTreeMap<String, String>>,
}

impl Register {
    /// Whether the instance has registered since with another origin or over a later connection.
    pub(super) fn is_outdated(&self, instance: &str, origin: &str, connection: u64) -> bool {
        let Some(entry) = self.boots.get(instance) else { return false };
        let words: Vec<_> = entry.split(' ').collect();
        words[0] != origin || words[2].parse::<u64>().is_ok_and(|latest| latest > connection)
    }
}

/// One call.
pub(super) struct Operation<'a> {
    pub(super) register: &'a mut Register,
    /// What follows the script and the number of keys.
    pub(super) arguments: &'a [Vec<u8>],
    pub(super) now: Ms,
    pub(super) publishes: Publishes,
}

impl Operation<'_> {
    /// The argument as text; the operation's own ones begin at 5.
    fn text(&self, at: usize) -> String {
        self.arguments.get(at).map(|bytes| String::from_utf8_lossy(bytes).into_owned()).unwrap_or_default()
    }

    fn number(&self, at: usize) -> u64 {
        self.text(at).parse().unwrap_or(0)
    }

    /// Whether the operation writes, so that a Redis without memory refuses it.
    pub(super) fn writes(&self) -> bool {
        match self.text(1).as_str() {
            "join" => self.text(9) == "1",
            "members" | "occupied" | "probe" => false,
            _ => true,
        }
    }

    pub(super) fn run(&mut self) -> Reply {
        if self.register.told.as_ref().is_some_and(|(_, expires)| *expires <= self.now) {
            self.register.told = None;
        }
        match self.text(1).as_str() {
            "join" => self.join(),
            "leave" => self.leave(),
            "members" => {
                let room = self.text(5);
                self.note_told(&room);
                self.count_and_list(&room, true)
            }
            "restore" => self.restore(),
            "occupied" => {
                let rooms = self.register.occupied.get(&self.text(5)).cloned().unwrap_or_default();
                Reply::List(rooms.iter().map(|room| Reply::text(room)).collect())
            }
            "register" => self.register(),
            "reap" => self.reap(),
            "renew" => Reply::text("0"),
            "unregister" => self.unregister(),
            _ => Reply::text(""),
        }
    }

    fn note_told(&mut self, room: &str) {
        if let Some((told, _)) = &mut self.register.told {
            told.insert(room.to_owned());
        }
    }

    fn is_untold(&self, room: &str) -> bool {
        self.register.told.as_ref().is_some_and(|(told, _)| !told.contains(room))
    }

    fn count(&self, room: &str) -> usize {
        self.register.members.get(room).map_or(0, BTreeMap::len)
    }

    fn next_change(&mut self, room: &str) -> u64 {
        let first = (super::EPOCH_UNIX_MS + self.now) * 1_000;
        *self.register.changes.entry(room.to_owned()).and_modify(|number| *number += 1).or_insert(first)
    }

    fn last_change(&self, room: &str) -> Reply {
        Reply::text(&self.register.changes.get(room).copied().unwrap_or(0).to_string())
    }

    fn announce(&mut self, room: &str, joined: u8, member: &[u8]) {
        self.note_told(room);
        let mut payload = self.arguments[3].clone();
        payload.push(2);
        payload.extend_from_slice(&(member.len() as u32 + 5).to_le_bytes());
        payload.push(joined);
        payload.extend_from_slice(&(self.count(room) as u32).to_le_bytes());
        payload.extend_from_slice(member);
        let number = self.next_change(room);
        payload.push(9);
        payload.extend_from_slice(&8_u32.to_le_bytes());
        payload.extend_from_slice(&number.to_le_bytes());
        if self.count(room) == 0 {
            self.register.changes.remove(room);
        }
        self.publishes.push((format!("{}rooms:{room}", self.text(0)).into_bytes(), payload));
    }

    fn enter(&mut self, room: &str, instance: &str, user: &str, member: &[u8], quietly: bool) {
        let entries = self.register.entries.entry(room.to_owned()).or_default();
        if entries.insert(format!("{instance}|{user}"), member.to_vec()).is_some() {
            return;
        }
        let members = self.register.members.entry(room.to_owned()).or_default();
        let held = members.entry(user.to_owned()).or_insert(0);
        *held += 1;
        if *held == 1 && !quietly {
            self.announce(room, 1, member);
        }
    }

    fn leave_user(&mut self, room: &str, instance: &str, user: &str) {
        let Some(entries) = self.register.entries.get_mut(room) else { return };
        let Some(member) = entries.remove(&format!("{instance}|{user}")) else { return };
        if entries.is_empty() {
            self.register.entries.remove(room);
        }
        let members = self.register.members.entry(room.to_owned()).or_default();
        let held = members.entry(user.to_owned()).or_insert(0);
        *held -= 1;
        if *held <= 0 {
            members.remove(user);
            self.announce(room, 0, &member);
        }
    }

    fn leave_all_but(&mut self, room: &str, instance: &str, kept: &BTreeSet<String>) {
        let tag = format!("{instance}|");
        let fields = self.register.entries.get(room).into_iter().flatten();
        let users = fields.filter_map(|(field, _)| field.strip_prefix(&tag).map(str::to_owned));
        for user in users.filter(|user| !kept.contains(user)).collect::<Vec<_>>() {
            self.leave_user(room, instance, &user);
        }
    }

    fn occupy(&mut self, room: &str, instance: &str) {
        self.register.occupied.entry(instance.to_owned()).or_default().insert(room.to_owned());
        self.register.registry.entry(instance.to_owned()).or_insert(self.now);
    }

    fn vacate(&mut self, room: &str, instance: &str) {
        if let Some(rooms) = self.register.occupied.get_mut(instance) {
            rooms.remove(room);
            if rooms.is_empty() {
                self.register.occupied.remove(instance);
            }
        }
    }

    /// True when none of the instance's members are left.
    fn clear(&mut self, instance: &str) -> bool {
        self.register.sessions.remove(instance);
        let rooms = self.register.occupied.get(instance).into_iter().flatten();
        for room in rooms.take(ROOMS_PER_CALL).cloned().collect::<Vec<_>>() {
            self.leave_all_but(&room, instance, &BTreeSet::new());
            self.vacate(&room, instance);
        }
        !self.register.occupied.contains_key(instance)
    }

    fn count_and_list(&self, room: &str, wanted: bool) -> Reply {
        let entries = self.register.entries.get(room).filter(|_| wanted);
        let list = entries.into_iter().flatten().map(|(_, member)| Reply::Bulk(member.clone())).collect();
        Reply::List(vec![Reply::Number(self.count(room) as i64), Reply::List(list), self.last_change(room)])
    }

    /// The instance has registered over a later connection, or as another process.
    fn is_outdated(&self, instance: &str) -> bool {
        let origin: String =
            self.arguments[3][5..13].iter().rev().map(|byte| format!("{byte:02x}")).collect();
        self.register.is_outdated(instance, &origin, self.number(4))
    }

    fn join(&mut self) -> Reply {
        let (room, instance) = (self.text(5), self.text(6));
        if self.text(9) == "1" {
            if self.is_outdated(&instance) {
                return Reply::Error(OUTDATED);
            }
            let member = self.arguments[8].clone();
            self.enter(&room, &instance, &self.text(7), &member, false);
            self.occupy(&room, &instance);
        }
        self.note_told(&room);
        self.count_and_list(&room, self.text(10) == "1")
    }

    fn leave(&mut self) -> Reply {
        let (room, instance) = (self.text(5), self.text(6));
        if self.is_outdated(&instance) {
            return Reply::Error(OUTDATED);
        }
        self.leave_user(&room, &instance, &self.text(7));
        if self.text(8) == "1" {
            self.vacate(&room, &instance);
        }
        Reply::Number(0)
    }

    fn restore(&mut self) -> Reply {
        let (room, instance, held) = (self.text(5), self.text(6), self.number(7) as usize);
        if self.is_outdated(&instance) {
            return Reply::Error(OUTDATED);
        }
        let present: Vec<_> =
            self.arguments[8..].chunks(2).map(|pair| (pair[0].clone(), pair[1].clone())).collect();
        let name = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
        let kept = present.iter().map(|(user, _)| name(user)).collect();
        let before = self.last_change(&room);
        self.leave_all_but(&room, &instance, &kept);
        let quiet = if self.is_untold(&room) { held } else { 0 };
        for (place, (user, member)) in present.iter().enumerate() {
            self.enter(&room, &instance, &name(user), member, place < quiet);
        }
        if present.is_empty() {
            self.vacate(&room, &instance);
        } else {
            self.occupy(&room, &instance);
        }
        Reply::List(vec![before, self.last_change(&room)])
    }

    fn register(&mut self) -> Reply {
        let (instance, origin, threshold) = (self.text(5), self.text(6), self.number(8));
        let entry = self.register.boots.get(&instance).cloned();
        let mut known = false;
        if let Some((holder, interval)) = entry.as_deref().and_then(|entry| entry.split_once(' ')) {
            known = holder == origin;
            if known && self.is_outdated(&instance) {
                return Reply::Error(OUTDATED);
            }
            if !known {
                let seen = self.register.registry.get(&instance).copied().unwrap_or(0);
                let interval = interval.split(' ').next().unwrap_or_default();
                let grace = interval.parse::<u64>().unwrap_or(0) * 5 / 2;
                let age = self.now.saturating_sub(seen);
                if age < grace {
                    let list = [String::from("held"), age.to_string(), grace.to_string()];
                    return Reply::List(list.iter().map(|text| Reply::text(text)).collect());
                }
            }
        }
        if !known && (entry.is_some() || self.text(9) == "1") && !self.clear(&instance) {
            return Reply::List(vec![Reply::text("clearing")]);
        }
        if self.register.registry.is_empty() {
            self.register.told = Some((BTreeSet::from([String::new()]), self.now + threshold));
        }
        self.register.boots.insert(instance.clone(), format!("{origin} {} {}", self.text(7), self.text(4)));
        self.register.registry.insert(instance, self.now);
        let mut answer = vec![Reply::text(if known { "known" } else { "new" })];
        let alive = self.register.registry.iter().filter(|(_, seen)| **seen + threshold >= self.now);
        answer.extend(alive.map(|(name, _)| Reply::text(name)));
        Reply::List(answer)
    }

    fn reap(&mut self) -> Reply {
        let threshold = self.number(5);
        let is_silent = |(_, seen): &(&String, &Ms)| **seen + threshold <= self.now;
        let silent = self.register.registry.iter().filter(is_silent).min_by_key(|(_, seen)| **seen);
        let Some(silent) = silent.map(|(name, _)| name.clone()) else { return Reply::text("") };
        self.register.boots.remove(&silent);
        if self.clear(&silent) {
            self.register.registry.remove(&silent);
        }
        Reply::text(&silent)
    }

    fn unregister(&mut self) -> Reply {
        let (instance, origin) = (self.text(5), self.text(6));
        let entry = self.register.boots.get(&instance);
        if entry.is_some_and(|entry| !entry.starts_with(&format!("{origin} "))) {
            return Reply::Number(1);
        }
        if !self.clear(&instance) {
            return Reply::Number(0);
        }
        self.register.boots.remove(&instance);
        self.register.registry.remove(&instance);
        Reply::Number(1)
    }
}
