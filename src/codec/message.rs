//! Frames become messages: the decoder of one connection's received bytes.

use std::ops::ControlFlow;

use super::close;
use super::deflate::{self, Inflater};
use super::header::{self, CONTROL_BYTES, HEADER_BYTES, Header, Kind};
use super::mask::Mask;
use super::receive_buffer::{DataKind, Message, ReceiveBuffer};
use super::violation::Violation;

/// What a client's message may cost.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct MessageLimits {
    /// Bytes of one message's payload, all fragments together.
    pub message_bytes: usize,
    /// Frames of one message.
    pub fragments: u32,
}

/// Something whole that the client sent. Borrowed: it is gone when the receiver returns.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Event<'a> {
    /// A text message.
    Text(&'a str),
    /// A binary message.
    Binary(&'a [u8]),
    /// A ping, to be answered with a pong of the same payload.
    Ping(&'a [u8]),
    /// A pong.
    Pong(&'a [u8]),
    /// A close frame: the last event of its connection.
    Close {
        /// The code, if the frame had one.
        code: Option<u16>,
        /// The reason, often empty.
        reason: &'a str,
    },
}

/// Decodes what one client sends. It owns no memory but for a frame or message that is not complete.
#[derive(Debug, Default)]
pub struct Decoder {
    partial: Option<Box<Partial>>,
    finished: bool,
}

/// What has arrived of something that is not complete.
#[derive(Debug, Default)]
struct Partial {
    header: PartialHeader,
    /// The frame whose payload is not complete.
    frame: Option<Frame>,
    /// Payload so far, if that frame is a control frame.
    control: Vec<u8>,
    /// Payload so far of the data message.
    message: Option<ReceiveBuffer>,
}

#[derive(Debug, Default)]
struct PartialHeader {
    bytes: [u8; HEADER_BYTES],
    len: usize,
}

/// A frame whose header has been read and found right.
#[derive(Clone, Copy, Debug)]
struct Frame {
    kind: Kind,
    is_final: bool,
    is_compressed: bool,
    mask: Mask,
    /// Bytes of payload still to come.
    remaining: usize,
}

impl Decoder {
    /// Takes the next received bytes, in pieces of any size, and calls `sink` for every event that
    /// they complete. Unmasks in place: `input` is of no use afterwards.
    ///
    /// `inflater` is there where permessage-deflate was agreed on, and may serve any number of decoders.
    ///
    /// After a close frame, a violation, or [`ControlFlow::Break`] from `sink` the decoder is finished
    /// and ignores whatever else comes.
    ///
    /// # Errors
    /// The violation that ends the connection. Events before it have been delivered.
    pub fn feed(
        &mut self,
        input: &mut [u8],
        limits: &MessageLimits,
        inflater: Option<&mut Inflater>,
        sink: &mut impl FnMut(Event<'_>) -> ControlFlow<()>,
    ) -> Result<(), Violation> {
        if self.finished {
            return Ok(());
        }
        let outcome = self.advance(input, limits, inflater, sink);
        self.finished = !matches!(outcome, Ok(ControlFlow::Continue(())));
        if self.finished || self.partial.as_deref().is_some_and(Partial::is_empty) {
            self.partial = None;
        }
        outcome.map(|_| ())
    }

    /// Whether the decoder has had its last event: a close frame, a violation, or the sink's wish.
    pub fn is_finished(&self) -> bool {
        self.finished
    }

    fn advance(
        &mut self,
        mut input: &mut [u8],
        limits: &MessageLimits,
        mut inflater: Option<&mut Inflater>,
        sink: &mut impl FnMut(Event<'_>) -> ControlFlow<()>,
    ) -> Result<ControlFlow<()>, Violation> {
        loop {
            let mut frame = match self.partial.as_mut().and_then(|partial| partial.frame.take()) {
                Some(frame) => frame,
                None => match self.read_header(&mut input, inflater.is_some())? {
                    Some(header) => self.begin(&header, limits)?,
                    None => return Ok(ControlFlow::Continue(())),
                },
            };
            let (payload, rest) = input.split_at_mut(frame.remaining.min(input.len()));
            input = rest;
            frame.mask.apply(payload);
            frame.remaining -= payload.len();
            let flow = match frame.kind {
                Kind::Close | Kind::Ping | Kind::Pong => self.control(&frame, payload, sink)?,
                Kind::Continuation | Kind::Text | Kind::Binary => {
                    self.data(&frame, payload, limits, inflater.as_deref_mut(), sink)?
                }
            };
            if flow.is_break() {
                return Ok(flow);
            }
            if frame.remaining > 0 {
                self.partial.get_or_insert_default().frame = Some(frame);
                return Ok(ControlFlow::Continue(()));
            }
        }
    }

    /// Takes a header off the front of `input`, or keeps what is there of one.
    fn read_header(&mut self, input: &mut &mut [u8], compression: bool) -> Result<Option<Header>, Violation> {
        let kept = self.partial.as_ref().map_or(0, |partial| partial.header.len);
        if kept == 0 {
            if let Some((header, len)) = header::parse(input, compression)? {
                *input = &mut std::mem::take(input)[len..];
                return Ok(Some(header));
            }
            if input.is_empty() {
                return Ok(None);
            }
        }
        let PartialHeader { bytes, len } = &mut self.partial.get_or_insert_default().header;
        let added = input.len().min(HEADER_BYTES - kept);
        bytes[kept..kept + added].copy_from_slice(&input[..added]);
        let parsed = header::parse(&bytes[..kept + added], compression)?;
        let used = parsed.map_or(added, |(_, header_bytes)| header_bytes - kept);
        *len = if parsed.is_some() { 0 } else { kept + added };
        *input = &mut std::mem::take(input)[used..];
        Ok(parsed.map(|(header, _)| header))
    }

    /// Judges a header by what came before it. Nothing is allocated until it is found right.
    fn begin(&mut self, header: &Header, limits: &MessageLimits) -> Result<Frame, Violation> {
        let Header { kind, is_final, is_compressed, mask, length } = *header;
        let message = self.partial.as_mut().and_then(|partial| partial.message.as_mut());
        let arrived = match (kind, &message) {
            (Kind::Close | Kind::Ping | Kind::Pong, _) | (Kind::Text | Kind::Binary, None) => 0,
            (Kind::Continuation, Some(message)) => message.len(),
            (Kind::Continuation, None) => return Err(Violation::StrayContinuation),
            (Kind::Text | Kind::Binary, Some(_)) => return Err(Violation::InterleavedMessage),
        };
        let most = if is_compressed || message.as_ref().is_some_and(|message| message.is_compressed) {
            deflate::longest_compressed(limits.message_bytes)
        } else {
            limits.message_bytes
        };
        let too_big = Violation::MessageTooBig { limit: limits.message_bytes };
        let remaining = usize::try_from(length).map_err(|_| too_big)?;
        if let (Kind::Continuation, Some(message)) = (kind, message) {
            message.fragments += 1;
            if message.fragments > limits.fragments {
                return Err(Violation::TooManyFragments { limit: limits.fragments });
            }
        }
        let is_data = matches!(kind, Kind::Continuation | Kind::Text | Kind::Binary);
        if is_data && remaining > most.saturating_sub(arrived) {
            return Err(too_big);
        }
        Ok(Frame { kind, is_final, is_compressed, mask, remaining })
    }

    /// The next bytes of a control frame.
    fn control(
        &mut self,
        frame: &Frame,
        payload: &[u8],
        sink: &mut impl FnMut(Event<'_>) -> ControlFlow<()>,
    ) -> Result<ControlFlow<()>, Violation> {
        if frame.remaining > 0 {
            let control = &mut self.partial.get_or_insert_default().control;
            control.reserve(CONTROL_BYTES);
            control.extend_from_slice(payload);
            return Ok(ControlFlow::Continue(()));
        }
        let mut kept = match self.partial.as_mut() {
            Some(partial) => std::mem::take(&mut partial.control),
            None => Vec::new(),
        };
        let payload = if kept.is_empty() {
            payload
        } else {
            kept.extend_from_slice(payload);
            &kept
        };
        match frame.kind {
            Kind::Ping => Ok(sink(Event::Ping(payload))),
            Kind::Pong => Ok(sink(Event::Pong(payload))),
            _ => {
                let (code, reason) = close::parse(payload)?;
                let _ = sink(Event::Close { code, reason });
                Ok(ControlFlow::Break(()))
            }
        }
    }

    /// The next bytes of a data frame.
    fn data(
        &mut self,
        frame: &Frame,
        payload: &[u8],
        limits: &MessageLimits,
        inflater: Option<&mut Inflater>,
        sink: &mut impl FnMut(Event<'_>) -> ControlFlow<()>,
    ) -> Result<ControlFlow<()>, Violation> {
        let is_complete = frame.remaining == 0 && frame.is_final;
        let kind = if frame.kind == Kind::Binary { DataKind::Binary } else { DataKind::Text };
        if is_complete && self.partial.as_ref().is_none_or(|partial| partial.message.is_none()) {
            return if frame.is_compressed {
                expand(kind, payload, limits, inflater, sink)
            } else {
                deliver(kind, payload, sink)
            };
        }
        let slot = &mut self.partial.get_or_insert_default().message;
        // A continuation always finds its message here, so these count for a first frame only.
        slot.get_or_insert_with(|| ReceiveBuffer::new(kind, frame.is_compressed)).push(payload)?;
        if !is_complete {
            return Ok(ControlFlow::Continue(()));
        }
        match slot.take().map(ReceiveBuffer::finish).transpose()? {
            Some(Message::Text(text)) => Ok(sink(Event::Text(&text))),
            Some(Message::Binary(bytes)) => Ok(sink(Event::Binary(&bytes))),
            Some(Message::Compressed(kind, bytes)) => expand(kind, &bytes, limits, inflater, sink),
            None => Ok(ControlFlow::Continue(())),
        }
    }
}

/// Hands out a whole message that came compressed.
fn expand(
    kind: DataKind,
    payload: &[u8],
    limits: &MessageLimits,
    inflater: Option<&mut Inflater>,
    sink: &mut impl FnMut(Event<'_>) -> ControlFlow<()>,
) -> Result<ControlFlow<()>, Violation> {
    // Its header was taken for right because there was one.
    let inflater = inflater.ok_or(Violation::ReservedBits)?;
    deliver(kind, inflater.inflate(payload, limits.message_bytes)?, sink)
}

/// Hands out a whole message.
fn deliver(
    kind: DataKind,
    message: &[u8],
    sink: &mut impl FnMut(Event<'_>) -> ControlFlow<()>,
) -> Result<ControlFlow<()>, Violation> {
    match kind {
        DataKind::Binary => Ok(sink(Event::Binary(message))),
        DataKind::Text => {
            Ok(sink(Event::Text(std::str::from_utf8(message).map_err(|_| Violation::TextNotUtf8)?)))
        }
    }
}

impl Partial {
    fn is_empty(&self) -> bool {
        self.header.len == 0 && self.frame.is_none() && self.message.is_none()
    }
}

#[cfg(test)]
mod tests;
