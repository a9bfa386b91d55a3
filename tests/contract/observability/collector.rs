//! An OpenTelemetry collector: takes spans as JSON over HTTP, and keeps them.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::sync::{Arc, Mutex};

use serde_json::Value;

use crate::harness::eventually;

/// Runs until the test ends.
pub struct Collector {
    /// Its port on 127.0.0.1.
    pub port: u16,
    spans: Arc<Mutex<Vec<Value>>>,
}

impl Collector {
    /// Starts one.
    pub fn start() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").expect("a port is free");
        let port = listener.local_addr().expect("it is bound").port();
        let spans = Arc::<Mutex<Vec<Value>>>::default();
        let kept = spans.clone();
        std::thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                let kept = kept.clone();
                std::thread::spawn(move || serve(stream, &kept));
            }
        });
        Self { port, spans }
    }

    /// What a server is to be told.
    pub fn endpoint(&self) -> String {
        format!("http://127.0.0.1:{}", self.port)
    }

    /// Waits for a span that is `wanted`.
    #[track_caller]
    pub fn expect(&self, what: &str, wanted: impl Fn(&Value) -> bool) -> Value {
        eventually(&format!("the span of {what}"), || {
            self.spans.lock().expect("no thread panics").iter().find(|span| wanted(span)).cloned()
        })
    }

    /// All that have come so far.
    pub fn all(&self) -> Vec<Value> {
        self.spans.lock().expect("no thread panics").clone()
    }
}

/// The value of an attribute of a span (or resource).
pub fn attribute<'a>(span: &'a Value, key: &str) -> &'a Value {
    let attributes = span["attributes"].as_array().into_iter().flatten();
    let found = attributes.into_iter().find(|attribute| attribute["key"] == key);
    found.map_or(&Value::Null, |attribute| {
        let value = &attribute["value"];
        value.get("stringValue").unwrap_or(&value["intValue"])
    })
}

/// Takes requests until the client is done. A malformed one ends the thread, and the test misses its spans.
fn serve(stream: TcpStream, spans: &Mutex<Vec<Value>>) {
    let mut reader = BufReader::new(stream);
    loop {
        let (mut line, mut head) = (String::new(), Vec::new());
        while reader.read_line(&mut line).is_ok_and(|bytes| bytes > 2) {
            head.push(std::mem::take(&mut line).to_ascii_lowercase());
        }
        let Some(first) = head.first() else { return };
        assert!(first.starts_with("post /v1/traces http/1.1"), "{first}");
        assert!(head.iter().any(|line| line.trim() == "content-type: application/json"), "{head:?}");
        let length = head.iter().find_map(|line| line.strip_prefix("content-length:")?.trim().parse().ok());
        let mut body = vec![0; length.expect("a length")];
        reader.read_exact(&mut body).expect("a body");
        let request: Value = serde_json::from_slice(&body).expect("JSON");
        for resource in request["resourceSpans"].as_array().expect("a list") {
            let instance = attribute(&resource["resource"], "service.instance.id");
            assert_eq!(attribute(&resource["resource"], "service.name"), "tableforge");
            for scope in resource["scopeSpans"].as_array().expect("a list") {
                for span in scope["spans"].as_array().expect("a list") {
                    let mut span = span.clone();
                    span["instance"] = instance.clone();
                    spans.lock().expect("no thread panics").push(span);
                }
            }
        }
        let answer = b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: 2\r\n\r\n{}";
        if reader.get_mut().write_all(answer).is_err() {
            return;
        }
    }
}
