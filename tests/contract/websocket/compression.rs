//! permessage-deflate (RFC 7692): what is agreed on, what is understood, what is sent, what is refused.

use flate2::{Compress, Compression, Decompress, FlushCompress, FlushDecompress};
use serde_json::{Value, json};

use super::assert_serves;
use crate::harness::client::Client;
use crate::harness::http;
use crate::harness::raw::{BINARY, CLOSE, CONTINUATION, FIN, Frame, PING, RawSocket, TEXT, UPGRADE};
use crate::harness::server::Server;
use crate::harness::token;

/// The bit of a frame's first byte that begins a compressed message.
const RSV1: u8 = 0x40;

const OFFER: &str = "permessage-deflate; client_max_window_bits";
const ANSWER: &str = "permessage-deflate; server_no_context_takeover; client_no_context_takeover";

/// What ends a flushed DEFLATE stream, and is left out of a message.
const TAIL: [u8; 4] = [0, 0, 0xff, 0xff];

fn with_compression(settings: &[(&str, &str)]) -> Server {
    Server::start(&[&[("COMPRESSION", "on")], settings].concat())
}

/// The upgrade request to `path` with an offer.
fn offering(path: &str, offer: &str) -> String {
    let header = format!("Sec-WebSocket-Extensions: {offer}\r\nHost:");
    UPGRADE.replace("/ws", path).replace("Host:", &header)
}

/// The server's answer to an offer.
#[track_caller]
fn answer(server: &Server, offer: &str) -> Option<String> {
    let response = http::exchange(server.port, offering("/ws", offer).as_bytes()).expect("an answer");
    assert_eq!(response.status, 101, "{offer}");
    response.header("sec-websocket-extensions").map(ToOwned::to_owned)
}

/// A connection to `path` whose offer was taken, and its greeting.
#[track_caller]
fn connect(server: &Server, path: &str, offer: &str) -> (RawSocket, Value) {
    let mut socket = RawSocket::connect(server.port);
    socket.send(offering(path, offer).as_bytes());
    let response = socket.response();
    assert_eq!(response.status, 101, "{response:?}");
    assert!(response.header("sec-websocket-extensions").is_some(), "{offer} was declined");
    let greeting = socket.event();
    assert_eq!(greeting["type"], "connection_established", "{greeting}");
    (socket, greeting)
}

#[track_caller]
fn connect_to_room(server: &Server, offer: &str, room: &str) -> RawSocket {
    let (mut socket, _) = connect(server, "/ws", offer);
    socket.send_text(&json!({"type": "join_room", "roomId": room}).to_string());
    socket.expect("room_joined");
    socket
}

/// The payload of a compressed message.
fn deflated(message: &[u8]) -> Vec<u8> {
    let mut payload = Vec::with_capacity(message.len() + 64);
    let mut stream = Compress::new(Compression::default(), false);
    stream.compress_vec(message, &mut payload, FlushCompress::Sync).expect("it is compressed");
    payload.strip_suffix(&TAIL).expect("a flushed stream ends so").to_vec()
}

/// The event in a frame, and whether it came compressed. Each is expanded by itself: nothing of one may be
/// needed for the next.
#[track_caller]
fn event(frame: &Frame) -> (Value, bool) {
    let compressed = frame.first == FIN | RSV1 | TEXT;
    let mut message = frame.payload.clone();
    if compressed {
        message = Vec::with_capacity(1 << 20);
        let payload = [&frame.payload[..], &TAIL].concat();
        let mut stream = Decompress::new(false);
        stream.decompress_vec(&payload, &mut message, FlushDecompress::Sync).expect("it expands");
    } else {
        assert_eq!(frame.first, FIN | TEXT);
    }
    (serde_json::from_slice(&message).expect("the event is JSON"), compressed)
}

/// The next event of that type, and whether it came compressed.
#[track_caller]
fn expect(socket: &mut RawSocket, kind: &str) -> (Value, bool) {
    loop {
        let (event, compressed) = event(&socket.frame().expect("the connection is open"));
        if event["type"] == kind {
            return (event, compressed);
        }
    }
}

/// A string of `bytes` bytes that compresses well.
fn long(bytes: usize) -> String {
    "a die is cast. ".chars().cycle().take(bytes).collect()
}

#[test]
fn offers_are_taken_by_the_setting_and_by_what_they_ask_for() {
    let server = with_compression(&[]);
    for (offer, expected) in [
        ("permessage-deflate", Some(ANSWER.to_owned())),
        (OFFER, Some(ANSWER.to_owned())),
        (
            "permessage-deflate; server_max_window_bits=10",
            Some(format!("{ANSWER}; server_max_window_bits=10")),
        ),
        ("permessage-deflate; no_such_parameter, permessage-deflate", Some(ANSWER.to_owned())),
        ("permessage-deflate; server_max_window_bits=16", None),
        ("permessage-deflate; no_such_parameter", None),
        ("x-webkit-deflate-frame", None),
    ] {
        assert_eq!(answer(&server, offer), expected, "{offer}");
    }
    assert_eq!(answer(&Server::start(&[]), OFFER).as_deref(), Some(ANSWER), "on unless it is switched off");
    assert_eq!(answer(&Server::start(&[("COMPRESSION", "false")]), OFFER), None);
}

#[test]
fn compressed_requests_are_understood_whole_and_in_fragments() {
    let server = with_compression(&[]);
    let (mut socket, _) = connect(&server, "/ws", OFFER);
    for number in 0..3 {
        let message = json!({"type": "ping", "messageId": number.to_string(), "x": long(3000)}).to_string();
        let payload = deflated(message.as_bytes());
        socket.send_frame(FIN | RSV1 | TEXT, &payload);
        assert_eq!(socket.event()["messageId"], number.to_string());
        let (head, tail) = payload.split_at(payload.len() / 2);
        socket.send_frame(RSV1 | TEXT, head);
        socket.send_frame(FIN | PING, b"between");
        socket.send_frame(CONTINUATION, b"");
        socket.send_frame(FIN | CONTINUATION, tail);
        assert_eq!(socket.frame().expect("the connection is open").payload, b"between");
        assert_eq!(socket.event()["messageId"], number.to_string());
        socket.send_text(r#"{"type":"ping","messageId":"plain"}"#);
        assert_eq!(socket.event()["messageId"], "plain");
    }
}

#[test]
fn a_room_of_both_kinds_hears_the_same_and_each_shard_compresses_once() {
    const SHARDS: usize = 4;
    const EACH: usize = 12;
    let server = with_compression(&[("SHARDS", "4")]);
    let compressed = || server.metric("tableforge_websocket_messages_compressed_total").expect("the metric");
    let mut speaker = Client::connect(&server);
    speaker.join("r");
    let mut plain: Vec<_> = (0..EACH).map(|_| Client::connect(&server)).collect();
    plain.iter_mut().for_each(|client| _ = client.join("r"));
    speaker.say("r", long(3000));
    plain.iter_mut().for_each(|client| _ = client.expect("room_message"));
    assert_eq!(compressed(), 0.0, "nobody takes compressed messages");

    let window_of_512 = "permessage-deflate; server_max_window_bits=9";
    let mut small_windows: Vec<_> = (0..EACH).map(|_| connect_to_room(&server, window_of_512, "r")).collect();
    let mut others: Vec<_> = (0..EACH).map(|_| connect_to_room(&server, OFFER, "r")).collect();
    for (data, is_long) in [(long(3000), true), (long(100), false)] {
        let before = compressed();
        speaker.say("r", data.clone());
        for client in &mut plain {
            assert_eq!(client.expect("room_message")["data"], data);
        }
        for socket in &mut small_windows {
            let (event, came_compressed) = expect(socket, "room_message");
            assert_eq!((&event["data"], came_compressed), (&json!(data), false));
        }
        for socket in &mut others {
            let (event, came_compressed) = expect(socket, "room_message");
            assert_eq!((&event["data"], came_compressed), (&json!(data), is_long));
        }
        let times = compressed() - before;
        let allowed = if is_long { 1.0..=SHARDS as f64 } else { 0.0..=0.0 };
        assert!(allowed.contains(&times), "compressed {times} times for {EACH} receivers");
    }
}

#[test]
fn everyone_hears_everything_in_order_whoever_speaks_and_however_it_comes() {
    const EACH: usize = 8;
    let server = with_compression(&[("MESSAGE_RATE", "0")]);
    let mut plain: Vec<_> = (0..EACH).map(|_| Client::connect(&server)).collect();
    plain.iter_mut().for_each(|client| _ = client.join("r"));
    let mut others: Vec<_> = (0..EACH).map(|_| connect_to_room(&server, OFFER, "r")).collect();
    // Short ones, ones that are compressed, and larger ones than a log takes; eight in one write, so that they share a flush.
    let lengths = [10, 300, 700, 10, 1_500, 40, 5_000, 300];
    let said: Vec<_> =
        (0..EACH * 8).map(|number| format!("{number} {}", long(lengths[number % 8]))).collect();
    for (client, said) in plain.iter_mut().zip(said.chunks(8)) {
        let message = |data: &String| json!({"type": "room_message", "roomId": "r", "data": data});
        client.send_at_once(&said.iter().map(message).collect::<Vec<_>>());
    }
    let heard = |event: &Value| event["data"].as_str().expect("a text").to_owned();
    for (listener, client) in plain.iter_mut().enumerate() {
        let own = listener * 8..listener * 8 + 8;
        let got: Vec<_> = (8..said.len()).map(|_| heard(&client.expect("room_message"))).collect();
        for (speaker, said) in said.chunks(8).enumerate().filter(|(speaker, _)| speaker * 8 != own.start) {
            let of_speaker: Vec<_> = got.iter().filter(|data| said.contains(data)).collect();
            assert_eq!(of_speaker, said.iter().collect::<Vec<_>>(), "{speaker} to {listener}");
        }
    }
    for socket in &mut others {
        let got: Vec<_> = (0..said.len()).map(|_| heard(&expect(socket, "room_message").0)).collect();
        for said in said.chunks(8) {
            let of_speaker: Vec<_> = got.iter().filter(|data| said.contains(data)).collect();
            assert_eq!(of_speaker, said.iter().collect::<Vec<_>>());
        }
    }
}

#[test]
fn the_threshold_is_a_setting() {
    for (threshold, compressed) in
        [("0", [true, true]), ("1000", [false, true]), ("16777216", [false, false])]
    {
        let server = with_compression(&[("COMPRESSION_THRESHOLD", threshold)]);
        let (mut socket, _) = connect(&server, "/ws", OFFER);
        socket.send_text(&json!({"type": "join_room", "roomId": "r", "echo": true}).to_string());
        expect(&mut socket, "room_joined");
        for (bytes, compressed) in [300, 2_000].into_iter().zip(compressed) {
            let data = long(bytes);
            socket.send_text(&json!({"type": "room_message", "roomId": "r", "data": data}).to_string());
            let (event, came_compressed) = expect(&mut socket, "room_message");
            assert_eq!((&event["data"], came_compressed), (&json!(data), compressed), "{threshold}");
        }
    }
}

#[test]
fn messages_to_users_and_to_everyone_come_compressed() {
    let server = with_compression(&token::REQUIRED);
    let (mut ann, _) = connect(&server, &format!("/ws?token={}", token::of("ann")), OFFER);
    let crier = token::with_claims(json!({"sub": "crier", "permissions": ["broadcast"]}));
    let mut crier = Client::connect_as(&server, &crier);
    let data = long(2000);
    crier.send(&json!({"type": "user_message", "targetUserId": "ann", "data": data}));
    let (event, compressed) = expect(&mut ann, "user_message");
    assert_eq!((&event["data"], compressed), (&json!(data), true));
    crier.send(&json!({"type": "global_message", "data": data}));
    let (event, compressed) = expect(&mut ann, "global_message");
    assert_eq!((&event["data"], compressed), (&json!(data), true));
    assert_eq!(crier.expect("global_message")["data"], data);
}

/// Sends frames over a connection that agreed on compression, and checks the code it is closed with.
#[track_caller]
fn assert_closes(server: &Server, what: &str, frames: &[(u8, &[u8])], code: u16) {
    let (mut socket, _) = connect(server, "/ws", OFFER);
    for (first, payload) in frames {
        // The server may close before it has read everything.
        let _ = socket.try_send(&crate::harness::raw::frame(*first, payload));
    }
    assert_eq!(socket.expect_close(), code, "{what}");
    assert_serves(server);
}

#[test]
fn rsv1_has_its_one_place() {
    let server = with_compression(&[]);
    let payload = deflated(long(600).as_bytes());
    assert_closes(&server, "on a ping", &[(FIN | RSV1 | PING, b"")], 1002);
    assert_closes(&server, "on a close", &[(FIN | RSV1 | CLOSE, b"")], 1002);
    let twice: [(u8, &[u8]); 2] = [(RSV1 | TEXT, &payload), (FIN | RSV1 | CONTINUATION, b"")];
    assert_closes(&server, "on a continuation", &twice, 1002);
    let late: [(u8, &[u8]); 2] = [(TEXT, b"{"), (FIN | RSV1 | CONTINUATION, &payload)];
    assert_closes(&server, "on a plain message's continuation", &late, 1002);
    let mut plain = RawSocket::upgraded(&server);
    plain.send_frame(FIN | RSV1 | TEXT, &payload);
    assert_eq!(plain.expect_close(), 1002, "compression was not agreed on");
}

#[test]
fn what_expands_to_too_much_or_to_nothing_good_is_refused() {
    let server = with_compression(&[("MAX_MESSAGE_BYTES", "65536")]);
    let (mut socket, _) = connect(&server, "/ws", OFFER);
    let ping = |bytes: usize| {
        let empty = r#"{"type":"ping","x":""}"#.len();
        deflated(json!({"type": "ping", "x": long(bytes - empty)}).to_string().as_bytes())
    };
    socket.send_frame(FIN | RSV1 | TEXT, &ping(65_536));
    assert_eq!(socket.event()["type"], "pong");
    assert_closes(&server, "one byte more", &[(FIN | RSV1 | TEXT, &ping(65_537))], 1009);
    let bomb = deflated(&vec![b' '; 60_000_000]);
    assert!(bomb.len() < 65_536, "the bomb has {} bytes", bomb.len());
    assert_closes(&server, "a bomb", &[(FIN | RSV1 | TEXT, &bomb)], 1009);
    assert_closes(&server, "garbage", &[(FIN | RSV1 | TEXT, &[0xff; 40])], 1007);
    let half = &ping(3000)[..20];
    assert_closes(&server, "half a message", &[(FIN | RSV1 | TEXT, half)], 1007);
    assert_closes(&server, "no UTF-8", &[(FIN | RSV1 | TEXT, &deflated(&[0xff; 40]))], 1007);
    assert_closes(&server, "a binary message", &[(FIN | RSV1 | BINARY, &deflated(&[7; 40]))], 1003);
}
