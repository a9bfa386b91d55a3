//! What goes out, over which channel, and with which number.

use bytes::Bytes;

use super::*;
use crate::uplink::batch::{HEADER_BYTES, Record, parse_header, parse_records, parse_sections};
use crate::uplink::history::{Epochs, HistoryCaller, HistoryRules};
use crate::uplink::lane;
use crate::uplink::link::Handshake;

fn publisher() -> Publisher {
    behind(lane::closed())
}

fn behind(gate: Gate) -> Publisher {
    let batching = Batching { size: 1_000, compress_from: usize::MAX, batches_per_peer: 1 };
    let caller = HistoryCaller::new("t:", Origin(7), HistoryRules::none());
    let stores = StoreQueue::new(caller, Epochs::new(1), Vec::new());
    let this = (&InstanceId::parse("x").unwrap(), Origin(7));
    Publisher::new(Channels::new("t:"), this, batching, stores, gate, Arc::default()).unwrap()
}

fn down(now: Instant) -> Link<Sent> {
    let handshake = Handshake { username: None, password: None, db: 0, name: "t".into() };
    Link::new(handshake, Duration::from_secs(1), 1, now)
}

fn connect(link: &mut Link<Sent>, now: Instant) {
    link.connected(now);
    link.receive(b"+OK\r\n+OK\r\n+OK\r\n", now, &mut Vec::new()).unwrap();
    link.wrote(link.output().len());
}

fn up(now: Instant) -> Link<Sent> {
    let mut link = down(now);
    connect(&mut link, now);
    link
}

fn room(name: &str) -> Target {
    Target::Room(RoomId::parse(name).unwrap())
}

fn add(publisher: &mut Publisher, target: Target, event: &'static str) {
    publisher.add(Publication::Event { target, event: Bytes::from_static(event.as_bytes()) });
}

/// Channel and payload of each PUBLISH that waits to be written.
fn published(link: &mut Link<Sent>) -> Vec<(String, Vec<u8>)> {
    let (mut out, mut decoder) = (Vec::new(), crate::uplink::wire::Decoder::default());
    decoder
        .feed(link.output(), |inbound| {
            let crate::uplink::wire::Inbound::Reply(Ok(redis::Value::Array(parts))) = inbound else {
                panic!("commands are arrays")
            };
            let [_, redis::Value::BulkString(channel), redis::Value::BulkString(payload)] = &parts[..] else {
                panic!("PUBLISH has two arguments: {parts:?}")
            };
            out.push((String::from_utf8(channel.clone()).unwrap(), payload.clone()));
        })
        .unwrap();
    link.wrote(link.output().len());
    out
}

#[test]
fn events_of_one_channel_share_a_batch_in_order() {
    let now = Instant::now();
    let (mut publisher, mut link) = (publisher(), up(now));
    add(&mut publisher, room("a"), "1");
    add(&mut publisher, Target::Global, "g");
    add(&mut publisher, room("a"), "2");
    publisher.flush(&mut link, now);
    let sent = published(&mut link);
    assert_eq!(sent.iter().map(|(c, _)| c.as_str()).collect::<Vec<_>>(), ["t:rooms:a", "t:global"]);
    let records = parse_records(&sent[0].1[HEADER_BYTES..]).unwrap();
    assert_eq!(records, [Record::Event("1"), Record::Event("2")]);
    assert_eq!(link.awaited(), 2);
    publisher.flush(&mut link, now);
    assert!(published(&mut link).is_empty(), "sent once");
}

#[test]
fn size_sends_before_the_time() {
    let mut publisher = publisher();
    add(&mut publisher, room("a"), "x");
    assert!(!publisher.is_full());
    let long: &'static str = "y".repeat(1_000).leak();
    add(&mut publisher, room("b"), long);
    assert!(publisher.is_full());
}

#[test]
fn numbers_rise_per_room_also_for_what_was_dropped() {
    let now = Instant::now();
    let (mut publisher, mut link) = (publisher(), up(now));
    let mut sequences = Vec::new();
    for step in 0..4 {
        add(&mut publisher, room("a"), "1");
        if step == 2 {
            publisher.flush(&mut down(now), now);
        } else {
            publisher.flush(&mut link, now);
            let sent = published(&mut link);
            sequences.push(parse_header(&sent[0].1).unwrap().sequence);
        }
    }
    assert_eq!(sequences, [Sequence::Begins(1), Sequence::Follows(2), Sequence::Follows(4)]);
    assert_eq!(publisher.cells.publications_dropped.get(), 1);
}

#[test]
fn rooms_that_missed_something_are_told_when_the_link_is_back() {
    let now = Instant::now();
    let (mut publisher, mut link) = (publisher(), up(now));
    add(&mut publisher, room("unanswered"), "1");
    publisher.flush(&mut link, now);
    publisher.link_lost(link.lost(now));
    add(&mut publisher, room("dropped"), "1");
    publisher.flush(&mut link, now);
    connect(&mut link, now);
    publisher.link_up(&mut link, now);
    let mut sent = published(&mut link);
    sent.sort();
    assert_eq!(
        sent.iter().map(|(c, _)| c.as_str()).collect::<Vec<_>>(),
        ["t:rooms:dropped", "t:rooms:unanswered"]
    );
    for (_, batch) in &sent {
        assert_eq!(parse_records(&batch[HEADER_BYTES..]).unwrap(), [Record::Resync]);
        assert_eq!(parse_header(batch).unwrap().sequence, Sequence::Begins(2));
    }
    publisher.link_up(&mut link, now);
    assert!(published(&mut link).is_empty(), "told once");
}

#[test]
fn a_room_that_goes_quiet_repeats_its_sequence_once() {
    let now = Instant::now();
    let (mut publisher, mut link) = (publisher(), up(now));
    add(&mut publisher, room("a"), "1");
    publisher.flush(&mut link, now);
    let later = now + QUIET / 2;
    add(&mut publisher, room("a"), "2");
    publisher.flush(&mut link, later);
    published(&mut link);
    publisher.flush(&mut link, now + QUIET);
    assert!(published(&mut link).is_empty(), "it was not quiet for long enough");
    assert_eq!(publisher.deadline(), Some(later + QUIET));
    publisher.flush(&mut link, later + QUIET);
    let sent = published(&mut link);
    assert_eq!(parse_header(&sent[0].1).unwrap().sequence, Sequence::Follows(2));
    let records = parse_records(&sent[0].1[HEADER_BYTES..]).unwrap();
    assert_eq!(records, [Record::Quiet { since_ms: QUIET.as_millis() as u32 }]);
    publisher.flush(&mut link, later + 9 * QUIET);
    assert!(published(&mut link).is_empty(), "once");
}

#[test]
fn unused_numberings_are_forgotten() {
    let now = Instant::now();
    let (mut publisher, mut link) = (publisher(), up(now));
    add(&mut publisher, room("a"), "1");
    publisher.flush(&mut link, now);
    publisher.flush(&mut link, now + NUMBERING_KEPT);
    assert!(publisher.numbering.is_empty());
}

const TERM: u64 = 3;

fn open(peers: usize, until: Instant) -> Gate {
    let gate = lane::closed();
    gate.store(Arc::new(Grant { peers, until: Some(until), term: TERM }));
    gate
}

/// Sends one event to each of the rooms.
fn say(
    publisher: &mut Publisher,
    link: &mut Link<Sent>,
    rooms: &[&str],
    now: Instant,
) -> Vec<(String, Vec<u8>)> {
    for name in rooms {
        add(publisher, room(name), "1");
    }
    publisher.flush(link, now);
    published(link)
}

fn channels(sent: &[(String, Vec<u8>)]) -> Vec<&str> {
    sent.iter().map(|(channel, _)| channel.as_str()).collect()
}

#[test]
fn more_batches_than_peers_share_one_over_the_lane_and_rooms_keep_their_numbers() {
    let now = Instant::now();
    let (mut publisher, mut link) = (behind(open(2, now + DOUBT)), up(now));
    let sent = say(&mut publisher, &mut link, &["a", "b"], now);
    assert_eq!(channels(&sent), ["t:rooms:a", "t:rooms:b"]);
    add(&mut publisher, Target::Global, "g");
    let sent = say(&mut publisher, &mut link, &["a", "c"], now);
    assert_eq!(channels(&sent), ["t:lane:x"]);
    let sections = parse_sections(&sent[0].1[HEADER_BYTES..], |_| true).unwrap();
    let of = |name, sequence| Section::Room { name, sequence };
    let targets: Vec<_> = sections.iter().map(|(section, _)| *section).collect();
    assert_eq!(targets, [Section::Everyone, of("a", Sequence::Follows(2)), of("c", Sequence::Begins(1))]);
    assert!(sections[1..].iter().all(|(_, records)| records[..] == [Record::Event("1")]));
    // And back to the channels when the time is up.
    let sent = say(&mut publisher, &mut link, &["a", "b", "c"], now + DOUBT);
    assert_eq!(channels(&sent), ["t:rooms:a", "t:rooms:b", "t:rooms:c"]);
    assert_eq!(parse_header(&sent[0].1).unwrap().sequence, Sequence::Follows(3));
}

/// What follows a batch over the lane that is answered so, by a gate that is as `change` leaves it.
fn answered(reached: i64, change: impl FnOnce(&Gate), after: Duration) -> (Vec<String>, Vec<String>) {
    let now = Instant::now();
    let gate = open(1, now + 2 * DOUBT);
    let (mut publisher, mut link) = (behind(Arc::clone(&gate)), up(now));
    say(&mut publisher, &mut link, &["a", "b"], now);
    let Some(Sent::Lane(sent)) = link.lost(now).pop() else { panic!("a batch went over the lane") };
    connect(&mut link, now);
    change(&gate);
    let now = now + after;
    publisher.lane_answered(sent, &Value::Int(reached), &mut link, now);
    let names = |sent: Vec<(String, Vec<u8>)>| sent.into_iter().map(|(channel, _)| channel).collect();
    let told: Vec<String> = names(published(&mut link));
    (told, names(say(&mut publisher, &mut link, &["a", "b"], now)))
}

#[test]
fn a_lane_batch_that_may_not_have_reached_all_is_made_good() {
    let (told, next) = answered(1, |_| (), Duration::ZERO);
    assert_eq!((told.len(), &next[..]), (0, &["t:lane:x".to_owned()][..]));
    let (told, next) = answered(0, |_| (), Duration::ZERO);
    assert_eq!(
        (told.len(), next.len()),
        (0, 2),
        "whoever is missing resyncs; the lane is left alone for a while"
    );
    let (mut told, _) = answered(1, |_| (), 2 * DOUBT);
    told.sort();
    assert_eq!(told, ["t:rooms:a", "t:rooms:b"], "answered too late");
    let end = |gate: &Gate| gate.store(Arc::new(Grant { term: TERM + 1, ..**gate.load() }));
    assert_eq!(answered(1, end, Duration::ZERO).0.len(), 2, "the term has ended");
}

#[test]
fn rooms_of_a_lane_batch_without_an_answer_are_told() {
    let now = Instant::now();
    let (mut publisher, mut link) = (behind(open(1, now + DOUBT)), up(now));
    say(&mut publisher, &mut link, &["a", "b"], now);
    publisher.link_lost(link.lost(now));
    connect(&mut link, now);
    publisher.link_up(&mut link, now);
    let mut told: Vec<_> = published(&mut link).into_iter().map(|(channel, _)| channel).collect();
    told.sort();
    assert_eq!(told, ["t:rooms:a", "t:rooms:b"]);
}
