//! Tokens run out: a warning before, the end at the moment, and renewal in between.

use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::thread;

use serde_json::json;

use crate::harness::client::Client;
use crate::harness::server::Server;
use crate::harness::token::{self, REQUIRED, seconds_from_now};

#[test]
fn a_client_is_told_30_s_before_its_token_runs_out() {
    let server = Server::start(&REQUIRED);
    let exp = seconds_from_now(33);
    let mut ann = Client::connect_as(&server, &token::with_claims(json!({"sub": "ann", "exp": exp})));
    assert!(ann.drain().iter().all(|event| event["type"] != "token_expiring"), "there is time yet");
    let told = ann.expect("token_expiring");
    assert_eq!(told["expiresAt"], exp * 1000, "{}", told.text);
    let left = told["inMs"].as_u64().expect("a number");
    assert!((20_000..=30_000).contains(&left), "{}", told.text);
}

#[test]
fn a_short_token_is_told_of_at_once_and_each_token_once() {
    let server = Server::start(&REQUIRED);
    let short = |seconds: i64| token::with_claims(json!({"sub": "ann", "exp": seconds_from_now(seconds)}));
    let mut ann = Client::connect_as(&server, &short(20));
    let told =
        |client: &mut Client| client.drain().iter().filter(|event| event["type"] == "token_expiring").count();
    assert_eq!((told(&mut ann), told(&mut ann)), (1, 0));
    for (token, times) in [(token::of("ann"), 0), (short(25), 1)] {
        let success = ann.request(json!({"type": "authenticate", "token": token}));
        assert_eq!(success["type"], "authentication_success", "{}", success.text);
        assert_eq!(told(&mut ann), times);
    }
    let mut late = Client::connect(&server);
    late.request(json!({"type": "authenticate", "token": short(20)}));
    assert_eq!(told(&mut late), 1);
}

#[test]
fn nothing_is_delivered_from_the_moment_on_at_which_a_token_runs_out() {
    // Nobody reads while the publisher hammers: what waits must not end a connection before its token does.
    let roomy = [("SHARDS", "2"), ("OUTBOX_BYTES", "268435456"), ("OUTBOX_AGE", "60000")];
    let server = Server::start(&[&REQUIRED[..], &roomy].concat());
    let exp = seconds_from_now(3);
    // Connections on both shards.
    let mut leaving: Vec<_> = (0..8)
        .map(|number| {
            let claims = json!({"sub": format!("leaving-{number}"), "exp": exp});
            let mut client = Client::connect_as(&server, &token::with_claims(claims));
            client.join("r");
            client
        })
        .collect();
    let mut publisher = Client::connect_as(&server, &token::of("publisher"));
    publisher.join("r");
    let over = AtomicBool::new(false);
    let codes: Vec<_> = thread::scope(|scope| {
        let hammering = scope.spawn(|| {
            while !over.load(Relaxed) {
                let ack = publisher.request(json!({"type": "room_message", "roomId": "r", "data": 1}));
                assert_eq!(ack["type"], "message_ack", "{}", ack.text);
            }
        });
        let readers: Vec<_> =
            leaving.iter_mut().map(|client| scope.spawn(|| client.expect_close())).collect();
        let codes: Vec<_> = readers.into_iter().map(|reader| reader.join()).collect();
        over.store(true, Relaxed);
        hammering.join().expect("the publisher is answered");
        codes
    });
    assert!(codes.iter().all(|code| matches!(code, Ok(4001))), "{codes:?}");
    for client in &mut leaving {
        let (mut count, mut last) = (0, 0);
        while let Some(event) = client.take_pending("room_message") {
            count += 1;
            last = event["timestamp"].as_i64().expect("a number");
        }
        // Two shards read the clock at the beginning of their turns, which may lie some milliseconds apart.
        assert!(
            count > 0 && last < exp * 1000 + 50,
            "{count} messages, the last {} ms late",
            last - exp * 1000
        );
    }
}
