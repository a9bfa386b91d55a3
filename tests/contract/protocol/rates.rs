//! How fast a connection may send when its token says so.

use serde_json::{Value, json};

use crate::harness::client::Client;
use crate::harness::server::Server;
use crate::harness::token::{self, REQUIRED};

/// How many of `count` pings at once a user with that `rate` claim gets answered.
fn answered(server: &Server, rate: Value, count: usize) -> usize {
    let mut claims = json!({"sub": "ann"});
    if !rate.is_null() {
        claims["rate"] = rate;
    }
    let mut client = Client::connect_as(server, &token::with_claims(claims));
    let pings: Vec<_> = (0..count).map(|n| json!({"type": "ping", "messageId": n.to_string()})).collect();
    client.send_at_once(&pings);
    (0..count).filter(|n| client.reply_to(&n.to_string())["type"] == "pong").count()
}

#[test]
fn a_token_may_set_its_own_rate_below_and_above_the_servers() {
    // One a second: what a slow machine adds meanwhile is little.
    let limits = [("MESSAGE_RATE", "1"), ("MESSAGE_BURST", "20")];
    let server = Server::start(&[&REQUIRED[..], &limits].concat());
    let among = |count: usize, least: usize| (least..least + 15).contains(&count);
    assert!(among(answered(&server, Value::Null, 60), 20));
    assert!(among(answered(&server, json!({"perSecond": 1, "burst": 3}), 60), 3));
    assert!(among(answered(&server, json!({"perSecond": 1, "burst": 40}), 60), 40));
    assert_eq!(answered(&server, json!({"perSecond": 50}), 60), 60, "a burst of two seconds");
}

#[test]
fn a_rate_that_is_none_is_refused() {
    let server = Server::start(&REQUIRED);
    for rate in [
        json!(5),
        json!({}),
        json!({"perSecond": 0}),
        json!({"perSecond": -1}),
        json!({"perSecond": 1.5}),
        json!({"perSecond": 65_536}),
        json!({"perSecond": "9"}),
        json!({"perSecond": 1, "burst": 0}),
    ] {
        let bearer = format!("Bearer {}", token::with_claims(json!({"sub": "ann", "rate": rate})));
        let refused = Client::open(server.port, "/ws", &[("authorization", &bearer)]).err();
        assert_eq!(refused, Some(401), "{rate}");
    }
}
