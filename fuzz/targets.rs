//! What must hold for any input: one function per fuzzer, which panics when it does not hold.
//!
//! The fuzzers in `fuzz_targets/` call these with what libFuzzer makes up, and `tests/fuzz_corpus.rs` with
//! the inputs in `corpus/`.

use std::ops::ControlFlow;

use serde_json::Value;
use tableforge::accept::http;
use tableforge::accept::request::{self, Head, Refusal};
use tableforge::accept::upgrade;
use tableforge::codec::deflate::Inflater;
use tableforge::codec::message::{Decoder, Event, MessageLimits};
use tableforge::command::decode::{Command, Scratch, decode, decode_publication};
use tableforge::limits;
use tableforge::uplink::batch::{
    BatchError, MAGIC, RECORDS_BYTES, Record, Section, parse_header, parse_records, parse_sections,
    push_section,
};
use tableforge::uplink::packing::{Packer, Readers, Unpacker};

/// The bytes that a client sends first. Whatever they are, the answer is one well-formed HTTP head, a head within
/// the bounds, and the same however the bytes were split.
pub fn upgrade(input: &[u8]) {
    let allowed = ["https://good.example".to_owned()];
    match request::parse(input) {
        Head::Incomplete => assert!(input.len() < limits::REQUEST_HEAD_BYTES, "an endless head is refused"),
        Head::Refused(refusal) => assert_refusal(&refusal),
        Head::Request(request, length) => {
            assert!(length <= limits::REQUEST_HEAD_BYTES.min(input.len()));
            let Head::Request(again, same) = request::parse(&input[..length]) else {
                panic!("the head alone is the same request");
            };
            assert_eq!((length, request.path), (same, again.path));
            let all_but_one = request::parse(&input[..length - 1]);
            assert!(matches!(all_but_one, Head::Incomplete), "{all_but_one:?}");
            let _ = request.query_parameter("token");
            for (origins, compression) in [(&[][..], false), (&[], true), (&allowed[..], true)] {
                match upgrade::check(&request, origins, compression) {
                    Ok(upgrade) => {
                        let response = &upgrade.response;
                        assert!(response.starts_with("HTTP/1.1 101 "), "{response}");
                        assert_eq!(response.find("\r\n\r\n"), Some(response.len() - 4), "{response}");
                        assert!(compression || upgrade.deflate.is_none(), "unasked for");
                    }
                    Err(refusal) => assert_refusal(&refusal),
                }
            }
        }
    }
}

fn assert_refusal(refusal: &Refusal) {
    let response = http::refuse(refusal);
    let (head, body) = response.split_once("\r\n\r\n").expect("a head ends");
    assert!(head.starts_with("HTTP/1.1 4") || head.starts_with("HTTP/1.1 5"), "{head}");
    assert!(head.contains(&format!("Content-Length: {}\r\n", body.len())), "{head}");
}

/// Bounds of the frames' target: small enough for a fuzzer to reach them.
const LIMITS: MessageLimits = MessageLimits { message_bytes: 4096, fragments: 16 };

/// What a decoder makes of bytes: its events in words, and how it ended.
type Verdict = (Vec<String>, Result<(), String>);

/// The bytes of a WebSocket connection after one byte of options: the lowest bit is compression, the rest the
/// length of the pieces that the bytes come in. Every message keeps within the bounds, and the pieces make no
/// difference.
pub fn frames(input: &[u8]) {
    let Some((options, bytes)) = input.split_first() else { return };
    let (compression, piece) = (options & 1 == 1, usize::from(options >> 1).max(1));
    let whole = verdict(&[bytes], compression);
    let pieces: Vec<_> = bytes.chunks(piece).collect();
    assert_eq!(whole, verdict(&pieces, compression), "in pieces of {piece}");
}

fn verdict(pieces: &[&[u8]], compression: bool) -> Verdict {
    let (mut decoder, mut inflater) = (Decoder::default(), Inflater::default());
    let mut events = Vec::new();
    for piece in pieces {
        let outcome =
            decoder.feed(&mut piece.to_vec(), &LIMITS, compression.then_some(&mut inflater), &mut |event| {
                assert!(bytes_of(&event) <= LIMITS.message_bytes, "over the bound");
                events.push(format!("{event:?}"));
                ControlFlow::Continue(())
            });
        if let Err(violation) = outcome {
            assert!(decoder.is_finished());
            assert!((1000..1015).contains(&violation.close_code().as_u16()));
            return (events, Err(violation.to_string()));
        }
    }
    (events, Ok(()))
}

fn bytes_of(event: &Event<'_>) -> usize {
    match event {
        Event::Text(text) => text.len(),
        Event::Binary(bytes) | Event::Ping(bytes) | Event::Pong(bytes) => bytes.len(),
        Event::Close { reason, .. } => reason.len(),
    }
}

/// One text message of a client, and the same as a publication of another program. What is understood is JSON to
/// another parser too, and `data` is a piece of it, untouched.
pub fn commands(input: &[u8]) {
    let Ok(text) = std::str::from_utf8(input) else { return };
    let (mut scratch, mut fresh) = (Scratch::default(), Scratch::default());
    match decode(text, &mut scratch) {
        Ok(request) => {
            assert_object(text);
            assert!(request.message_id.is_none_or(|id| (1..=64).contains(&id.len())));
            if let Command::RoomMessage { data, .. }
            | Command::UserMessage { data, .. }
            | Command::GlobalMessage { data } = request.command
            {
                assert_piece(text, data);
            }
        }
        Err(rejection) => {
            let again = decode(text, &mut fresh).expect_err("the same verdict twice");
            assert_eq!(format!("{rejection:?}"), format!("{again:?}"));
        }
    }
    if let Ok(publication) = decode_publication(text, &mut scratch) {
        assert_object(text);
        assert_piece(text, publication.data);
    }
}

fn assert_object(text: &str) {
    let value: Value = serde_json::from_str(text).unwrap_or_else(|why| panic!("{why}: {text:?}"));
    assert!(value.is_object(), "{text:?}");
}

fn assert_piece(text: &str, data: &str) {
    let range = text.as_bytes().as_ptr_range();
    assert!(range.contains(&data.as_ptr()), "data is not copied");
    serde_json::from_str::<Value>(data).unwrap_or_else(|why| panic!("{why}: {data:?}"));
}

/// What comes on a channel of Redis. A batch is never taken for JSON, its records stay within their bound, and
/// packing what was unpacked gives the same records again.
pub fn batch(input: &[u8]) {
    let mut unpacker = Unpacker::new().expect("zstd has memory");
    let header = match parse_header(input) {
        Ok(header) => header,
        Err(error) => {
            assert!(unpacker.unpack(input).is_err());
            assert!(input.starts_with(&MAGIC) || matches!(error, BatchError::NotABatch));
            return;
        }
    };
    assert!(std::str::from_utf8(input).is_err(), "no text begins like a batch");
    let Ok(records) = unpacker.unpack(input) else { return };
    assert!(records.len() <= RECORDS_BYTES.max(input.len()));
    sections(&records);
    let Ok(parsed) = parse_records(&records) else { return };
    for record in &parsed {
        if let Record::Event(text) = record {
            assert!(text.len() <= records.len());
        }
    }
    for compress_from in [0, usize::MAX] {
        for readers in [Readers::Anyone, Readers::Peers] {
            let packed = Packer::new(compress_from).expect("zstd has memory").pack(header, &records, readers);
            assert_eq!(parse_header(&packed), Ok(header));
            let again = unpacker.unpack(&packed).expect("what was packed is unpacked");
            assert_eq!(again, records);
        }
    }
}

/// The records of a lane. Leaving sections out changes nothing about the others, and a section is written as it was read.
fn sections(records: &[u8]) {
    let Ok(all) = parse_sections(records, |_| true) else { return };
    let wanted = |section: &Section<'_>| matches!(section, Section::Room { .. });
    let some = parse_sections(records, wanted).expect("less is looked at");
    assert_eq!(some, all.iter().filter(|(section, _)| wanted(section)).cloned().collect::<Vec<_>>());
    let mut heads = Vec::new();
    all.iter().for_each(|(section, _)| push_section(&mut heads, *section));
    let again = parse_sections(&heads, |_| true).expect("what was written is read");
    assert!(again.iter().map(|(section, _)| section).eq(all.iter().map(|(section, _)| section)));
}
