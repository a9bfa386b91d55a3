//! What a worker makes of the bytes that servers send.

use std::sync::atomic::Ordering;

use rustix::io::Errno;

use super::Worker;
use crate::connection::{Received, State};
use crate::dialect::{Incoming, Joining};
use crate::frame::{self, Frame};
use crate::handshake::Answer;
use crate::stamp::Stamp;
use crate::verify::Arrival;

/// One delivery of so many is parsed in full and compared byte for byte. The others are only told
/// apart by their stamps, or the generator would be slower than the server.
const SAMPLE_EVERY: u64 = 1_024;

impl Worker {
    /// Reads once from a connection.
    pub(super) fn read(&mut self, index: usize) {
        // Taken out so that frames can stay where they were received while the worker acts on them.
        let mut buffer = std::mem::take(&mut self.buffer);
        let outcome = self.connections[index].receive(&mut buffer);
        self.now_us = self.control.now_us();
        match outcome {
            Ok(Received::Bytes(length)) => {
                let used = self.consume(index, &buffer[..length]);
                let connection = &mut self.connections[index];
                if !matches!(connection.state, State::Closed) {
                    connection.carry(&buffer[used..length]);
                }
            }
            Ok(Received::Nothing) => {}
            Ok(Received::End) => self.end(index, "ended without a close frame"),
            Err(Errno::CONNRESET) => self.end(index, "reset"),
            Err(error) => self.end(index, &format!("cannot read: {error}")),
        }
        self.buffer = buffer;
    }

    /// Acts on all complete frames; returns how many bytes they took.
    fn consume(&mut self, index: usize, bytes: &[u8]) -> usize {
        let mut used = 0;
        if let State::Upgrading(handshake) = &self.connections[index].state {
            match handshake.check(bytes) {
                Answer::Incomplete => return 0,
                Answer::Accepted { length, deflate } => {
                    used = length;
                    self.connections[index].deflate = deflate;
                }
                Answer::Refused { reason, retry_after } => {
                    self.end_for(index, &reason, retry_after);
                    return 0;
                }
            }
            self.connections[index].state = State::Greeting;
            let progress = self.control.progress(self.number);
            progress.last_established_us.store(self.now_us, Ordering::Release);
            progress.established.fetch_add(1, Ordering::AcqRel);
            if self.dialect.joining() == Joining::Upgraded {
                self.become_ready(index);
            }
        }
        loop {
            match frame::parse(&bytes[used..]) {
                Ok(Some((frame, length))) => {
                    used += length;
                    self.handle_frame(index, frame);
                }
                Ok(None) => return used,
                Err(error) => {
                    self.end(index, &format!("protocol: {error}"));
                    return used;
                }
            }
            if matches!(self.connections[index].state, State::Closed) {
                return used;
            }
        }
    }

    fn handle_frame(&mut self, index: usize, frame: Frame<'_>) {
        match frame.opcode {
            frame::PING => {
                self.tally.pings_answered += 1;
                self.queue_frame(index, frame::PONG, frame.payload);
            }
            frame::PONG => {
                self.control.progress(self.number).pongs.fetch_add(1, Ordering::AcqRel);
            }
            frame::CLOSE => self.handle_close(index, frame.payload),
            _ if frame.is_compressed => self.handle_compressed(index, frame),
            _ if frame.is_final && self.connections[index].fragments.is_empty() => {
                self.handle_message(index, frame.payload);
            }
            _ => {
                let fragments = &mut self.connections[index].fragments;
                fragments.extend_from_slice(frame.payload);
                if frame.is_final {
                    let message = std::mem::take(fragments);
                    self.handle_message(index, &message);
                } else if fragments.len() as u64 > frame::MAX_PAYLOAD_BYTES {
                    self.end(index, "protocol: endless message");
                }
            }
        }
    }

    /// Compressed messages are whole frames: servers fragment what they stream, and nothing is streamed here.
    fn handle_compressed(&mut self, index: usize, frame: Frame<'_>) {
        if !(self.connections[index].deflate && frame.is_final) {
            return self.end(index, "protocol: a compressed frame that was not agreed on, or is a fragment");
        }
        match self.deflate.expand(frame.payload) {
            Some(text) => self.handle_message(index, &text),
            None => self.end(index, "protocol: compressed data that cannot be expanded"),
        }
    }

    fn handle_close(&mut self, index: usize, payload: &[u8]) {
        let reason = match payload {
            [first, second, text @ ..] => {
                let code = u16::from_be_bytes([*first, *second]);
                format!("close {code} {}", String::from_utf8_lossy(text))
            }
            _ => "close without a code".to_owned(),
        };
        self.queue_frame(index, frame::CLOSE, &payload[..payload.len().min(2)]);
        self.flush(index);
        self.end(index, reason.trim_end());
    }

    fn handle_message(&mut self, index: usize, text: &[u8]) {
        match self.dialect.read(text) {
            Incoming::Delivery(stamp) => self.handle_delivery(index, stamp, text),
            Incoming::Acknowledged(stamp) => self.handle_ack(index, stamp),
            Incoming::Greeting => self.greeted(index),
            Incoming::Joined(standing) => {
                self.handle_standing(index, standing);
                self.become_ready(index);
            }
            Incoming::Presence => self.handle_presence(index),
            Incoming::Answer(text) => self.queue_frame(index, frame::TEXT, text.as_bytes()),
            Incoming::Refused { code, acknowledged } => self.refused(index, &code, acknowledged),
            Incoming::Uncertain { code, acknowledged } => {
                self.tally.uncertain.add(&code);
                self.tally.acks_awaited -= i64::from(acknowledged);
            }
            Incoming::Notice(name) => self.tally.notices.add(&name),
            Incoming::Ignored => {}
            Incoming::Malformed => self.tally.malformed += 1,
        }
    }

    fn greeted(&mut self, index: usize) {
        if !matches!(self.connections[index].state, State::Greeting) {
            return;
        }
        if !self.plan.join {
            return self.become_ready(index);
        }
        let connection = &mut self.connections[index];
        connection.state = State::Joining;
        if self.plan.join_by_url {
            return;
        }
        let room = connection.room as usize;
        let mut text = Vec::new();
        let since = self.connecting.seen.get(&index);
        self.dialect.write_join(&self.plan.rooms[room], since, &mut text);
        self.queue_frame(index, frame::TEXT, &text);
    }

    fn become_ready(&mut self, index: usize) {
        let connection = &mut self.connections[index];
        if !matches!(connection.state, State::Joining | State::Greeting) {
            return;
        }
        connection.state = State::Ready;
        self.connecting.in_flight -= 1;
        let room = connection.room as usize;
        if self.is_counted(index) {
            self.control.open_members(room).fetch_add(1, Ordering::AcqRel);
        }
        self.interval.ready += 1;
        self.count_return(index);
        let progress = self.control.progress(self.number);
        progress.last_ready_us.store(self.now_us, Ordering::Release);
        progress.open.fetch_add(1, Ordering::AcqRel);
        progress.ready.fetch_add(1, Ordering::AcqRel);
    }

    fn refused(&mut self, index: usize, code: &str, acknowledged: bool) {
        let connection = &self.connections[index];
        if !connection.is_ready() {
            return self.end(index, &format!("refused: {code}"));
        }
        // Once joined, a connection asks for nothing but to send: that is what was refused.
        self.tally.refused.add(code);
        self.tally.expected -= self.receivers(connection.room as usize);
        self.tally.acks_awaited -= i64::from(acknowledged);
    }

    fn handle_ack(&mut self, index: usize, stamp: Stamp) {
        if stamp.sender as usize != self.first + index {
            self.tally.unexpected += 1;
            return;
        }
        self.tally.acks += 1;
        self.tally.acks_awaited -= 1;
        if self.load.is_some_and(|load| load.measures(stamp.intended_us)) {
            self.tally.ack_latency.saturating_record(self.now_us.saturating_sub(stamp.intended_us));
        }
    }

    fn handle_delivery(&mut self, index: usize, stamp: Stamp, text: &[u8]) {
        let room = self.connections[index].room as usize;
        let members = self.plan.layout.members(room);
        let sender = stamp.sender as usize;
        if !members.contains(&sender) || sender == self.first + index {
            self.tally.unexpected += 1;
            return;
        }
        self.tally.delivery_bytes += text.len() as u64;
        let is_counted = self.is_counted(index);
        let verifier = if is_counted { &mut self.verifier } else { &mut self.guests };
        if verifier.record(index, sender - members.start, stamp.sequence) == Arrival::Duplicate {
            return;
        }
        let is_sample = verifier.received % SAMPLE_EVERY == 1;
        self.count_latency(index, &stamp);
        if is_sample {
            let payload = self.plan.payloads.of(&stamp);
            let is_correct = self.dialect.is_correct(text, &self.plan.rooms[room], &stamp, payload);
            self.tally.malformed += u64::from(!is_correct);
        }
    }

    fn count_latency(&mut self, index: usize, stamp: &Stamp) {
        let latency = self.now_us.saturating_sub(stamp.intended_us);
        self.interval.delivered += 1;
        self.interval.latency.saturating_record(latency);
        let Some(load) = self.load else { return };
        if load.measures(self.now_us) {
            self.tally.measured_deliveries += 1;
        }
        if !load.measures(stamp.intended_us) {
            return;
        }
        self.tally.latency.saturating_record(latency);
        let layout = &self.plan.layout;
        if layout.servers > 1 {
            let is_local = layout.server_of(stamp.sender as usize) == layout.server_of(self.first + index);
            let of_its_kind =
                if is_local { &mut self.tally.latency_local } else { &mut self.tally.latency_cross };
            of_its_kind.saturating_record(latency);
        }
    }
}
