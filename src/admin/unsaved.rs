//! Changes of bans that Redis has not confirmed: each is kept until it has.

use std::collections::HashMap;

use crate::ban::{Ban, Bans};
use crate::identity::UserId;
use crate::limits;

/// Users whose changes are kept; as many as there may be bans.
const USERS: usize = limits::BANS;

/// A user's ban as it is to be in Redis.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Change {
    /// The user.
    pub user: UserId,
    /// The ban; nothing when it has ended.
    pub ban: Option<Ban>,
    /// Tells it from the user's earlier and later changes.
    pub number: u64,
}

/// What Redis is to be told, and what it has been told without an answer so far.
#[derive(Debug, Default)]
pub struct Unsaved {
    /// By user: the newest change, and whether it is under way to Redis.
    changes: HashMap<UserId, (Change, bool)>,
    newest: u64,
}

impl Unsaved {
    /// Keeps a change in place of the user's earlier one. False when too many are kept already.
    pub fn add(&mut self, user: &UserId, ban: Option<&Ban>) -> bool {
        if self.changes.len() >= USERS && !self.changes.contains_key(user) {
            return false;
        }
        self.newest += 1;
        let change = Change { user: user.clone(), ban: ban.cloned(), number: self.newest };
        self.changes.insert(user.clone(), (change, false));
        true
    }

    /// Whether a change of the user's ban is kept.
    pub fn has(&self, user: &UserId) -> bool {
        self.changes.contains_key(user)
    }

    /// The changes that are not under way, which they are from now on.
    pub fn begin(&mut self) -> Vec<Change> {
        let waiting = self.changes.values_mut().filter(|(_, under_way)| !under_way);
        let mut begun: Vec<_> = waiting
            .map(|(change, under_way)| {
                *under_way = true;
                change.clone()
            })
            .collect();
        begun.sort_unstable_by_key(|change| change.number);
        begun
    }

    /// The user's change is under way from now on, if there is one that is not.
    pub fn begin_of(&mut self, user: &UserId) -> Option<Change> {
        let (change, under_way) = self.changes.get_mut(user)?;
        (!std::mem::replace(under_way, true)).then(|| change.clone())
    }

    /// Redis has carried out the user's change of that number.
    pub fn saved(&mut self, user: &UserId, number: u64) {
        if self.changes.get(user).is_some_and(|(change, _)| change.number == number) {
            self.changes.remove(user);
        }
    }

    /// Redis did not carry out the user's change of that number: it waits again.
    pub fn postponed(&mut self, user: &UserId, number: u64) {
        if let Some((change, under_way)) = self.changes.get_mut(user) {
            *under_way &= change.number != number;
        }
    }

    /// The connection is lost: nobody knows what of the changes under way has arrived, so they wait again.
    pub fn interrupted(&mut self) {
        self.changes.values_mut().for_each(|(_, under_way)| *under_way = false);
    }

    /// Makes a list that was read from Redis what it will be with these changes.
    pub fn apply(&self, bans: &mut Bans) {
        for (user, (change, _)) in &self.changes {
            match &change.ban {
                Some(ban) => {
                    bans.add(user.clone(), ban.clone(), 0);
                }
                None => {
                    bans.remove(user.as_str());
                }
            }
        }
    }

    /// Whether Redis has confirmed everything.
    pub fn is_empty(&self) -> bool {
        self.changes.is_empty()
    }

    /// Users whose changes are kept.
    pub fn len(&self) -> usize {
        self.changes.len()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn user(name: &str) -> UserId {
        UserId::parse(name).unwrap()
    }

    fn ban(until_ms: u64) -> Ban {
        Ban { until_ms, reason: String::new() }
    }

    #[test]
    fn a_change_is_kept_until_it_is_confirmed() {
        let mut unsaved = Unsaved::default();
        assert!(unsaved.add(&user("ann"), Some(&ban(5))) && unsaved.add(&user("bob"), None));
        let begun = unsaved.begin();
        assert_eq!(begun.iter().map(|change| change.user.as_str()).collect::<Vec<_>>(), ["ann", "bob"]);
        assert_eq!(unsaved.begin(), []);
        unsaved.postponed(&user("ann"), begun[0].number);
        assert_eq!(unsaved.begin(), begun[..1]);
        unsaved.interrupted();
        assert_eq!(unsaved.begin(), begun);
        for change in &begun {
            unsaved.saved(&change.user, change.number);
        }
        assert!(unsaved.is_empty());
    }

    #[test]
    fn the_answer_to_an_earlier_change_says_nothing_about_the_newest() {
        let mut unsaved = Unsaved::default();
        unsaved.add(&user("ann"), Some(&ban(5)));
        let earlier = unsaved.begin_of(&user("ann")).unwrap();
        unsaved.add(&user("ann"), None);
        unsaved.saved(&user("ann"), earlier.number);
        assert_eq!(unsaved.len(), 1);
        let newest = unsaved.begin_of(&user("ann")).unwrap();
        assert_eq!(newest.ban, None);
        unsaved.postponed(&user("ann"), earlier.number);
        assert_eq!(unsaved.begin_of(&user("ann")), None, "the newest is still under way");
        assert!(unsaved.has(&user("ann")));
    }

    #[test]
    fn a_list_from_redis_does_not_undo_what_redis_has_not_heard() {
        let mut unsaved = Unsaved::default();
        unsaved.add(&user("ann"), Some(&ban(5)));
        unsaved.add(&user("bob"), None);
        let mut bans = Bans::default();
        bans.add(user("bob"), ban(7), 0);
        bans.add(user("eve"), ban(9), 0);
        unsaved.apply(&mut bans);
        let until = |name| bans.of(name, 0).map(|ban| ban.until_ms);
        assert_eq!((until("ann"), until("bob"), until("eve")), (Some(5), None, Some(9)));
    }
}
