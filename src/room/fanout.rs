//! THE hot loop: one encoded frame to every member of a room's slice.

/// A member as the hot loop sees it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SliceMember {
    /// The connection's slot on this shard.
    pub slot: u32,
    /// Whether the connection wants its own messages back.
    pub echo: bool,
    /// Bits of the window with which it expands compressed frames; 0 when it takes plain ones only.
    pub window: u8,
}

/// Members of a slice from which a message to them is more than one flush can send, so that those of other rooms go
/// first: as many as the sends of a flush.
pub const CROWD: usize = 512;

/// Calls `deliver` with every member but `sender`, who gets the message only when it
/// joined with `echo`. Returns how many there were.
#[inline]
pub fn fan_out(members: &[SliceMember], sender: Option<u32>, mut deliver: impl FnMut(&SliceMember)) -> u64 {
    let mut left_out = 0;
    for member in members {
        if Some(member.slot) == sender && !member.echo {
            left_out = 1;
        } else {
            deliver(member);
        }
    }
    members.len() as u64 - left_out
}

#[cfg(test)]
mod tests {
    use super::*;

    fn heard(members: &[SliceMember], sender: Option<u32>) -> (u64, Vec<u32>) {
        let mut slots = Vec::new();
        let count = fan_out(members, sender, |member| slots.push(member.slot));
        (count, slots)
    }

    #[test]
    fn everyone_but_the_sender_hears_unless_it_wants_an_echo() {
        let member = |slot, echo| SliceMember { slot, echo, window: 0 };
        let members = [member(4, false), member(7, true), member(9, false)];
        assert_eq!(heard(&members, None), (3, vec![4, 7, 9]));
        assert_eq!(heard(&members, Some(4)), (2, vec![7, 9]));
        assert_eq!(heard(&members, Some(7)), (3, vec![4, 7, 9]));
    }
}
