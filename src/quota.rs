//! Limits that all shards keep together: fixed tables of atomics, so that nothing is locked and no peer makes
//! them grow.
//!
//! A user, an address or a room has a [`Place`]: one cell in each of two rows, by a hash with a seed of this process.
//! Others may share one of its cells, hardly ever both with the same one, so the cell with the smaller burden speaks
//! for it: a limit is never exceeded by more than what the shards let through in the same instant, and nobody pays for
//! a stranger unless strangers have filled both cells.

use std::hash::BuildHasher;
use std::net::IpAddr;
use std::num::NonZeroU32;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering::Relaxed};

use foldhash::quality::RandomState;

use crate::config::LimitSettings;

/// Cells in a row: few of them are shared by two of a full instance's busy users, and a row of rates has 512 KiB.
const CELLS: usize = 1 << 16;

const NS_PER_SECOND: u64 = 1_000_000_000;

/// So many messages (or bytes, or joins) per second, and how many at once.
#[derive(Clone, Copy, Debug)]
pub struct Rate {
    per_second: u64,
    burst: u64,
}

impl Rate {
    /// A rate with its burst; `None` where `per_second` is 0, which means no limit.
    pub fn new(per_second: u32, burst: u64) -> Option<Self> {
        let per_second = u64::from(per_second);
        (per_second > 0).then_some(Self { per_second, burst: burst.max(1) })
    }

    /// A rate that lets two seconds' worth through at once.
    fn plain(per_second: u32) -> Option<Self> {
        Self::new(per_second, 2 * u64::from(per_second))
    }

    /// Nanoseconds in which `amount` is earned.
    fn span(self, amount: u64) -> u64 {
        amount.saturating_mul(NS_PER_SECOND) / self.per_second
    }

    /// Takes `amount` at the time `now_ms` from a bucket whose content is `paid`: the time, in nanoseconds, up to
    /// which everything taken so far is paid for (the generic cell rate algorithm). 0 is a full bucket. Returns the
    /// new content.
    ///
    /// # Errors
    /// Milliseconds until there is enough again.
    pub fn take(self, paid: u64, amount: u64, now_ms: u64) -> Result<u64, u64> {
        let now = now_ms.saturating_mul(1_000_000);
        let after = paid.max(now).saturating_add(self.span(amount));
        match after.checked_sub(now.saturating_add(self.span(self.burst))) {
            None | Some(0) => Ok(after),
            Some(short) => Err(short.div_ceil(1_000_000)),
        }
    }
}

/// A bucket that all shards take from.
#[derive(Debug, Default)]
struct Bucket(AtomicU64);

impl Bucket {
    fn take(&self, rate: Rate, now_ms: u64) -> Result<(), u64> {
        let mut refused = 0;
        let taken = self.0.fetch_update(Relaxed, Relaxed, |paid| {
            rate.take(paid, 1, now_ms).map_err(|wait| refused = wait).ok()
        });
        taken.map(drop).map_err(|_| refused)
    }
}

/// Where something with a name stands in every table. Small, because connections keep theirs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Place(NonZeroU32);

const _: () = assert!(size_of::<Option<Place>>() == 4, "there is one per connection");

impl Place {
    fn cells(self) -> [usize; 2] {
        [(self.0.get() & 0xffff) as usize, (self.0.get() >> 16) as usize]
    }
}

fn rows<T: Default>() -> [Box<[T]>; 2] {
    [0; 2].map(|_| (0..CELLS).map(|_| T::default()).collect())
}

/// One bucket for each place. The rate may change; its table is there from the first time that there is one.
#[derive(Debug, Default)]
struct Rates {
    per_second: AtomicU32,
    rows: OnceLock<[Box<[Bucket]>; 2]>,
}

impl Rates {
    fn adopt(&self, per_second: u32) {
        if per_second > 0 {
            self.rows.get_or_init(rows);
        }
        self.per_second.store(per_second, Relaxed);
    }

    fn are_limited(&self) -> bool {
        self.per_second.load(Relaxed) > 0
    }

    fn take(&self, place: Place, now_ms: u64) -> Result<(), u64> {
        let Some(rate) = Rate::plain(self.per_second.load(Relaxed)) else { return Ok(()) };
        let rows = self.rows.get_or_init(rows);
        let outcomes = [0, 1].map(|row| rows[row][place.cells()[row]].take(rate, now_ms));
        match outcomes {
            [Err(one), Err(other)] => Err(one.min(other)),
            _ => Ok(()),
        }
    }
}

/// How many are there, for each place. Whoever has a place is counted, whether there is a limit or not, so that a
/// limit may come and go.
#[derive(Debug, Default)]
struct Counts {
    most: AtomicU32,
    rows: OnceLock<[Box<[AtomicU32]>; 2]>,
}

impl Counts {
    fn enter(&self, place: Place) -> bool {
        let rows = self.rows.get_or_init(rows);
        let [one, other] = [0, 1].map(|row| rows[row][place.cells()[row]].fetch_add(1, Relaxed));
        let most = self.most.load(Relaxed);
        let fits = most == 0 || one.min(other) < most;
        if !fits {
            self.leave(place);
        }
        fits
    }

    fn leave(&self, place: Place) {
        for (row, cell) in self.rows.get_or_init(rows).iter().zip(place.cells()) {
            row[cell].fetch_sub(1, Relaxed);
        }
    }
}

/// What all shards of an instance count together.
#[derive(Debug, Default)]
pub struct Quotas {
    seed: RandomState,
    spare_loopback: AtomicBool,
    connections: Counts,
    address_messages: Rates,
    user_messages: Rates,
    room_messages: Rates,
    accepts_per_second: AtomicU32,
    accepts: Bucket,
    global_per_second: AtomicU32,
    /// Among how many instances the global rate is shared; 0 before that is known.
    instances: AtomicU32,
    global: Bucket,
}

impl Quotas {
    /// Tables for the limits that `settings` set; the others cost nothing.
    pub fn new(settings: &LimitSettings) -> Self {
        let quotas = Self::default();
        quotas.adopt(settings);
        quotas
    }

    /// The limits are others from now on. What has been counted so far counts on.
    pub fn adopt(&self, settings: &LimitSettings) {
        self.spare_loopback.store(settings.spare_loopback, Relaxed);
        self.connections.most.store(settings.max_connections_per_address, Relaxed);
        self.address_messages.adopt(settings.address_message_rate);
        self.user_messages.adopt(settings.user_message_rate);
        self.room_messages.adopt(settings.room_message_rate);
        self.accepts_per_second.store(settings.accept_rate, Relaxed);
        self.global_per_second.store(settings.global_message_rate, Relaxed);
    }

    fn place(&self, name: impl std::hash::Hash) -> Place {
        Place(NonZeroU32::new(self.seed.hash_one(name) as u32).unwrap_or(NonZeroU32::MIN))
    }

    /// Where the clients of `address` stand. All addresses of an IPv6 network of 64 bits are one client's
    /// (RFC 6177). `None` where addresses do not matter, or this one does not.
    pub fn place_of(&self, address: IpAddr) -> Option<Place> {
        if self.spare_loopback.load(Relaxed) && address.is_loopback() {
            return None;
        }
        self.counts_addresses().then(|| match address.to_canonical() {
            IpAddr::V4(address) => self.place(address),
            IpAddr::V6(address) => self.place(&address.octets()[..8]),
        })
    }

    /// Whether any limit is kept by address.
    pub fn counts_addresses(&self) -> bool {
        self.connections.most.load(Relaxed) > 0 || self.address_messages.are_limited()
    }

    /// One more connection from the address; false when there are as many as may be. Each that was let in must
    /// [`Quotas::leave`].
    pub fn enter(&self, place: Place) -> bool {
        self.connections.enter(place)
    }

    /// A connection that was let in has gone.
    pub fn leave(&self, place: Place) {
        self.connections.leave(place);
    }

    /// One more accepted socket.
    ///
    /// # Errors
    /// Milliseconds until one is welcome again.
    pub fn accept(&self, now_ms: u64) -> Result<(), u64> {
        let rate = Rate::plain(self.accepts_per_second.load(Relaxed));
        rate.map_or(Ok(()), |rate| self.accepts.take(rate, now_ms))
    }

    /// One more message of a user, from an address.
    ///
    /// # Errors
    /// Milliseconds until one is welcome again.
    pub fn message(&self, user: Option<&str>, address: Option<Place>, now_ms: u64) -> Result<(), u64> {
        if let Some(user) = user.filter(|_| self.user_messages.are_limited()) {
            self.user_messages.take(self.place(user), now_ms)?;
        }
        address.map_or(Ok(()), |place| self.address_messages.take(place, now_ms))
    }

    /// Whether any limit is kept by room or for the cluster.
    pub fn counts_publications(&self) -> bool {
        self.room_messages.are_limited() || self.global_per_second.load(Relaxed) > 0
    }

    /// One more message to others: to a room, or to users.
    ///
    /// # Errors
    /// Milliseconds until one is welcome again.
    pub fn publication(&self, room: Option<&str>, now_ms: u64) -> Result<(), u64> {
        if let Some(room) = room.filter(|_| self.room_messages.are_limited()) {
            self.room_messages.take(self.place(room), now_ms)?;
        }
        let per_second = self.global_per_second.load(Relaxed);
        if per_second == 0 {
            return Ok(());
        }
        let share = (per_second / self.instances.load(Relaxed).max(1)).max(1);
        Rate::plain(share).map_or(Ok(()), |rate| self.global.take(rate, now_ms))
    }

    /// The cluster has so many live instances, this one included: each has an equal share of the global rate.
    /// Whoever cannot reach the others keeps the share that it had.
    pub fn share_among(&self, instances: u64) {
        self.instances.store(u32::try_from(instances).unwrap_or(u32::MAX).max(1), Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn quotas(change: impl FnOnce(&mut LimitSettings)) -> Quotas {
        let mut settings = LimitSettings::none();
        change(&mut settings);
        Quotas::new(&settings)
    }

    fn address(text: &str) -> IpAddr {
        text.parse().unwrap()
    }

    #[test]
    fn a_bucket_gives_its_burst_and_then_the_rate() {
        let rate = Rate::new(10, 2).unwrap();
        let paid = rate.take(rate.take(0, 1, 5_000).unwrap(), 1, 5_000).unwrap();
        assert_eq!(rate.take(paid, 1, 5_000), Err(100));
        assert_eq!(rate.take(paid, 1, 5_099), Err(1));
        let paid = rate.take(paid, 1, 5_100).unwrap();
        assert_eq!(rate.take(paid, 1, 5_100), Err(100));
        let paid = rate.take(paid, 2, 60_000).unwrap();
        assert_eq!(rate.take(paid, 1, 60_000), Err(100), "no more than a burst is saved up");
        assert_eq!(rate.take(0, 3, 60_000), Err(100), "more than a burst never fits");
        assert!(Rate::new(0, 5).is_none());
    }

    #[test]
    fn connections_are_counted_per_address_and_come_back() {
        let quotas = quotas(|settings| settings.max_connections_per_address = 2);
        let place = quotas.place_of(address("192.0.2.1")).unwrap();
        assert_eq!(quotas.place_of(address("::ffff:192.0.2.1")), Some(place), "the same client");
        assert!(quotas.enter(place) && quotas.enter(place));
        assert!(!quotas.enter(place) && !quotas.enter(place));
        let other = quotas.place_of(address("192.0.2.2")).unwrap();
        assert!(quotas.enter(other));
        quotas.leave(place);
        assert!(quotas.enter(place) && !quotas.enter(place));
    }

    #[test]
    fn limits_come_and_go_and_what_was_counted_stays_counted() {
        let mut settings = LimitSettings { address_message_rate: 5, ..LimitSettings::none() };
        let quotas = Quotas::new(&settings);
        let place = quotas.place_of(address("192.0.2.1")).unwrap();
        assert!((0..3).all(|_| quotas.enter(place)), "no limit");
        settings.max_connections_per_address = 3;
        settings.user_message_rate = 1;
        quotas.adopt(&settings);
        assert!(!quotas.enter(place), "the three from before count");
        assert_eq!([(); 2].map(|()| quotas.message(Some("a"), None, 1_000)), [Ok(()); 2]);
        assert!(quotas.message(Some("a"), None, 1_000).is_err());
        quotas.leave(place);
        assert!(quotas.enter(place));
        quotas.adopt(&LimitSettings::none());
        assert_eq!(quotas.place_of(address("192.0.2.1")), None);
        assert!(quotas.message(Some("a"), Some(place), 1_000).is_ok());
        (0..3).for_each(|_| quotas.leave(place));
        quotas.adopt(&settings);
        assert!((0..3).all(|_| quotas.enter(place)) && !quotas.enter(place), "all have gone");
    }

    #[test]
    fn a_network_of_64_bits_is_one_client() {
        let quotas = quotas(|settings| settings.max_connections_per_address = 1);
        let place = |text| quotas.place_of(address(text)).unwrap();
        assert_eq!(place("2001:db8:1:2::1"), place("2001:db8:1:2:ffff::9"));
        assert_ne!(place("2001:db8:1:2::1"), place("2001:db8:1:3::1"));
    }

    #[test]
    fn a_crowd_of_addresses_keeps_nobody_out() {
        let quotas = quotas(|settings| settings.max_connections_per_address = 20);
        let refused = (0..100_000_u32)
            .filter(|n| !quotas.enter(quotas.place_of(IpAddr::from((n + (10 << 24)).to_be_bytes())).unwrap()))
            .count();
        assert_eq!(refused, 0);
    }

    #[test]
    fn loopback_is_spared_where_the_settings_say_so() {
        let spared = quotas(|settings| {
            settings.max_connections_per_address = 1;
            settings.spare_loopback = true;
        });
        assert_eq!(spared.place_of(address("127.0.0.9")), None);
        assert_eq!(spared.place_of(address("::1")), None);
        assert!(spared.place_of(address("10.0.0.1")).is_some());
        assert_eq!(quotas(|_| ()).place_of(address("10.0.0.1")), None, "no limit, no place");
    }

    #[test]
    fn users_addresses_and_rooms_have_their_rates_side_by_side() {
        let quotas = quotas(|settings| {
            settings.user_message_rate = 1;
            settings.address_message_rate = 2;
            settings.room_message_rate = 1;
        });
        let place = quotas.place_of(address("192.0.2.1"));
        let user = |name| quotas.message(Some(name), place, 1_000);
        assert_eq!([user("a"), user("a"), user("a")], [Ok(()), Ok(()), Err(1_000)]);
        assert_eq!([user("b"), user("b"), user("c")], [Ok(()), Ok(()), Err(500)], "the address has its own");
        let room = |name| quotas.publication(Some(name), 1_000);
        assert_eq!([room("r"), room("r"), room("r"), room("s")], [Ok(()), Ok(()), Err(1_000), Ok(())]);
    }

    #[test]
    fn the_global_rate_is_shared_among_the_instances() {
        let quotas = quotas(|settings| settings.global_message_rate = 10);
        let passed = |now| (0..100).filter(|_| quotas.publication(None, now).is_ok()).count();
        assert_eq!(passed(1_000), 20);
        quotas.share_among(5);
        assert_eq!(passed(100_000), 4);
        quotas.share_among(1_000);
        assert_eq!(passed(200_000), 2, "never nothing at all");
    }

    #[test]
    fn accepts_have_a_rate() {
        let quotas = quotas(|settings| settings.accept_rate = 5);
        assert_eq!((0..50).filter(|_| quotas.accept(1_000).is_ok()).count(), 10);
        assert_eq!(quotas.accept(1_000), Err(200));
        assert!(quotas.accept(1_200).is_ok());
    }
}
