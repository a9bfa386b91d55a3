//! RESP3, Redis's protocol: bytes from the socket become values, however the stream was split.
//!
//! The grammar is the `redis` crate's own parser. It keeps its place when its reader has nothing more
//! for now, so it is fed through a reader that answers "would block" at the end of each chunk.

use std::io::{self, Read};

use redis::{Parser, PushKind, ServerError, Value};

/// What Redis sent.
#[derive(Debug, PartialEq)]
pub enum Inbound {
    /// The answer to the oldest command without one, an error included. SUBSCRIBE and UNSUBSCRIBE are
    /// answered by a push, which counts as their answer.
    Reply(Result<Value, ServerError>),
    /// A message published to a channel that this connection is subscribed to.
    Message {
        /// The channel.
        channel: Vec<u8>,
        /// What was published.
        payload: Vec<u8>,
    },
    /// A push of a kind that nobody here asked for.
    Other,
}

/// The bytes were not RESP3: the connection cannot be used any more.
#[derive(Debug, thiserror::Error)]
#[error("Redis sent something that is not RESP3: {0}")]
pub struct WireError(String);

/// Turns the bytes of one connection into values.
#[derive(Default)]
pub struct Decoder {
    parser: Parser,
}

impl Decoder {
    /// Takes the next bytes of the stream and gives each complete value to `sink`.
    ///
    /// # Errors
    /// When the bytes are not RESP3. The decoder must not be used any more then.
    pub fn feed(&mut self, bytes: &[u8], mut sink: impl FnMut(Inbound)) -> Result<(), WireError> {
        let mut chunk = Chunk(bytes);
        loop {
            match self.parser.parse_value(&mut chunk) {
                Ok(value) => sink(classify(value)),
                // The only I/O error that the chunk gives is "would block".
                Err(error) if error.kind() == redis::ErrorKind::Io => return Ok(()),
                Err(error) => return Err(WireError(error.to_string())),
            }
        }
    }
}

fn classify(value: Value) -> Inbound {
    match value {
        Value::ServerError(error) => Inbound::Reply(Err(error)),
        Value::Push { kind: PushKind::Subscribe | PushKind::Unsubscribe, .. } => {
            Inbound::Reply(Ok(Value::Okay))
        }
        Value::Push { kind: PushKind::Message, data } => {
            let mut parts = data.into_iter();
            match (parts.next(), parts.next()) {
                (Some(Value::BulkString(channel)), Some(Value::BulkString(payload))) => {
                    Inbound::Message { channel, payload }
                }
                _ => Inbound::Other,
            }
        }
        Value::Push { .. } => Inbound::Other,
        value => Inbound::Reply(Ok(value)),
    }
}

/// A part of the stream: at its end more may follow, so it reads as "would block" and not as the end.
struct Chunk<'a>(&'a [u8]);

impl Read for Chunk<'_> {
    fn read(&mut self, out: &mut [u8]) -> io::Result<usize> {
        if self.0.is_empty() {
            return Err(io::ErrorKind::WouldBlock.into());
        }
        self.0.read(out)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn stream() -> Vec<u8> {
        let mut bytes = b">3\r\n$9\r\nsubscribe\r\n$1\r\na\r\n:1\r\n".to_vec();
        bytes.extend_from_slice(b"*2\r\n:7\r\n*2\r\n$3\r\nx\r\n\r\n$0\r\n\r\n");
        bytes.extend_from_slice(b">3\r\n$7\r\nmessage\r\n$3\r\nt:a\r\n$5\r\n\x00\r\n\xff{\r\n");
        bytes
            .extend_from_slice(b"-NOSCRIPT No matching script.\r\n%1\r\n+server\r\n+redis\r\n+PONG\r\n_\r\n");
        let long = vec![b'y'; 40_000];
        bytes.extend_from_slice(b">3\r\n$7\r\nmessage\r\n$1\r\nb\r\n$40000\r\n");
        bytes.extend_from_slice(&long);
        bytes.extend_from_slice(b"\r\n>2\r\n$10\r\ninvalidate\r\n_\r\n");
        bytes
    }

    fn decode(chunks: &[&[u8]]) -> Vec<Inbound> {
        let (mut decoder, mut out) = (Decoder::default(), Vec::new());
        for chunk in chunks {
            decoder.feed(chunk, |value| out.push(value)).expect("valid RESP3");
        }
        out
    }

    #[test]
    fn tells_messages_from_replies() {
        let all = decode(&[&stream()]);
        assert_eq!(all.len(), 9);
        assert_eq!(all[0], Inbound::Reply(Ok(Value::Okay)));
        let message = Inbound::Message { channel: b"t:a".to_vec(), payload: b"\x00\r\n\xff{".to_vec() };
        assert_eq!(all[2], message);
        assert!(matches!(&all[3], Inbound::Reply(Err(e)) if e.code() == "NOSCRIPT"));
        assert!(matches!(&all[7], Inbound::Message { payload, .. } if payload.len() == 40_000));
        assert_eq!(all[8], Inbound::Other);
    }

    #[test]
    fn one_byte_at_a_time_gives_the_same() {
        let bytes = stream();
        let single: Vec<&[u8]> = bytes.chunks(1).collect();
        assert_eq!(decode(&single), decode(&[&bytes]));
    }

    #[test]
    fn refuses_what_is_not_resp3() {
        assert!(Decoder::default().feed(b"HTTP/1.1 400 Bad Request\r\n", |_| ()).is_err());
    }

    proptest! {
        #[test]
        fn any_split_gives_the_same(cuts in proptest::collection::vec(0usize..40_200, 0..12)) {
            let bytes = stream();
            let mut cuts: Vec<usize> = cuts.into_iter().map(|c| c.min(bytes.len())).collect();
            cuts.extend([0, bytes.len()]);
            cuts.sort_unstable();
            let chunks: Vec<&[u8]> = cuts.windows(2).map(|w| &bytes[w[0]..w[1]]).collect();
            prop_assert_eq!(decode(&chunks), decode(&[&bytes]));
        }
    }
}
