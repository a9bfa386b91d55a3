//! What is packed comes out, and what is no batch stays bounded.

use proptest::prelude::*;

use super::*;
use crate::uplink::batch::{Origin, Record, Sequence, parse_records, parse_sections, push_event};

fn head(sequence: Sequence) -> Header {
    Header { origin: Origin(0x0102_0304_0506_0708), sequence, from_script: false }
}

fn events(texts: &[String]) -> Vec<u8> {
    let mut records = Vec::new();
    for text in texts {
        push_event(&mut records, text.as_bytes());
    }
    records
}

/// An event as clients' messages become.
fn event() -> Vec<u8> {
    let text = r#"{"type":"room_message","roomId":"table-7","senderId":"0f9e6a52-3c1d-4b8a-9e70-5d2c4f1b6a38","senderSocketId":"5a0c9f310000012e00000004","timestamp":1767225612345,"messageId":"m-12","data":{"text":"good evening, who begins?"}}"#;
    events(&[text.to_owned()])
}

#[test]
fn the_dictionary_makes_single_events_small() {
    let mut packer = Packer::new(0).unwrap();
    let records = event();
    let (plain, packed) = (
        packer.pack(head(Sequence::Follows(1)), &records, Readers::Anyone),
        packer.pack(head(Sequence::Follows(1)), &records, Readers::Peers),
    );
    assert!(packed.len() * 3 < plain.len() * 2, "{} of {} bytes", packed.len(), plain.len());
    assert_eq!((plain[3], packed[3], packed[4]), (1, 2, COMPRESSED | WITH_DICTIONARY));
    let mut unpacker = Unpacker::new().unwrap();
    assert_eq!(unpacker.unpack(&packed).unwrap(), records);
    // A receiver of the first version knows neither the version nor the dictionary.
    let mut lie = packed.clone();
    lie[3] = 1;
    assert_eq!(unpacker.unpack(&lie), Err(BatchError::Compression));
}

#[test]
fn a_batch_that_declares_too_much_is_refused() {
    for (version, flags) in [(1, COMPRESSED), (2, COMPRESSED | WITH_DICTIONARY)] {
        let mut batch = header(head(Sequence::Unnumbered)).to_vec();
        (batch[3], batch[4]) = (version, flags);
        batch.extend_from_slice(&(RECORDS_BYTES as u32 + 1).to_le_bytes());
        let zeros = vec![0; RECORDS_BYTES + 1];
        let packed = match version {
            1 => Compressor::new(1).unwrap().compress(&zeros),
            _ => Compressor::with_dictionary(1, DICTIONARY).unwrap().compress(&zeros),
        };
        batch.extend_from_slice(&packed.unwrap());
        assert_eq!(Unpacker::new().unwrap().unpack(&batch), Err(BatchError::Compression));
    }
}

#[test]
fn a_batch_that_inflates_beyond_what_it_declares_is_refused() {
    let records = events(&vec!["a".repeat(1_000); 100]);
    for readers in [Readers::Anyone, Readers::Peers] {
        let mut batch = Packer::new(0).unwrap().pack(head(Sequence::Follows(1)), &records, readers);
        assert!(batch.len() < records.len());
        batch[HEADER_BYTES..HEADER_BYTES + 4].copy_from_slice(&1_000u32.to_le_bytes());
        assert_eq!(Unpacker::new().unwrap().unpack(&batch), Err(BatchError::Compression));
    }
}

fn readers() -> impl Strategy<Value = Readers> {
    prop_oneof![Just(Readers::Anyone), Just(Readers::Peers)]
}

proptest! {
    #[test]
    fn what_was_packed_comes_out(
        texts in proptest::collection::vec(any::<String>(), 0..40),
        compress_from in prop_oneof![Just(0usize), Just(200), Just(usize::MAX)],
        readers in readers(), number in 0u64..5, begins: bool, from_script: bool,
    ) {
        let sequence = match (number, begins) {
            (0, _) => Sequence::Unnumbered,
            (n, true) => Sequence::Begins(n),
            (n, false) => Sequence::Follows(n),
        };
        let head = Header { origin: Origin(77), sequence, from_script };
        let batch = Packer::new(compress_from).unwrap().pack(head, &events(&texts), readers);
        prop_assert_eq!(parse_header(&batch), Ok(head));
        let records = Unpacker::new().unwrap().unpack(&batch).unwrap().into_owned();
        let expected: Vec<Record> = texts.iter().map(|t| Record::Event(t)).collect();
        prop_assert_eq!(parse_records(&records).unwrap(), expected);
    }

    #[test]
    fn any_bytes_give_records_or_an_error(
        body in proptest::collection::vec(any::<u8>(), 0..200), flags: u8, version in 1u8..3, valid_head: bool,
    ) {
        let mut bytes = if valid_head { header(head(Sequence::Follows(1))).to_vec() } else { Vec::new() };
        if valid_head {
            (bytes[3], bytes[4]) = (version, flags);
        }
        bytes.extend_from_slice(&body);
        if let Ok(records) = Unpacker::new().unwrap().unpack(&bytes) {
            prop_assert!(records.len() <= RECORDS_BYTES);
            let _ = parse_records(&records);
            let _ = parse_sections(&records, |_| true);
        }
    }

    #[test]
    fn garbled_and_truncated_batches_never_panic(
        texts in proptest::collection::vec("[a-z]{0,300}", 1..10), readers in readers(),
        compress: bool, at in any::<prop::sample::Index>(), with: u8, cut in any::<prop::sample::Index>(),
    ) {
        let from = if compress { 0 } else { usize::MAX };
        let mut batch = Packer::new(from).unwrap().pack(head(Sequence::Follows(3)), &events(&texts), readers);
        let place = at.index(batch.len());
        batch[place] ^= with;
        batch.truncate(cut.index(batch.len() + 1));
        if let Ok(records) = Unpacker::new().unwrap().unpack(&batch) {
            let _ = parse_records(&records);
            let _ = parse_sections(&records, |_| true);
        }
    }
}
