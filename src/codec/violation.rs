//! What a client can do against RFC 6455 or the limits, and how the connection ends for it.

use super::close::CloseCode;

/// The first thing in a connection's bytes that was against the protocol or a limit. Its text is the
/// close frame's reason: what was wrong, and what would be right.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Violation {
    /// Section 5.1: a server must close on an unmasked frame.
    #[error("frame not masked: a client masks every frame")]
    Unmasked,
    /// Section 5.2: no extension that gives these bits a meaning here was agreed on (RFC 7692 section 6).
    #[error("reserved bit set: clear them, but for RSV1 on a compressed message's first frame if agreed on")]
    ReservedBits,
    /// Section 5.2.
    #[error("opcode unknown: use 0 to 2 or 8 to 10")]
    ReservedOpcode,
    /// Section 5.5.
    #[error("control frame in fragments: send it in one frame")]
    FragmentedControl,
    /// Section 5.5.
    #[error("control frame with {0} bytes: at most 125")]
    ControlTooLong(u64),
    /// Section 5.2: the shortest form of the length must be used.
    #[error("length of {0} in a longer form than needed: use the shortest")]
    LengthNotMinimal(u64),
    /// Section 5.4.
    #[error("continuation of nothing: begin a message with text or binary")]
    StrayContinuation,
    /// Section 5.4.
    #[error("new message inside a fragmented one: finish that first")]
    InterleavedMessage,
    /// Section 5.5.1.
    #[error("close frame with 1 byte: send none, or a code of 2 bytes")]
    CloseOfOneByte,
    /// Section 7.4.
    #[error("close code {0}: use 1000 or 3000 to 4999")]
    CloseCode(u16),
    /// Section 5.5.1.
    #[error("close reason is not UTF-8: send valid UTF-8")]
    CloseReasonNotUtf8,
    /// Section 8.1.
    #[error("text is not UTF-8: send valid UTF-8")]
    TextNotUtf8,
    /// RFC 7692 section 7.2.2.
    #[error("compressed message is not whole DEFLATE data: send it as RFC 7692 says")]
    NotDeflate,
    /// More fragments than [`super::message::MessageLimits::fragments`].
    #[error("message in too many fragments: at most {limit}")]
    TooManyFragments {
        /// Fragments allowed.
        limit: u32,
    },
    /// More bytes than [`super::message::MessageLimits::message_bytes`], announced by a header or
    /// found when it was expanded.
    #[error("message too big: at most {limit} bytes")]
    MessageTooBig {
        /// Bytes allowed.
        limit: usize,
    },
}

impl Violation {
    /// The code to close the connection with.
    pub fn close_code(self) -> CloseCode {
        match self {
            Self::Unmasked
            | Self::ReservedBits
            | Self::ReservedOpcode
            | Self::FragmentedControl
            | Self::ControlTooLong(_)
            | Self::LengthNotMinimal(_)
            | Self::StrayContinuation
            | Self::InterleavedMessage
            | Self::CloseOfOneByte
            | Self::CloseCode(_) => CloseCode::ProtocolError,
            Self::CloseReasonNotUtf8 | Self::TextNotUtf8 | Self::NotDeflate => CloseCode::InvalidUtf8,
            Self::TooManyFragments { .. } => CloseCode::PolicyViolation,
            Self::MessageTooBig { .. } => CloseCode::MessageTooBig,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::codec::frame::CLOSE_REASON_BYTES;

    #[test]
    fn longest_texts_fit_a_close_frame() {
        for violation in [
            Violation::LengthNotMinimal(u64::MAX),
            Violation::ControlTooLong(u64::MAX),
            Violation::MessageTooBig { limit: usize::MAX },
            Violation::TooManyFragments { limit: u32::MAX },
            Violation::InterleavedMessage,
            Violation::StrayContinuation,
            Violation::ReservedBits,
            Violation::NotDeflate,
        ] {
            assert!(violation.to_string().len() <= CLOSE_REASON_BYTES, "{violation}");
        }
    }
}
