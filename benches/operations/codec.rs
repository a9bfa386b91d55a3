//! Received frames are parsed and unmasked.

use std::hint::black_box;
use std::ops::ControlFlow;

use tableforge::codec::message::{Decoder, Event, MessageLimits};

use super::{Entry, Operation, json_object};

/// A key of ASCII bytes: unmasking is the same as masking, so text that is plain after one run is
/// masked after the next, and both are ASCII. Runs can follow each other without a copy in between.
const KEY: [u8; 4] = [0x12, 0x45, 0x23, 0x71];

const LIMITS: MessageLimits = MessageLimits { message_bytes: 64 * 1024, fragments: 64 };

pub fn entries() -> Vec<Entry> {
    let sizes = [(128, "text_128"), (1024, "text_1024")];
    let buffers = [(1, "1_per_buffer"), (20, "20_per_buffer")];
    let mut entries = Vec::new();
    for (bytes, size) in sizes {
        for (frames, buffer) in buffers {
            entries.push(Entry::new(format!("codec/{size}/{buffer}"), frames, move || decode(bytes, frames)));
        }
    }
    entries
}

/// A client's text frame: final, masked (RFC 6455 section 5.2).
pub fn masked_frame(text: &str) -> Vec<u8> {
    let mut frame = vec![0x81];
    match text.len() {
        length @ 0..126 => frame.push(0x80 | length as u8),
        length @ 126..0x10000 => {
            frame.push(0x80 | 126);
            frame.extend_from_slice(&(length as u16).to_be_bytes());
        }
        length => panic!("a benchmark's frame has at most 65535 bytes, not {length}"),
    }
    frame.extend_from_slice(&KEY);
    frame.extend(text.bytes().zip(KEY.iter().cycle()).map(|(byte, key)| byte ^ key));
    frame
}

fn decode(bytes: usize, frames: usize) -> impl Operation {
    let text = json_object(bytes, 1);
    let mut buffer = masked_frame(&text).repeat(frames);
    let mut decoder = Decoder::default();

    let mut messages = 0;
    let mut check = |event: Event<'_>| {
        assert_eq!(event, Event::Text(&text));
        messages += 1;
        ControlFlow::Continue(())
    };
    decoder.feed(&mut buffer.clone(), &LIMITS, None, &mut check).expect("valid frames");
    assert_eq!(messages, frames);

    move || {
        let outcome = decoder.feed(black_box(&mut buffer), &LIMITS, None, &mut |event| {
            black_box(event);
            ControlFlow::Continue(())
        });
        outcome.expect("ASCII under an ASCII key is valid text");
    }
}
