//! Every rule of the decoder, and that the reads' borders change nothing.

use super::*;
use crate::codec::deflate::Deflater;
use proptest::prelude::*;

const LIMITS: MessageLimits = MessageLimits { message_bytes: 1000, fragments: 4 };

const CONTINUATION: u8 = 0;
const TEXT: u8 = 1;
const BINARY: u8 = 2;
const CLOSE: u8 = 8;
const PING: u8 = 9;
const PONG: u8 = 10;

#[derive(Clone, Debug, PartialEq, Eq)]
enum Owned {
    Text(String),
    Binary(Vec<u8>),
    Ping(Vec<u8>),
    Pong(Vec<u8>),
    Close(Option<u16>, String),
}

impl From<Event<'_>> for Owned {
    fn from(event: Event<'_>) -> Self {
        match event {
            Event::Text(text) => Self::Text(text.into()),
            Event::Binary(bytes) => Self::Binary(bytes.into()),
            Event::Ping(bytes) => Self::Ping(bytes.into()),
            Event::Pong(bytes) => Self::Pong(bytes.into()),
            Event::Close { code, reason } => Self::Close(code, reason.into()),
        }
    }
}

fn text(text: &str) -> Owned {
    Owned::Text(text.into())
}

/// A client's frame, masked with `mask`.
fn frame(is_final: bool, opcode: u8, mask: [u8; 4], payload: &[u8]) -> Vec<u8> {
    let mut bytes = header(is_final, opcode, payload.len() as u64, mask);
    bytes.extend(payload.iter().zip(mask.iter().cycle()).map(|(byte, key)| byte ^ key));
    bytes
}

fn header(is_final: bool, opcode: u8, length: u64, mask: [u8; 4]) -> Vec<u8> {
    let mut bytes = vec![u8::from(is_final) << 7 | opcode];
    match length {
        0..=125 => bytes.push(0x80 | length as u8),
        126..=65535 => {
            bytes.push(0xfe);
            bytes.extend((length as u16).to_be_bytes());
        }
        _ => {
            bytes.push(0xff);
            bytes.extend(length.to_be_bytes());
        }
    }
    bytes.extend(mask);
    bytes
}

fn whole(opcode: u8, payload: &[u8]) -> Vec<u8> {
    frame(true, opcode, [0x12, 0x34, 0x56, 0x78], payload)
}

fn part(opcode: u8, payload: &[u8]) -> Vec<u8> {
    frame(false, opcode, [0x9a, 0xbc, 0xde, 0xf0], payload)
}

/// Feeds `bytes` in pieces that end at `cuts`; the decoder is returned for a look at its state.
fn feed_cut(bytes: &[u8], cuts: &[usize]) -> (Vec<Owned>, Option<Violation>, Decoder) {
    feed_cut_with(None, bytes, cuts)
}

fn feed_cut_with(
    mut inflater: Option<&mut Inflater>,
    bytes: &[u8],
    cuts: &[usize],
) -> (Vec<Owned>, Option<Violation>, Decoder) {
    let mut decoder = Decoder::default();
    let mut events = Vec::new();
    let mut violation = None;
    let mut ends: Vec<usize> = cuts.iter().map(|cut| (*cut).min(bytes.len())).collect();
    ends.push(bytes.len());
    ends.sort_unstable();
    let mut start = 0;
    for end in ends {
        let mut piece = bytes[start..end].to_vec();
        let outcome = decoder.feed(&mut piece, &LIMITS, inflater.as_deref_mut(), &mut |event| {
            events.push(event.into());
            ControlFlow::Continue(())
        });
        if let Err(found) = outcome {
            assert_eq!(violation.replace(found), None, "a second violation");
        }
        start = end;
    }
    (events, violation, decoder)
}

/// Feeds `frames` at once, then byte by byte, and expects the same of both.
fn feed(frames: &[Vec<u8>]) -> (Vec<Owned>, Option<Violation>) {
    let bytes = frames.concat();
    let (events, violation, _) = feed_cut(&bytes, &[]);
    let every: Vec<usize> = (0..bytes.len()).collect();
    let (bytewise_events, bytewise_violation, _) = feed_cut(&bytes, &every);
    assert_eq!((&bytewise_events, &bytewise_violation), (&events, &violation), "byte by byte");
    (events, violation)
}

#[test]
fn idle_connection_costs_next_to_nothing() {
    assert!(size_of::<Decoder>() <= 32);
    let frames = [part(TEXT, b"a"), whole(PING, b"p"), whole(CONTINUATION, b"b")].concat();
    let every: Vec<usize> = (0..frames.len()).collect();
    let (events, _, decoder) = feed_cut(&frames, &every);
    assert_eq!(events, [Owned::Ping(b"p".to_vec()), text("ab")]);
    assert!(decoder.partial.is_none(), "memory of a complete message is kept");
}

#[test]
fn messages_joined_in_one_read_all_come_out() {
    let long = "é".repeat(500);
    let frames = [
        whole(TEXT, b"hello"),
        whole(TEXT, b""),
        whole(BINARY, b"\x00\xff"),
        whole(TEXT, long.as_bytes()),
        whole(PING, b""),
        whole(PONG, &[7; 125]),
    ];
    let (events, violation) = feed(&frames);
    let expected = [
        text("hello"),
        text(""),
        Owned::Binary(vec![0, 0xff]),
        text(&long),
        Owned::Ping(vec![]),
        Owned::Pong(vec![7; 125]),
    ];
    assert_eq!((events.as_slice(), violation), (&expected[..], None));
}

#[test]
fn message_in_one_read_is_decoded_without_keeping_anything() {
    let mut decoder = Decoder::default();
    let mut bytes = whole(TEXT, b"hello");
    let range = bytes.as_ptr_range();
    let mut seen = false;
    decoder
        .feed(&mut bytes, &LIMITS, None, &mut |event| {
            let Event::Text(text) = event else { panic!("{event:?}") };
            assert!(range.contains(&text.as_ptr()), "the text was copied");
            seen = true;
            ControlFlow::Continue(())
        })
        .unwrap();
    assert!(seen && decoder.partial.is_none());
}

#[test]
fn fragments_are_joined_and_control_frames_between_them_come_first() {
    let (events, violation) = feed(&[
        part(TEXT, b"one \xf0\x9f"),
        whole(PING, b"ping"),
        part(CONTINUATION, b""),
        whole(PONG, b""),
        whole(CONTINUATION, b"\x8e\xb2 two"),
        whole(BINARY, b"\xff"),
    ]);
    assert_eq!(violation, None);
    let expected =
        [Owned::Ping(b"ping".to_vec()), Owned::Pong(vec![]), text("one 🎲 two"), Owned::Binary(vec![0xff])];
    assert_eq!(events, expected);
}

#[test]
fn fragments_out_of_place_are_refused() {
    let stray = Some(Violation::StrayContinuation);
    assert_eq!(feed(&[whole(CONTINUATION, b"x")]), (vec![], stray));
    assert_eq!(feed(&[part(CONTINUATION, b"x")]), (vec![], stray));
    let after = feed(&[part(TEXT, b"a"), whole(CONTINUATION, b"b"), whole(CONTINUATION, b"c")]);
    assert_eq!(after, (vec![text("ab")], stray));
    for second in [whole(TEXT, b"b"), whole(BINARY, b"b"), part(TEXT, b"")] {
        assert_eq!(feed(&[part(TEXT, b"a"), second]), (vec![], Some(Violation::InterleavedMessage)));
    }
}

#[test]
fn frames_before_a_bad_one_are_delivered_and_those_after_it_are_not() {
    let bad = frame(true, 3, [0; 4], b"");
    let (events, violation) = feed(&[whole(TEXT, b"a"), bad, whole(TEXT, b"b")]);
    assert_eq!((events, violation), (vec![text("a")], Some(Violation::ReservedOpcode)));
}

#[test]
fn close_is_the_last_event() {
    let (events, violation) = feed(&[whole(CLOSE, b"\x03\xe9gone"), whole(TEXT, b"late")]);
    assert_eq!((events, violation), (vec![Owned::Close(Some(1001), "gone".into())], None));
    assert_eq!(feed(&[whole(CLOSE, b"")]), (vec![Owned::Close(None, String::new())], None));
    assert_eq!(feed(&[whole(CLOSE, b"\x03")]), (vec![], Some(Violation::CloseOfOneByte)));
    assert_eq!(feed(&[whole(CLOSE, b"\x03\xed")]), (vec![], Some(Violation::CloseCode(1005))));
    assert_eq!(feed(&[whole(CLOSE, b"\x03\xe8\xff")]), (vec![], Some(Violation::CloseReasonNotUtf8)));
}

#[test]
fn sink_ends_the_decoding() {
    let mut decoder = Decoder::default();
    let mut events = Vec::new();
    for mut input in [[whole(BINARY, b"x"), whole(TEXT, b"late")].concat(), whole(TEXT, b"later")] {
        let outcome = decoder.feed(&mut input, &LIMITS, None, &mut |event| {
            events.push(Owned::from(event));
            ControlFlow::Break(())
        });
        assert_eq!(outcome, Ok(()));
        assert!(decoder.is_finished());
    }
    assert_eq!(events, [Owned::Binary(b"x".to_vec())]);
}

#[test]
fn bad_utf8_is_refused_whole_split_and_as_soon_as_it_arrives() {
    let refused = (vec![], Some(Violation::TextNotUtf8));
    assert_eq!(feed(&[whole(TEXT, b"a\xff")]), refused);
    assert_eq!(feed(&[whole(TEXT, b"a\xc3")]), refused);
    assert_eq!(feed(&[part(TEXT, b"a\xc3"), whole(CONTINUATION, b"a")]), refused);
    assert_eq!(feed(&[part(TEXT, b"a"), whole(CONTINUATION, b"\xc3")]), refused);
    assert_eq!(feed(&[part(TEXT, b"\xed\xa0")]), refused, "a fragment of a message that goes on");
    let unfinished = whole(TEXT, b"ok \xff and so on");
    assert_eq!(feed(&[unfinished[..11].to_vec()]), refused, "a frame whose rest has not arrived");
    assert_eq!(feed(&[whole(BINARY, b"\xff")]), (vec![Owned::Binary(vec![0xff])], None));
}

#[test]
fn too_big_is_refused_by_the_header_before_anything_is_kept() {
    let too_big = Some(Violation::MessageTooBig { limit: 1000 });
    assert_eq!(feed(&[whole(TEXT, &[b'a'; 1000])]).1, None);
    for length in [1001, 16 << 20, 1 << 63, u64::MAX] {
        let (events, violation, decoder) = feed_cut(&header(true, TEXT, length, [1; 4]), &[]);
        assert_eq!((events, violation), (vec![], too_big));
        assert!(decoder.partial.is_none());
    }
    assert_eq!(feed(&[part(TEXT, &[b'a'; 600]), header(true, CONTINUATION, 401, [1; 4])]).1, too_big);
    assert_eq!(feed(&[part(TEXT, &[b'a'; 600]), whole(CONTINUATION, &[b'a'; 400])]).1, None);
}

#[test]
fn partial_message_takes_memory_for_what_arrived_only() {
    let mut bytes = header(true, BINARY, 1000, [1; 4]);
    bytes.extend([0; 10]);
    let (_, _, decoder) = feed_cut(&bytes, &[]);
    let kept = decoder.partial.expect("a partial frame").message.expect("a partial message");
    assert_eq!(kept.len(), 10);
}

#[test]
fn too_many_fragments_are_refused_even_empty_ones() {
    let within =
        [part(TEXT, b""), part(CONTINUATION, b""), part(CONTINUATION, b""), whole(CONTINUATION, b"")];
    assert_eq!(feed(&within), (vec![text("")], None));
    let beyond = [part(TEXT, b""), part(CONTINUATION, b""), part(CONTINUATION, b""), part(CONTINUATION, b"")];
    let beyond = [beyond.concat(), part(CONTINUATION, b"")];
    assert_eq!(feed(&beyond), (vec![], Some(Violation::TooManyFragments { limit: 4 })));
}

/// The bit of a frame's first byte that begins a compressed message.
const COMPRESSED: u8 = 0x40;

fn deflated(message: &[u8]) -> Vec<u8> {
    Deflater::new(0).deflate(message).expect("it gets shorter").to_vec()
}

/// Feeds `frames` at once, then byte by byte, to a decoder that may expand, and expects the same of both.
fn feed_compressed(frames: &[Vec<u8>]) -> (Vec<Owned>, Option<Violation>) {
    let bytes = frames.concat();
    let mut inflater = Inflater::default();
    let (events, violation, _) = feed_cut_with(Some(&mut inflater), &bytes, &[]);
    let every: Vec<usize> = (0..bytes.len()).collect();
    let (bytewise_events, bytewise_violation, decoder) = feed_cut_with(Some(&mut inflater), &bytes, &every);
    assert_eq!((&bytewise_events, &bytewise_violation), (&events, &violation), "byte by byte");
    assert!(decoder.partial.is_none(), "memory is kept");
    (events, violation)
}

#[test]
fn compressed_and_plain_messages_come_in_one_stream() {
    let long = "naïve ".repeat(100);
    let payload = deflated(long.as_bytes());
    let (head, tail) = payload.split_at(9);
    let (events, violation) = feed_compressed(&[
        whole(COMPRESSED | TEXT, &payload),
        whole(TEXT, b"plain"),
        part(COMPRESSED | TEXT, head),
        whole(PING, b"between"),
        part(CONTINUATION, b""),
        whole(CONTINUATION, tail),
        whole(COMPRESSED | BINARY, &deflated(&[0xff; 900])),
        part(BINARY, &[1]),
        whole(CONTINUATION, &[2]),
    ]);
    let expected = [
        text(&long),
        text("plain"),
        Owned::Ping(b"between".to_vec()),
        text(&long),
        Owned::Binary(vec![0xff; 900]),
        Owned::Binary(vec![1, 2]),
    ];
    assert_eq!((events.as_slice(), violation), (&expected[..], None));
}

#[test]
fn rsv1_elsewhere_than_on_a_first_data_frame_is_refused() {
    let payload = deflated(&[b'a'; 500]);
    let reserved = Some(Violation::ReservedBits);
    assert_eq!(feed(&[whole(COMPRESSED | TEXT, &payload)]), (vec![], reserved), "it was not agreed on");
    for opcode in [PING, PONG, CLOSE] {
        assert_eq!(feed_compressed(&[whole(COMPRESSED | opcode, b"")]), (vec![], reserved));
    }
    for begin in [part(COMPRESSED | TEXT, &payload), part(TEXT, b"a")] {
        assert_eq!(feed_compressed(&[begin, whole(COMPRESSED | CONTINUATION, b"")]), (vec![], reserved));
    }
}

#[test]
fn the_limit_is_that_of_the_expanded_message() {
    let too_big = (vec![], Some(Violation::MessageTooBig { limit: 1000 }));
    let within = [whole(COMPRESSED | TEXT, &deflated(&[b'a'; 1000]))];
    assert_eq!(feed_compressed(&within), (vec![text(&"a".repeat(1000))], None));
    assert_eq!(feed_compressed(&[whole(COMPRESSED | TEXT, &deflated(&[b'a'; 1001]))]), too_big);
    assert_eq!(feed_compressed(&[whole(COMPRESSED | BINARY, &deflated(&vec![0; 10_000_000]))]), too_big);
    let header = header(true, COMPRESSED | TEXT, 2000, [1; 4]);
    assert_eq!(feed_compressed(&[header]), too_big, "by the header alone");
}

#[test]
fn what_cannot_be_compressed_may_be_sent_compressed_up_to_the_limit() {
    // Two stored blocks: 500 bytes each, with a header of 5 bytes.
    let block = |bytes: &[u8]| [&[0, 0xf4, 0x01, 0x0b, 0xfe][..], bytes].concat();
    let payload = [block(&[b'x'; 500]), block(&[b'y'; 500]), vec![0]].concat();
    let message = ["x".repeat(500), "y".repeat(500)].concat();
    assert_eq!(feed_compressed(&[whole(COMPRESSED | TEXT, &payload)]), (vec![text(&message)], None));
}

#[test]
fn expanded_text_is_checked_and_so_is_the_data() {
    let not_text = deflated(&[0xff; 100]);
    let refused = (vec![], Some(Violation::TextNotUtf8));
    assert_eq!(feed_compressed(&[whole(COMPRESSED | TEXT, &not_text)]), refused);
    let parts = [part(COMPRESSED | TEXT, &not_text[..3]), whole(CONTINUATION, &not_text[3..])];
    assert_eq!(feed_compressed(&parts), refused);
    let broken = whole(COMPRESSED | TEXT, b"\xff\xff\xff");
    assert_eq!(feed_compressed(&[broken]), (vec![], Some(Violation::NotDeflate)));
}

/// Frames that are right or nearly right, so that random streams get deep into the decoder.
fn any_frame() -> impl Strategy<Value = Vec<u8>> {
    let payload = prop_oneof![
        "[a-zé🎲]{0,40}".prop_map(String::into_bytes),
        proptest::collection::vec(any::<u8>(), 0..40),
        "[a-z]{120,400}".prop_map(String::into_bytes),
        Just(b"\x03\xe8bye".to_vec()),
    ];
    let opcode = prop_oneof![
        8 => Just(TEXT), 4 => Just(CONTINUATION), 2 => Just(BINARY), 3 => Just(PING), 1 => Just(PONG),
        1 => Just(CLOSE), 1 => 0u8..16,
    ];
    let spoil = proptest::option::weighted(0.1, (0usize..14, any::<u8>()));
    (any::<bool>(), opcode, any::<[u8; 4]>(), payload, spoil).prop_map(
        |(is_final, opcode, mask, payload, spoil)| {
            let mut bytes = frame(is_final || opcode >= CLOSE, opcode, mask, &payload);
            if let Some((at, value)) = spoil {
                let at = at % bytes.len();
                bytes[at] = value;
            }
            bytes
        },
    )
}

proptest! {
    #[test]
    fn any_split_of_frames_gives_the_same_messages(
        frames in proptest::collection::vec(any_frame(), 0..8),
        cuts in proptest::collection::vec(0usize..1500, 0..12),
    ) {
        let bytes = frames.concat();
        let (events, violation, _) = feed_cut(&bytes, &[]);
        let (split_events, split_violation, _) = feed_cut(&bytes, &cuts);
        prop_assert_eq!(split_events, events);
        prop_assert_eq!(split_violation, violation);
    }

    #[test]
    fn any_split_of_garbage_gives_the_same_messages(
        bytes in proptest::collection::vec(any::<u8>(), 0..300),
        cuts in proptest::collection::vec(0usize..300, 0..12),
    ) {
        let (events, violation, _) = feed_cut(&bytes, &[]);
        let (split_events, split_violation, _) = feed_cut(&bytes, &cuts);
        prop_assert_eq!(split_events, events);
        prop_assert_eq!(split_violation, violation);
    }

    #[test]
    fn any_split_of_frames_gives_the_same_messages_where_compression_was_agreed_on(
        frames in proptest::collection::vec((any_frame(), any::<bool>()), 0..8),
        cuts in proptest::collection::vec(0usize..1500, 0..12),
    ) {
        let mut inflater = Inflater::default();
        let mark = |(mut frame, marked): (Vec<u8>, bool)| {
            frame[0] |= u8::from(marked) * COMPRESSED;
            frame
        };
        let bytes = frames.into_iter().map(mark).collect::<Vec<_>>().concat();
        let (events, violation, _) = feed_cut_with(Some(&mut inflater), &bytes, &[]);
        let (split_events, split_violation, _) = feed_cut_with(Some(&mut inflater), &bytes, &cuts);
        prop_assert_eq!(split_events, events);
        prop_assert_eq!(split_violation, violation);
    }

    #[test]
    fn any_message_comes_out_as_it_went_in(
        message in ".{0,200}",
        mask: [u8; 4],
        breaks in proptest::collection::vec(0usize..800, 0..4),
        cuts in proptest::collection::vec(0usize..900, 0..12),
    ) {
        let payload = message.as_bytes();
        let mut ends: Vec<usize> = breaks.into_iter().take(3).map(|end| end.min(payload.len())).collect();
        ends.push(payload.len());
        ends.sort_unstable();
        let (mut bytes, mut start) = (Vec::new(), 0);
        for (i, end) in ends.iter().enumerate() {
            let opcode = if i == 0 { TEXT } else { CONTINUATION };
            bytes.extend(frame(i + 1 == ends.len(), opcode, mask, &payload[start..*end]));
            start = *end;
        }
        let (events, violation, decoder) = feed_cut(&bytes, &cuts);
        prop_assert_eq!((events, violation), (vec![text(&message)], None));
        prop_assert!(decoder.partial.is_none());
    }
}
