//! TLS of one client connection (RFC 8446, RFC 5246): ciphertext in, plaintext out, and the other way round.

use std::sync::Arc;

use rustls::server::UnbufferedServerConnection;
use rustls::unbuffered::{
    ConnectionState, EncodeError, EncryptError, InsufficientSizeError, UnbufferedStatus,
};
use rustls::{Error, ServerConfig};

use crate::limits;

/// Bytes of plaintext in one record at most (RFC 8446, section 5.1).
const RECORD_BYTES: usize = 16 * 1024;

/// More bytes than any record needs besides its plaintext (RFC 8446, section 5.2).
const RECORD_OVERHEAD: usize = 64;

/// Bytes that are tried first for a handshake message or an alert; most are shorter.
const MESSAGE_BYTES: usize = 2048;

/// One connection's TLS state. It owns no buffer but for a record that is not complete.
pub struct TlsStream {
    connection: UnbufferedServerConnection,
    /// The beginning of what is not complete.
    incoming: Vec<u8>,
    /// Handshake messages and alerts that have not been sent.
    outgoing: Vec<u8>,
    is_established: bool,
    has_said_goodbye: bool,
}

/// What the peer will still send.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Peer {
    /// More may come.
    Sends,
    /// Nothing: it has sent close_notify.
    HasFinished,
}

impl TlsStream {
    /// The server's end of a new connection.
    ///
    /// # Errors
    /// When `config` cannot be used.
    pub fn new(config: Arc<ServerConfig>) -> Result<Self, Error> {
        Ok(Self {
            connection: UnbufferedServerConnection::new(config)?,
            incoming: Vec::new(),
            outgoing: Vec::new(),
            is_established: false,
            has_said_goodbye: false,
        })
    }

    /// Whether the handshake is over, so that plaintext can be sent.
    pub fn is_established(&self) -> bool {
        self.is_established
    }

    /// Whether there are handshake messages or alerts to send: [`Self::seal`] has them even without plaintext.
    pub fn has_output(&self) -> bool {
        !self.outgoing.is_empty()
    }

    /// Takes received bytes, in pieces of any size, decrypts them in place, and appends their plaintext to `plain`.
    ///
    /// # Errors
    /// When the peer does not keep to the protocol or there is nothing that both ends support. The alert that
    /// says so waits to be sent; nothing more must be received.
    pub fn receive(&mut self, bytes: &mut [u8], plain: &mut Vec<u8>) -> Result<Peer, Error> {
        let mut incoming = std::mem::take(&mut self.incoming);
        let (used, outcome) = if incoming.is_empty() {
            let (used, outcome) = self.advance(bytes, plain);
            incoming.extend_from_slice(&bytes[used..]);
            (0, outcome)
        } else {
            incoming.extend_from_slice(bytes);
            self.advance(&mut incoming, plain)
        };
        let peer = outcome.inspect_err(|_| self.take_alerts())?;
        incoming.drain(..used);
        if incoming.len() > limits::TLS_INCOMPLETE_BYTES {
            return Err(Error::PeerSentOversizedRecord);
        }
        // A connection that waits for nothing keeps no memory for it.
        self.incoming = if incoming.is_empty() { Vec::new() } else { incoming };
        Ok(peer)
    }

    /// Returns how many of the bytes are done with.
    fn advance(&mut self, bytes: &mut [u8], plain: &mut Vec<u8>) -> (usize, Result<Peer, Error>) {
        let mut used = 0;
        loop {
            let UnbufferedStatus { mut discard, state, .. } =
                self.connection.process_tls_records(&mut bytes[used..]);
            let step = match state {
                Ok(ConnectionState::ReadTraffic(mut traffic)) => {
                    let mut outcome = Ok(None);
                    while let Some(record) = traffic.next_record() {
                        match record {
                            Ok(record) => {
                                discard += record.discard;
                                plain.extend_from_slice(record.payload);
                            }
                            Err(error) => outcome = Err(error),
                        }
                    }
                    outcome
                }
                Ok(ConnectionState::EncodeTlsData(mut message)) => {
                    encode(&mut self.outgoing, |buffer| message.encode(buffer)).map(|()| None)
                }
                Ok(ConnectionState::TransmitTlsData(message)) => {
                    message.done();
                    Ok(None)
                }
                Ok(ConnectionState::WriteTraffic(_)) => {
                    self.is_established = true;
                    Ok(Some(Peer::Sends))
                }
                Ok(ConnectionState::PeerClosed | ConnectionState::Closed) => Ok(Some(Peer::HasFinished)),
                // Early data is not accepted, so only the handshake can wait for more.
                Ok(_) => Ok(Some(Peer::Sends)),
                Err(error) => Err(error),
            };
            used += discard;
            match step {
                Ok(None) => {}
                Ok(Some(peer)) => return (used, Ok(peer)),
                Err(error) => return (used, Err(error)),
            }
        }
    }

    /// Keeps what tells the peer about a failure.
    fn take_alerts(&mut self) {
        while let ConnectionState::EncodeTlsData(mut alert) =
            match self.connection.process_tls_records(&mut []).state {
                Ok(state) => state,
                Err(_) => return,
            }
        {
            if encode(&mut self.outgoing, |buffer| alert.encode(buffer)).is_err() {
                return;
            }
        }
    }

    /// Appends to `out` what waits to be sent, and then `plain` in records as large as they may be. Before the
    /// handshake is over, and after [`Self::say_goodbye`], plaintext cannot be sent and is left out.
    ///
    /// # Errors
    /// When the connection's keys are used up; it cannot be used any more.
    pub fn seal(&mut self, plain: &[u8], out: &mut Vec<u8>) -> Result<(), Error> {
        out.append(&mut self.outgoing);
        self.outgoing = Vec::new();
        if !self.is_established || self.has_said_goodbye || plain.is_empty() {
            return Ok(());
        }
        let records = plain.len().div_ceil(RECORD_BYTES);
        let room = plain.len() + records * RECORD_OVERHEAD;
        self.write(out, room, |traffic, buffer| traffic.encrypt(plain, buffer))
    }

    /// Prepares close_notify, the last thing that is sent. False if there is nothing to say: it has been said
    /// before, or the handshake is not over.
    pub fn say_goodbye(&mut self) -> bool {
        if !self.is_established || std::mem::replace(&mut self.has_said_goodbye, true) {
            return false;
        }
        let mut out = std::mem::take(&mut self.outgoing);
        let said = self.write(&mut out, MESSAGE_BYTES, |traffic, buffer| traffic.queue_close_notify(buffer));
        self.outgoing = out;
        said.is_ok()
    }

    fn write(
        &mut self,
        out: &mut Vec<u8>,
        room: usize,
        mut write: impl FnMut(&mut Traffic<'_>, &mut [u8]) -> Result<usize, EncryptError>,
    ) -> Result<(), Error> {
        loop {
            match self.connection.process_tls_records(&mut self.incoming).state? {
                ConnectionState::WriteTraffic(mut traffic) => {
                    return append(out, room, |buffer| {
                        write(&mut traffic, buffer).map_err(|error| match error {
                            EncryptError::InsufficientSize(size) => Some(size),
                            EncryptError::EncryptExhausted => None,
                        })
                    });
                }
                ConnectionState::EncodeTlsData(mut message) => encode(out, |buffer| message.encode(buffer))?,
                ConnectionState::TransmitTlsData(message) => message.done(),
                _ => return Err(Error::HandshakeNotComplete),
            }
        }
    }
}

type Traffic<'c> = rustls::unbuffered::WriteTraffic<'c, rustls::server::ServerConnectionData>;

fn encode(
    out: &mut Vec<u8>,
    mut message: impl FnMut(&mut [u8]) -> Result<usize, EncodeError>,
) -> Result<(), Error> {
    append(out, MESSAGE_BYTES, |buffer| {
        message(buffer).map_err(|error| match error {
            EncodeError::InsufficientSize(size) => Some(size),
            EncodeError::AlreadyEncoded => None,
        })
    })
}

/// Appends what `write` writes, which is given `room` bytes or as many as it asks for.
fn append(
    out: &mut Vec<u8>,
    room: usize,
    mut write: impl FnMut(&mut [u8]) -> Result<usize, Option<InsufficientSizeError>>,
) -> Result<(), Error> {
    let start = out.len();
    let mut room = room;
    loop {
        out.resize(start + room, 0);
        match write(&mut out[start..]) {
            Ok(written) => {
                out.truncate(start + written);
                return Ok(());
            }
            Err(Some(size)) if size.required_size > room => room = size.required_size,
            Err(_) => {
                out.truncate(start);
                return Err(Error::EncryptError);
            }
        }
    }
}

#[cfg(test)]
mod tests;
