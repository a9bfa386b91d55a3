//! What `history.lua` keeps in Redis and does there, operation by operation.

use std::collections::BTreeMap;

use super::pipe::Ms;
use super::register::{Publishes, Reply};

/// Milliseconds of one window in which messageIds are known.
const WINDOW_MS: Ms = 300_000;

/// Milliseconds for which a stream outlives its messages.
const EXPIRY_SLACK_MS: Ms = 1_000;

#[derive(Clone, Debug)]
struct Standing {
    epoch: Vec<u8>,
    offset: u64,
    primary: u64,
    last: Ms,
}

#[derive(Clone, Debug)]
pub(super) struct Entry {
    at: Ms,
    sender: Vec<u8>,
    pub(super) event: Vec<u8>,
}

#[derive(Clone, Debug, Default)]
struct Stream {
    entries: BTreeMap<u64, Entry>,
    expires: Ms,
}

/// The keys of the script.
#[derive(Clone, Debug, Default)]
pub(super) struct Ledger {
    standings: BTreeMap<String, Standing>,
    streams: BTreeMap<String, Stream>,
    sent: BTreeMap<(String, u64), BTreeMap<Vec<u8>, u64>>,
    calls: BTreeMap<String, u64>,
}

impl Ledger {
    /// The streams that `taken` names are gone.
    pub(super) fn evict(&mut self, mut taken: impl FnMut() -> bool) {
        self.streams.retain(|_, _| !taken());
    }

    /// Every room: name, epoch, offset, what is kept.
    pub(super) fn rooms(&self) -> impl Iterator<Item = (&str, u64, u64, Vec<(u64, &Entry)>)> {
        self.standings.iter().map(|(room, standing)| {
            let epoch = u64::from_le_bytes(standing.epoch[..].try_into().expect("an epoch has 8 bytes"));
            let kept = self.streams.get(room).into_iter().flat_map(|stream| &stream.entries);
            (room.as_str(), epoch, standing.offset, kept.map(|(offset, entry)| (*offset, entry)).collect())
        })
    }
}

/// One call.
pub(super) struct LedgerCall<'a> {
    pub(super) ledger: &'a mut Ledger,
    /// What follows the script and the number of keys.
    pub(super) arguments: &'a [Vec<u8>],
    pub(super) now: Ms,
    /// Who numbers.
    pub(super) primary: u64,
    /// Whether there is no memory left.
    pub(super) full: bool,
    pub(super) publishes: Publishes,
}

const FULL: &str = "OOM command not allowed when used memory > 'maxmemory'.";

impl LedgerCall<'_> {
    fn text(&self, at: usize) -> String {
        self.arguments.get(at).map(|bytes| String::from_utf8_lossy(bytes).into_owned()).unwrap_or_default()
    }

    fn number(&self, at: usize) -> u64 {
        self.text(at).parse().unwrap_or(0)
    }

    /// Runs it; the error is in Redis' words.
    pub(super) fn run(&mut self) -> Result<Reply, &'static str> {
        let now = self.now;
        self.ledger.streams.retain(|_, stream| stream.expires > now);
        match self.text(1).as_str() {
            "publish" => self.publish(),
            "read" => self.read(),
            "page" => self.page(),
            "positions" => {
                let rooms = self.arguments[2..].iter().map(|room| String::from_utf8_lossy(room).into_owned());
                let position = |room: String| match self.ledger.standings.get(&room) {
                    Some(at) => [Reply::Bulk(at.epoch.clone()), Reply::text(&at.offset.to_string())],
                    None => [Reply::text(""), Reply::text("")],
                };
                Ok(Reply::List(rooms.flat_map(position).collect()))
            }
            _ => Ok(Reply::text("")),
        }
    }

    /// The room's epoch and offset; begins an epoch when the numbering cannot be trusted any more.
    fn open(&mut self, room: &str, ttl: Ms, fresh: &[u8]) -> Result<(Vec<u8>, u64), &'static str> {
        let exists = self.ledger.streams.contains_key(room);
        let window = self.now / WINDOW_MS;
        let (offset, last) = match self.ledger.standings.get(room) {
            None => {
                self.ledger.streams.remove(room);
                self.ledger.sent.remove(&(room.to_owned(), window));
                self.ledger.sent.remove(&(room.to_owned(), window.wrapping_sub(1)));
                (0, 0)
            }
            Some(at) => {
                let lost = at.offset > 0 && self.now - at.last < ttl && !exists;
                if at.primary == self.primary && !lost {
                    return Ok((at.epoch.clone(), at.offset));
                }
                (at.offset, if exists { at.last } else { 0 })
            }
        };
        if self.full {
            return Err(FULL);
        }
        let standing = Standing { epoch: fresh.to_vec(), offset, primary: self.primary, last };
        self.ledger.standings.insert(room.to_owned(), standing);
        Ok((fresh.to_vec(), offset))
    }

    fn publish(&mut self) -> Result<Reply, &'static str> {
        let (number, begins, origin) = (self.number(2), self.text(3) == "1", self.text(4));
        let last = self.ledger.calls.get(&origin).copied().unwrap_or(0);
        if number <= last || !(begins || number == last + 1) {
            return Err("OUTOFORDER another call must come first");
        }
        if self.full {
            return Err(FULL);
        }
        self.ledger.calls.insert(origin, number);
        let (mut answers, mut at) = (Vec::new(), 9);
        while at < self.arguments.len() {
            let count = self.number(at + 1) as usize;
            self.store(at, count, &mut answers)?;
            at += 2 + 3 * count;
        }
        Ok(Reply::List(answers))
    }

    fn store(&mut self, at: usize, count: usize, answers: &mut Vec<Reply>) -> Result<(), &'static str> {
        let (room, head) = (self.text(at), self.arguments[5].clone());
        let (size, ttl, fresh) = (self.number(6) as usize, self.number(7), self.arguments[8].clone());
        let (epoch, mut offset) = self.open(&room, ttl, &fresh)?;
        let (window, first, now) = (self.now / WINDOW_MS, offset, self.now);
        let mut payload = head.clone();
        for message in self.arguments[at + 2..at + 2 + 3 * count].chunks(3) {
            let [name, sender, event] = message else { break };
            let known = |window: u64| self.ledger.sent.get(&(room.clone(), window))?.get(name).copied();
            let before = known(window).or_else(|| known(window.wrapping_sub(1))).filter(|_| !name.is_empty());
            if before.is_none() {
                offset += 1;
                let stream = self.ledger.streams.entry(room.clone()).or_default();
                let sender_of = [&head[5..13], sender].concat();
                stream.entries.insert(offset, Entry { at: now, sender: sender_of, event: event.clone() });
                while stream.entries.len() > size {
                    stream.entries.pop_first();
                }
                if !name.is_empty() {
                    self.ledger.sent.entry((room.clone(), window)).or_default().insert(name.clone(), offset);
                }
                payload.push(4);
                payload.extend_from_slice(&(event.len() as u32 + 24).to_le_bytes());
                payload.extend_from_slice(&epoch);
                payload.extend_from_slice(&offset.to_le_bytes());
                payload.extend_from_slice(sender);
                payload.extend_from_slice(event);
            }
            answers.push(Reply::Number(before.unwrap_or(offset) as i64));
        }
        if let Some(stream) = self.ledger.streams.get_mut(&room) {
            stream.expires = now + ttl + EXPIRY_SLACK_MS;
        }
        if offset > first {
            if let Some(standing) = self.ledger.standings.get_mut(&room) {
                (standing.offset, standing.last) = (offset, now);
            }
            self.publishes.push((format!("{}rooms:{room}", self.text(0)).into_bytes(), payload));
        }
        Ok(())
    }

    fn read(&mut self) -> Result<Reply, &'static str> {
        let (room, ttl, fresh) = (self.text(2), self.number(3), self.arguments[4].clone());
        let (after, most) = (self.number(5), self.number(6) as usize);
        let (epoch, offset) = self.open(&room, ttl, &fresh)?;
        let (mut bytes, mut cut, mut messages) = (0, 0, Vec::new());
        let stream = self.ledger.streams.get(&room);
        for number in (after + 1..=offset).rev().take_while(|_| most > 0) {
            let Some(entry) = stream.and_then(|stream| stream.entries.get(&number)) else { break };
            if self.now - entry.at >= ttl {
                break;
            }
            bytes += entry.event.len();
            if bytes > most {
                cut = 1;
                break;
            }
            messages.push(Reply::Number((self.now - entry.at) as i64));
            messages.extend([Reply::Bulk(entry.sender.clone()), Reply::Bulk(entry.event.clone())]);
        }
        let mut answer = vec![Reply::Bulk(epoch), Reply::text(&offset.to_string()), Reply::Number(cut)];
        answer.append(&mut messages);
        Ok(Reply::List(answer))
    }

    /// Nobody in a world asks for pages that do not fit into memory; those that Redis is asked for are empty of
    /// messages beyond the room's position.
    fn page(&mut self) -> Result<Reply, &'static str> {
        let (room, ttl, fresh) = (self.text(2), self.number(3), self.arguments[4].clone());
        let (epoch, offset) = self.open(&room, ttl, &fresh)?;
        Ok(Reply::List(vec![Reply::Bulk(epoch), Reply::text(&offset.to_string())]))
    }
}
