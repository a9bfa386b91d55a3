//! TLS of a shard's connections: between the ring's bytes and what the connections read and write.

use std::sync::Arc;

use super::session::Phase;
use super::{Action, Now, Shard};
use crate::accept::certificate::TlsAcceptor;
use crate::accept::tls::{Peer, TlsStream};
use crate::ring::{Key, SendBatch};

/// The TLS streams of one shard, by connection slot; empty where the server speaks plaintext.
#[derive(Default)]
pub(super) struct TlsStreams {
    acceptor: Option<Arc<TlsAcceptor>>,
    streams: Vec<Option<Box<TlsStream>>>,
    /// Plaintext on its way, for all connections.
    plain: Vec<u8>,
}

impl TlsStreams {
    #[inline]
    fn get(&mut self, slot: u32) -> Option<&mut TlsStream> {
        self.streams.get_mut(slot as usize)?.as_deref_mut()
    }

    /// The connection in `slot` has gone.
    pub(super) fn remove(&mut self, slot: u32) {
        if let Some(stream) = self.streams.get_mut(slot as usize) {
            *stream = None;
        }
    }

    /// Whether the connection in `slot` can be told nothing yet, because its TLS handshake is not over.
    pub(super) fn is_handshaking(&mut self, slot: u32) -> bool {
        self.get(slot).is_some_and(|stream| !stream.is_established())
    }

    /// What is sent in place of a batch's plaintext: records that hold all of its frames.
    fn seal(&mut self, slot: u32, batch: &SendBatch, chunk: &mut dyn FnMut() -> Vec<u8>) -> Option<Vec<u8>> {
        let stream = self.streams.get_mut(slot as usize).and_then(Option::as_deref_mut)?;
        self.plain.clear();
        batch.segments().iter().for_each(|segment| self.plain.extend_from_slice(segment.as_slice()));
        let mut sealed = chunk();
        // It fails when the keys are used up: nothing goes out then, and the missing pong ends the connection.
        let _ = stream.seal(&self.plain, &mut sealed);
        Some(sealed)
    }
}

impl Shard {
    /// Has every connection that is accepted from now on begin with TLS.
    #[must_use]
    pub fn with_tls(mut self, acceptor: Option<Arc<TlsAcceptor>>) -> Self {
        self.tls.acceptor = acceptor;
        self
    }

    /// Bytes came in from a client.
    pub fn handle_received(&mut self, from: Key, bytes: &mut [u8], now: Now) {
        self.cells.bytes_in.add(bytes.len() as u64);
        if self.session(from.slot).is_some_and(|session| session.phase <= Phase::Requesting) {
            self.requesting.push(from);
        }
        if !self.is_prefaced(from.slot) {
            self.read_raw(from, bytes, now);
        } else if let Some(mut rest) = self.read_preface(from.slot, bytes, now) {
            self.read_raw(from, &mut rest, now);
        }
    }

    fn read_raw(&mut self, from: Key, bytes: &mut [u8], now: Now) {
        if self.tls.get(from.slot).is_some() {
            self.read_sealed(from, bytes, now);
        } else {
            self.read(from, bytes, now);
        }
    }

    /// Hands the batches of up to `most` dirty connections to `send`, as [`Outboxes::flush`] does, encrypted where
    /// the connection is.
    ///
    /// [`Outboxes::flush`]: crate::send::outbox::Outboxes::flush
    pub fn flush(
        &mut self,
        now: u32,
        most: usize,
        send: impl FnMut(u32, Box<SendBatch>) -> Result<(), Box<SendBatch>>,
    ) {
        let Self { outboxes, tls, .. } = self;
        outboxes.flush_sealed(now, most, |slot, batch, chunk| tls.seal(slot, batch, chunk), send);
    }

    /// A client has connected: it begins with TLS if the server does. False when that is not possible.
    pub(super) fn begin_tls(&mut self, slot: u32) -> bool {
        let Some(acceptor) = &self.tls.acceptor else { return true };
        let index = slot as usize;
        if index >= self.tls.streams.len() {
            self.tls.streams.resize_with(index + 1, || None);
        }
        self.tls.streams[index] = TlsStream::new(acceptor.config()).ok().map(Box::new);
        self.tls.streams[index].is_some()
    }

    fn read_sealed(&mut self, from: Key, bytes: &mut [u8], now: Now) {
        if self.session(from.slot).is_none_or(|session| session.phase >= Phase::Finishing) {
            return;
        }
        let mut plain = std::mem::take(&mut self.tls.plain);
        plain.clear();
        let Some(stream) = self.tls.get(from.slot) else { return };
        let was_established = stream.is_established();
        let outcome = stream.receive(bytes, &mut plain);
        let has_begun = stream.is_established() && !was_established;
        let has_output = stream.has_output();
        self.cells.tls_handshakes.add(has_begun.into());
        if has_output {
            self.outboxes.touch(from.slot);
        }
        if !plain.is_empty() {
            self.read(from, &mut plain, now);
        }
        self.tls.plain = plain;
        match outcome {
            Ok(Peer::Sends) => {}
            Ok(Peer::HasFinished) => self.finish_connection(from.slot, now),
            Err(error) => {
                if let Some(id) = self.session(from.slot).map(|session| session.id) {
                    let (connection, request) = (self.socket_id(id).text(), self.request_id(id));
                    tracing::debug!(
                        connection = connection.as_str(),
                        request = &*request,
                        %error,
                        "a client's TLS failed"
                    );
                }
                self.cells.tls_failures.add(1);
                self.finish_connection(from.slot, now);
            }
        }
    }

    /// Nothing will be sent after what has been: says so, in TLS first.
    pub(super) fn finish_sending(&mut self, to: Key) {
        if self.tls.get(to.slot).is_some_and(TlsStream::say_goodbye) {
            self.outboxes.touch(to.slot);
        } else {
            self.actions.push(Action::FinishSending(to));
        }
    }
}
