//! The ring's invariants, on real sockets.

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::time::{Duration, Instant};

use bytes::Bytes;

use super::*;

fn ring(buffers: u16) -> (Ring, SocketAddr) {
    let settings = RingSettings { submissions: 8, completions: 64, buffers, buffer_bytes: 16 };
    let mut ring = Ring::new(settings).expect("io_uring with DEFER_TASKRUN");
    let address = ring.listen("127.0.0.1:0".parse().unwrap()).unwrap();
    ring.accept();
    (ring, address)
}

/// Turns the ring until `wanted` finds what it looks for.
fn turn_until<T>(ring: &mut Ring, mut wanted: impl FnMut(&mut Ring, Completion) -> Option<T>) -> T {
    let deadline = Instant::now() + Duration::from_secs(10);
    while Instant::now() < deadline {
        ring.submit_and_wait(1, Duration::from_millis(100));
        let mut completions = Vec::new();
        ring.reap(usize::MAX, &mut completions);
        let mut found = None;
        for completion in completions {
            found = wanted(ring, completion).or(found);
        }
        if let Some(found) = found {
            return found;
        }
    }
    panic!("nothing of the kind happened in 10 s");
}

fn accepted(ring: &mut Ring, address: SocketAddr) -> (TcpStream, Key) {
    let client = TcpStream::connect(address).unwrap();
    // Nothing is acknowledged by itself at once, and a client may hold back what comes next until then.
    client.set_nodelay(true).unwrap();
    let key = turn_until(ring, |_, completion| match completion {
        Completion::Accepted(key) => Some(key),
        _ => None,
    });
    (client, key)
}

fn batch(segments: Vec<Segment>) -> Box<SendBatch> {
    let mut batch = Box::<SendBatch>::default();
    segments.into_iter().for_each(|segment| batch.push(segment));
    batch
}

#[test]
fn who_does_not_fit_into_one_reap_is_accepted_in_the_next() {
    let (mut ring, address) = ring(4);
    let clients: Vec<_> = (0..5).map(|_| TcpStream::connect(address).unwrap()).collect();
    let mut accepted = Vec::new();
    while accepted.len() < clients.len() {
        // Nothing else happens that would end this wait.
        ring.submit_and_wait(1, Duration::from_secs(10));
        let mut completions = Vec::new();
        ring.reap(2, &mut completions);
        assert!((1..=2).contains(&completions.len()), "{completions:?}");
        accepted.extend(completions);
    }
    assert!(accepted.iter().all(|completion| matches!(completion, Completion::Accepted(_))), "{accepted:?}");
}

#[test]
fn clients_are_accepted_however_much_others_send() {
    let (mut ring, address) = ring(32);
    let mut clients: Vec<_> = (0..8).map(|_| accepted(&mut ring, address)).collect();
    clients.iter().for_each(|(_, key)| ring.receive(*key));
    ring.submit();
    let _newcomer = TcpStream::connect(address).unwrap();
    // In the first round the ring finds out that somebody waits, and the others fill what it may bring.
    let mut came = 0;
    for _ in 0..2 {
        clients.iter_mut().for_each(|(client, _)| client.write_all(b"x").unwrap());
        // The first call may stay out of the kernel, for what is there already.
        ring.submit_and_wait(9, Duration::from_millis(50));
        ring.submit_and_wait(9, Duration::from_millis(50));
        let mut completions = Vec::new();
        ring.reap(8, &mut completions);
        assert_eq!(completions.len(), 8, "{completions:?}");
        came += completions.iter().filter(|completion| matches!(completion, Completion::Accepted(_))).count();
        for completion in completions {
            if let Completion::Received(_, filled) = completion {
                ring.recycle(filled);
            }
        }
    }
    assert_eq!(came, 1);
}

#[test]
fn nobody_is_accepted_once_the_ring_does_not_listen() {
    let (mut ring, address) = ring(4);
    let _client = accepted(&mut ring, address);
    let waiting = TcpStream::connect(address).unwrap();
    ring.stop_listening();
    ring.submit_and_wait(1, Duration::from_millis(20));
    let mut completions = Vec::new();
    ring.reap(usize::MAX, &mut completions);
    assert!(completions.is_empty(), "{completions:?}");
    assert!(TcpStream::connect(address).is_err());
    drop(waiting);
}

#[test]
fn bytes_arrive_and_segments_leave_in_order() {
    let (mut ring, address) = ring(8);
    let (mut client, key) = accepted(&mut ring, address);
    assert_eq!(ring.peer_address(key), Some(client.local_addr().unwrap()));
    ring.receive(key);
    client.write_all(b"a message longer than one buffer of sixteen bytes").unwrap();
    let mut heard = Vec::new();
    turn_until(&mut ring, |ring, completion| {
        let Completion::Received(_, mut filled) = completion else { return None };
        heard.extend_from_slice(ring.bytes_mut(&mut filled));
        ring.recycle(filled);
        (heard.len() == 49).then_some(())
    });
    assert_eq!(heard, b"a message longer than one buffer of sixteen bytes");

    let mut log = FrameLog::default();
    let mut stretch = log.append(b" thr").unwrap();
    stretch.lengthen(&log.append(b"ee").unwrap());
    let parts = vec![
        Segment::Shared(Bytes::from_static(b"one ")),
        Segment::Copied(b"two".to_vec()),
        Segment::Logged(stretch),
    ];
    ring.send(key, batch(parts)).unwrap();
    turn_until(&mut ring, |_, completion| match completion {
        Completion::Sent(_, batch, outcome) => {
            assert_eq!((batch.bytes(), outcome.is_ok()), (13, true));
            Some(())
        }
        _ => None,
    });
    let mut answer = [0; 13];
    client.read_exact(&mut answer).unwrap();
    assert_eq!(&answer, b"one two three");
}

#[test]
fn receiving_goes_on_after_the_buffers_ran_out() {
    let (mut ring, address) = ring(2);
    let mut clients: Vec<_> = (0..6).map(|_| accepted(&mut ring, address)).collect();
    for (client, key) in &mut clients {
        ring.receive(*key);
        client.write_all(&[b'x'; 100]).unwrap();
    }
    // Held back for a while, so that the kernel finds no buffer.
    let mut held = Vec::new();
    let mut bytes = 0;
    turn_until(&mut ring, |ring, completion| {
        if let Completion::Received(_, mut filled) = completion {
            bytes += ring.bytes_mut(&mut filled).len();
            held.push(filled);
        }
        if held.len() == 2 {
            held.drain(..).for_each(|filled| ring.recycle(filled));
        }
        (bytes == 600).then_some(())
    });
}

#[test]
fn a_client_that_sends_much_does_not_keep_buffers_from_the_others() {
    let (mut ring, address) = ring(2);
    let mut clients: Vec<_> = (0..4).map(|_| accepted(&mut ring, address)).collect();
    // All bytes are in the sockets before the first receive: 2,000 buffers' worth against one.
    for (place, (client, _)) in clients.iter_mut().enumerate() {
        client.write_all(&vec![b'x'; if place == 0 { 32_000 } else { 16 }]).unwrap();
    }
    let mut quiet: Vec<_> = clients.iter().skip(1).map(|(_, key)| *key).collect();
    clients.iter().for_each(|(_, key)| ring.receive(*key));
    let mut buffers_before = 0;
    turn_until(&mut ring, |ring, completion| {
        let Completion::Received(key, filled) = completion else { return None };
        ring.recycle(filled);
        buffers_before += 1;
        quiet.retain(|other| *other != key);
        quiet.is_empty().then_some(())
    });
    assert!(buffers_before < 40, "{buffers_before} buffers were filled before everyone had one");
}

#[test]
fn what_waits_for_a_buffer_is_known_and_can_be_left_unread() {
    let (mut ring, address) = ring(2);
    let mut clients: Vec<_> = (0..3).map(|_| accepted(&mut ring, address)).collect();
    for (client, _) in &mut clients {
        client.write_all(&[b'x'; 16]).unwrap();
    }
    clients.iter().for_each(|(_, key)| ring.receive(*key));
    // Both buffers are held, so that there is none for the third.
    let mut held = Vec::new();
    turn_until(&mut ring, |_, completion| {
        if let Completion::Received(_, filled) = completion {
            held.push(filled);
        }
        (held.len() == 2).then_some(())
    });
    let last = clients[2].1;
    assert!(ring.has_unread());
    assert!(ring.unread().contains(&(last, 16)), "{:?}", ring.unread());

    ring.stop_receiving(last);
    held.drain(..).for_each(|filled| ring.recycle(filled));
    clients[0].0.write_all(b"more").unwrap();
    let from = turn_until(&mut ring, |ring, completion| {
        let Completion::Received(key, filled) = completion else { return None };
        ring.recycle(filled);
        Some(key)
    });
    assert_eq!(from, clients[0].1);
    assert!(!ring.unread().iter().any(|(key, _)| *key == last));
    ring.close(last);
    turn_until(&mut ring, |_, completion| {
        matches!(completion, Completion::Closed(key) if key == last).then_some(())
    });
}

#[test]
fn when_nothing_is_unread_all_sockets_have_been_read() {
    let (mut ring, address) = ring(256);
    let mut clients: Vec<_> = (0..200).map(|_| accepted(&mut ring, address)).collect();
    clients.iter().for_each(|(_, key)| ring.receive(*key));
    ring.submit_and_wait(1, Duration::ZERO);
    for (client, _) in &mut clients {
        client.write_all(b"hello").unwrap();
    }
    let mut received = 0;
    let deadline = Instant::now() + Duration::from_secs(10);
    loop {
        assert!(Instant::now() < deadline, "{received} of 200 were received, and there is said to be more");
        let mut completions = Vec::new();
        ring.submit_and_wait(1, Duration::ZERO);
        ring.reap(usize::MAX, &mut completions);
        for completion in completions {
            if let Completion::Received(_, filled) = completion {
                ring.recycle(filled);
                received += 1;
            }
        }
        if !ring.has_unread() {
            break;
        }
    }
    assert_eq!(received, 200);
}

#[test]
fn a_short_send_is_finished_by_the_kernel() {
    let (mut ring, address) = ring(8);
    let (mut client, key) = accepted(&mut ring, address);
    let bytes = 8 << 20;
    ring.send(key, batch(vec![Segment::Copied(vec![7; bytes])])).unwrap();
    ring.submit();
    assert!(ring.send(key, batch(vec![Segment::Copied(vec![8])])).is_err(), "one batch at a time");
    let reader = std::thread::spawn(move || {
        let mut all = vec![0; bytes];
        client.read_exact(&mut all).unwrap();
        all.iter().all(|byte| *byte == 7)
    });
    turn_until(&mut ring, |_, completion| match completion {
        Completion::Sent(_, _, outcome) => {
            outcome.unwrap();
            Some(())
        }
        _ => None,
    });
    assert!(reader.join().unwrap());
}

#[test]
fn closing_with_operations_in_flight_waits_for_them_and_says_nothing_else() {
    let (mut ring, address) = ring(8);
    let (mut client, key) = accepted(&mut ring, address);
    ring.receive(key);
    ring.send(key, batch(vec![Segment::Copied(vec![7; 32 << 20])])).unwrap();
    ring.submit();
    client.write_all(b"too late").unwrap();
    ring.close(key);
    turn_until(&mut ring, |_, completion| match completion {
        Completion::Closed(closed) => {
            assert_eq!(closed, key);
            Some(())
        }
        Completion::Received(..) | Completion::Sent(..) | Completion::Ended(..) => {
            panic!("{completion:?} after close")
        }
        _ => None,
    });
    assert!(ring.send(key, batch(vec![Segment::Copied(vec![1])])).is_err(), "the connection has gone");
}

#[test]
fn a_used_slot_gets_a_new_generation_and_old_keys_do_nothing() {
    let (mut ring, address) = ring(8);
    let (_client, first) = accepted(&mut ring, address);
    ring.close(first);
    turn_until(&mut ring, |_, completion| matches!(completion, Completion::Closed(_)).then_some(()));
    let (mut client, second) = accepted(&mut ring, address);
    assert_eq!(second.slot, first.slot);
    assert_ne!(second.generation, first.generation);
    ring.close(first);
    assert!(ring.peer_address(first).is_none());
    ring.send(second, batch(vec![Segment::Copied(b"still here".to_vec())])).unwrap();
    ring.submit();
    let mut answer = [0; 10];
    client.read_exact(&mut answer).unwrap();
}

#[test]
fn the_end_of_a_peer_is_reported_once() {
    let (mut ring, address) = ring(8);
    let (client, key) = accepted(&mut ring, address);
    ring.receive(key);
    drop(client);
    turn_until(&mut ring, |_, completion| match completion {
        Completion::Ended(ended, _) => {
            assert_eq!(ended, key);
            Some(())
        }
        _ => None,
    });
    ring.close(key);
    turn_until(&mut ring, |_, completion| match completion {
        Completion::Closed(closed) => {
            assert_eq!(closed, key);
            Some(())
        }
        Completion::Ended(..) => panic!("a second end"),
        _ => None,
    });
}

#[test]
fn an_eventfd_wakes_the_ring_each_time() {
    let waker = crate::shard::outlet::Waker::new().unwrap();
    let (mut ring, _) = ring(8);
    ring.watch(waker.eventfd()).unwrap();
    for _ in 0..3 {
        waker.prepare_to_sleep();
        let other = std::thread::spawn({
            let waker = waker.clone();
            move || waker.wake()
        });
        turn_until(&mut ring, |_, completion| matches!(completion, Completion::Woken).then_some(()));
        waker.drain();
        other.join().unwrap();
    }
}

#[test]
fn a_ring_dropped_with_everything_in_flight_stops_first() {
    let (mut ring, address) = ring(8);
    let waker = crate::shard::outlet::Waker::new().unwrap();
    ring.watch(waker.eventfd()).unwrap();
    let mut clients: Vec<_> = (0..20).map(|_| accepted(&mut ring, address)).collect();
    for (client, key) in &mut clients {
        ring.receive(*key);
        ring.send(*key, batch(vec![Segment::Copied(vec![7; 16 << 20])])).unwrap();
        client.write_all(&[b'x'; 100]).unwrap();
    }
    ring.submit();
    drop(ring);
    for (mut client, _) in clients {
        client.set_read_timeout(Some(Duration::from_secs(10))).unwrap();
        let outcome = std::io::copy(&mut client, &mut std::io::sink());
        let ended = match &outcome {
            Ok(bytes) => *bytes < 16 << 20,
            Err(error) => error.kind() == std::io::ErrorKind::ConnectionReset,
        };
        assert!(ended, "the socket outlived its ring: {outcome:?}");
    }
}

#[test]
#[should_panic(expected = "the buffer belongs to another ring")]
fn a_token_that_outlives_its_ring_opens_nothing() {
    let (mut first, address) = ring(8);
    let (mut client, key) = accepted(&mut first, address);
    first.receive(key);
    client.write_all(b"x").unwrap();
    let mut filled = turn_until(&mut first, |_, completion| match completion {
        Completion::Received(_, filled) => Some(filled),
        _ => None,
    });
    drop(first);
    let (mut second, _) = ring(8);
    second.bytes_mut(&mut filled);
}

#[test]
fn a_peer_that_reads_late_gets_what_its_stretches_were_however_the_log_went_on() {
    // More than a socket takes at once, so that what follows is read later.
    const BEFORE: usize = 8 << 20;
    const HALF: usize = FrameLog::BYTES / 2;
    let (mut ring, address) = ring(8);
    let (mut client, key) = accepted(&mut ring, address);
    let mut logs: Vec<FrameLog> = (0..40).map(|_| FrameLog::default()).collect();
    let stretches =
        logs.iter_mut().enumerate().map(|(number, log)| log.append(&[number as u8; HALF]).unwrap());
    let parts = std::iter::once(Segment::Copied(vec![0xaa; BEFORE])).chain(stretches.map(Segment::Logged));
    ring.send(key, batch(parts.collect())).unwrap();
    ring.submit();
    let mut completions = Vec::new();
    ring.reap(usize::MAX, &mut completions);
    assert!(completions.is_empty(), "it is under way");
    for log in &mut logs {
        (0..HALF / 100).for_each(|_| assert!(log.append(&[0xff; 100]).is_some()));
        assert!(log.append(&[0xff; 100]).is_none(), "it is full, and does not begin anew");
    }
    drop(logs);
    let reader = std::thread::spawn(move || {
        let mut heard = vec![0; BEFORE + 40 * HALF];
        client.read_exact(&mut heard).unwrap();
        heard.split_off(BEFORE)
    });
    turn_until(&mut ring, |_, completion| matches!(completion, Completion::Sent(..)).then_some(()));
    let heard = reader.join().unwrap();
    for (number, half) in heard.chunks(HALF).enumerate() {
        assert!(half.iter().all(|byte| *byte == number as u8), "log {number}");
    }
}
