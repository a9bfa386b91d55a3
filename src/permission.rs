//! What a user may do in a room: four rights, and sets of them.

/// One thing that a user may do in a room, as the `rooms` claim of a token names it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RoomRight {
    /// Be a member and receive messages.
    Join,
    /// Send messages.
    Publish,
    /// Read messages sent before.
    History,
    /// See who is in the room.
    Members,
}

impl RoomRight {
    /// Every right.
    pub const ALL: [Self; 4] = [Self::Join, Self::Publish, Self::History, Self::Members];

    /// The name in tokens and settings.
    pub fn name(self) -> &'static str {
        match self {
            Self::Join => "join",
            Self::Publish => "publish",
            Self::History => "history",
            Self::Members => "members",
        }
    }

    /// The right that `name` names.
    pub fn parse(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|right| right.name() == name)
    }
}

/// A set of rights in one byte.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct RoomRights(u8);

impl RoomRights {
    /// No right.
    pub const NONE: Self = Self(0);
    /// Every right.
    pub const ALL: Self = Self(0b1111);

    /// Whether `right` is in the set.
    pub fn contains(self, right: RoomRight) -> bool {
        self.0 & (1 << right as u8) != 0
    }

    /// The set with `right` in it.
    #[must_use]
    pub fn with(self, right: RoomRight) -> Self {
        Self(self.0 | 1 << right as u8)
    }

    /// Reads a comma-separated list of names; an unknown name or an empty list gives `None`.
    pub fn parse_list(list: &str) -> Option<Self> {
        list.split(',').try_fold(Self::NONE, |set, name| Some(set.with(RoomRight::parse(name.trim())?)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn all_is_every_right_and_a_list_is_only_what_it_names() {
        let all = RoomRight::ALL.into_iter().fold(RoomRights::NONE, RoomRights::with);
        assert_eq!(all, RoomRights::ALL);
        let some = RoomRights::parse_list("join, history").unwrap();
        assert!(some.contains(RoomRight::Join) && some.contains(RoomRight::History));
        assert!(!some.contains(RoomRight::Publish) && !some.contains(RoomRight::Members));
    }

    #[test]
    fn a_list_with_an_unknown_name_is_no_list() {
        for wrong in ["", "join,", "Join", "join;publish", "joined"] {
            assert_eq!(RoomRights::parse_list(wrong), None, "{wrong:?}");
        }
    }
}
