//! Events become batches for Redis, and batches events.

use std::hint::black_box;

use tableforge::codec::frame;
use tableforge::uplink::batch::{self, Header, Origin, Sequence};
use tableforge::uplink::packing::{Packer, Readers, Unpacker};

use super::{Entry, Operation, json_object};

/// Bytes of one event.
const EVENT_BYTES: usize = 170;

const HEADER: Header =
    Header { origin: Origin(0x0123_4567_89AB_CDEF), sequence: Sequence::Follows(7), from_script: false };

/// Bytes from which a batch is compressed, and for whom.
type Form = (usize, Readers);

const PLAIN: Form = (usize::MAX, Readers::Anyone);
const ZSTD: Form = (0, Readers::Anyone);

pub fn entries() -> Vec<Entry> {
    let mut entries = Vec::new();
    for (events, batch) in [(1, "1_event"), (100, "100_events")] {
        for (form, name) in [(PLAIN, "plain"), (ZSTD, "zstd")] {
            entries
                .push(Entry::new(format!("uplink/pack/{batch}/{name}"), events, move || pack(events, form)));
            entries.push(Entry::new(format!("uplink/unpack/{batch}/{name}"), events, move || {
                unpack(events, form)
            }));
        }
    }
    entries.push(Entry::new("uplink/frame/100_events", 100, || frames(100)));
    entries
}

fn events(count: usize) -> Vec<String> {
    (0..count).map(|number| json_object(EVENT_BYTES, number)).collect()
}

/// Events are gathered as the publisher does and packed.
fn pack(count: usize, (compress_from, readers): Form) -> impl Operation {
    let events = events(count);
    let mut packer = Packer::new(compress_from).expect("memory for zstd");
    move || {
        let mut records = Vec::new();
        for event in black_box(&events) {
            batch::push_event(&mut records, event.as_bytes());
        }
        black_box(packer.pack(HEADER, &records, readers));
    }
}

/// A batch is unpacked and its records are found.
fn unpack(count: usize, (compress_from, readers): Form) -> impl Operation {
    let mut records = Vec::new();
    events(count).iter().for_each(|event| batch::push_event(&mut records, event.as_bytes()));
    let batch = Packer::new(compress_from).expect("memory for zstd").pack(HEADER, &records, readers);
    let compressed = batch.len() < batch::HEADER_BYTES + records.len();
    assert_eq!(compressed, compress_from == 0);
    let mut unpacker = Unpacker::new().expect("memory for zstd");
    move || {
        let bytes = unpacker.unpack(black_box(&batch)).expect("a valid batch");
        let records = batch::parse_records(&bytes).expect("valid records");
        assert_eq!(black_box(records).len(), count);
    }
}

/// The frames of a batch's events are built.
fn frames(count: usize) -> impl Operation {
    let events = events(count);
    move || {
        for event in black_box(&events) {
            black_box(frame::text(event));
        }
    }
}
