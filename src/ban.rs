//! Users who may not be connected for a while.

use std::collections::HashMap;

use crate::identity::UserId;
use crate::limits;

/// One ban.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Ban {
    /// When it ends, in milliseconds since 1970.
    pub until_ms: u64,
    /// What the user is told.
    pub reason: String,
}

impl Ban {
    /// As Redis keeps it: `until_ms`, a space, the reason.
    pub fn encode(&self) -> String {
        format!("{} {}", self.until_ms, self.reason)
    }

    /// Reads what [`Ban::encode`] wrote.
    pub fn decode(text: &str) -> Option<Self> {
        let (until, reason) = text.split_once(' ')?;
        Some(Self { until_ms: until.parse().ok()?, reason: reason.to_owned() })
    }
}

/// All bans. Threads share a list and replace it when it changes.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Bans(HashMap<UserId, Ban>);

impl Bans {
    /// The user's ban at `now_ms` (milliseconds since 1970), if there is one.
    pub fn of(&self, user: &str, now_ms: u64) -> Option<&Ban> {
        self.0.get(user).filter(|ban| now_ms < ban.until_ms)
    }

    /// Adds a ban in place of the user's earlier one. False when there are [`limits::BANS`] already.
    pub fn add(&mut self, user: UserId, ban: Ban, now_ms: u64) -> bool {
        if self.0.len() >= limits::BANS && !self.0.contains_key(&user) {
            self.0.retain(|_, ban| now_ms < ban.until_ms);
            if self.0.len() >= limits::BANS {
                return false;
            }
        }
        self.0.insert(user, ban);
        true
    }

    /// Ends a ban. Returns whether there was one.
    pub fn remove(&mut self, user: &str) -> bool {
        self.0.remove(user).is_some()
    }

    /// All users with their bans.
    pub fn iter(&self) -> impl Iterator<Item = (&UserId, &Ban)> {
        self.0.iter()
    }

    /// Whether nobody is banned.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_ban_holds_until_its_end() {
        let mut bans = Bans::default();
        let user = UserId::parse("ann").unwrap();
        let ban = Ban { until_ms: 100, reason: "spam, again".into() };
        assert_eq!(Ban::decode(&ban.encode()), Some(ban.clone()));
        assert!(bans.add(user, ban.clone(), 0));
        assert_eq!(bans.of("ann", 99), Some(&ban));
        assert_eq!(bans.of("ann", 100), None);
        assert!(bans.remove("ann") && !bans.remove("ann"));
        assert_eq!(Ban::decode("soon"), None);
    }

    #[test]
    fn the_list_is_bounded_and_ended_bans_make_room() {
        let mut bans = Bans::default();
        let user = |n: usize| UserId::parse(&format!("u{n}")).unwrap();
        for n in 0..limits::BANS {
            assert!(bans.add(user(n), Ban { until_ms: 10 + (n as u64 % 2), reason: String::new() }, 0));
        }
        let late = Ban { until_ms: 50, reason: String::new() };
        assert!(!bans.add(user(limits::BANS), late.clone(), 9));
        assert!(bans.add(user(limits::BANS), late, 10));
    }
}
