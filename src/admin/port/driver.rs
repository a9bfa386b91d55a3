//! The separate port: a thread of its own answers probes and metrics, whatever the shards do; what is for `/api/` goes
//! to a shard that is awake.

use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering::SeqCst};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use arc_swap::ArcSwapOption;
use crossbeam_channel::{Sender, bounded};

use crate::accept::api::{self, Answer, Call};
use crate::accept::http;
use crate::accept::request::{self, Head};
use crate::command::authorize::TokenVerifier;
use crate::instance::Instance;
use crate::shard::api::{authorize, most_body_bytes};
use crate::shard::correlation::{Cause, describe, given_id, given_parent};
use crate::shard::envelope::{ControlMessage, PortRequest};
use crate::shard::outlet::Waker;
use crate::trace::{OpenSpan, SpanKind};

/// Requests at a time: probes, a scraper, some administrators.
const REQUESTS: usize = 32;

/// Wait for a shard's answer, which has its own shorter deadlines.
const ANSWER: Duration = Duration::from_secs(8);

/// Wait after accepting failed, for want of descriptors.
const PAUSE: Duration = Duration::from_millis(100);

/// What requests are answered from.
#[derive(Clone)]
pub struct AdminPort {
    /// The process.
    pub instance: Arc<Instance>,
    /// Zero of its clock.
    pub started: Instant,
    /// Who tells tokens with `admin` from others.
    pub verifier: Arc<ArcSwapOption<TokenVerifier>>,
    /// To the control thread.
    pub control: Sender<ControlMessage>,
    /// Wakes it.
    pub waker: Arc<Waker>,
    /// Calls so far: their numbers are the ids of those that bring none.
    pub calls: Arc<AtomicUsize>,
}

impl AdminPort {
    /// Serves `listener` from now on, to the end of the process.
    ///
    /// # Errors
    /// When the system gives no thread.
    pub fn serve(self, listener: TcpListener) -> std::io::Result<()> {
        let busy = Arc::new(AtomicUsize::new(0));
        let accept = move || {
            loop {
                let Ok((stream, _)) = listener.accept() else {
                    std::thread::sleep(PAUSE);
                    continue;
                };
                if busy.fetch_add(1, SeqCst) >= REQUESTS {
                    busy.fetch_sub(1, SeqCst);
                    continue;
                }
                let (port, done) = (self.clone(), busy.clone());
                let spawned = std::thread::Builder::new().name("tf-admin".to_owned()).spawn(move || {
                    // A client that went away or sent nothing gets no answer.
                    let _ = port.answer(stream);
                    done.fetch_sub(1, SeqCst);
                });
                if spawned.is_err() {
                    busy.fetch_sub(1, SeqCst);
                }
            }
        };
        std::thread::Builder::new().name("tf-admin-accept".to_owned()).spawn(accept).map(drop)
    }

    fn answer(&self, mut stream: TcpStream) -> std::io::Result<()> {
        let until = Instant::now() + self.instance.live().handshake_timeout;
        stream.set_write_timeout(Some(ANSWER))?;
        let mut bytes = Vec::new();
        let (response, tag) = loop {
            match request::parse(&bytes) {
                Head::Refused(refusal) => break (http::refuse(&refusal), None),
                Head::Incomplete => {}
                Head::Request(request, length) if api::is_api(request.path) => {
                    let tag = self.correlate(&request);
                    let answer = match self.permitted(&request) {
                        Err(answer) => answer,
                        Ok(call) => {
                            if call.expects_continue {
                                stream.write_all(b"HTTP/1.1 100 Continue\r\n\r\n")?;
                            }
                            let mut body = bytes.split_off(length);
                            while body.len() < call.body_bytes {
                                read_some(&mut stream, &mut body, until)?;
                            }
                            body.truncate(call.body_bytes);
                            self.ask_a_shard(call, body, tag.cause())
                        }
                    };
                    break (answer.encode(), Some(tag));
                }
                Head::Request(request, _) => {
                    let uptime_ms = self.started.elapsed().as_millis() as u64;
                    break (http::respond_on_any(&request, &self.instance, uptime_ms), None);
                }
            }
            read_some(&mut stream, &mut bytes, until)?;
        };
        let response = match tag {
            Some(tag) => tag.conclude(&response),
            None => response,
        };
        stream.write_all(response.as_bytes())?;
        stream.shutdown(std::net::Shutdown::Write)
    }

    fn permitted(&self, request: &request::Request<'_>) -> Result<Call, Answer> {
        let settings = &*self.instance.live();
        let unix = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_secs();
        authorize(api::credential(request), settings, self.verifier.load().as_deref(), unix)?;
        api::parse(request, most_body_bytes(settings))
    }

    /// What the request says of itself, or what is made up for it.
    fn correlate(&self, request: &request::Request<'_>) -> Tag {
        let made_up = || format!("{:08x}-{}", self.instance.boot, self.calls.fetch_add(1, SeqCst));
        let id = given_id(request).map_or_else(made_up, str::to_owned);
        let tracer = self.instance.tracer.as_ref();
        let mut span =
            tracer.and_then(|tracer| tracer.begin(given_parent(request), "call", SpanKind::Server));
        if let Some(span) = &mut span {
            span.set("tableforge.request_id", id.as_str());
            describe(span, request);
        }
        Tag { id, span }
    }

    fn ask_a_shard(&self, call: Call, body: Vec<u8>, cause: Cause) -> Answer {
        let (reply, answer) = bounded(1);
        let request = PortRequest { route: call.route, body, cause, reply };
        if self.control.try_send(ControlMessage::Api(Box::new(request))).is_err() {
            return Answer::unavailable("too much is being administrated: try again");
        }
        self.waker.wake();
        answer.recv_timeout(ANSWER).unwrap_or_else(|_| Answer::unavailable("no shard answers"))
    }
}

/// What is known of a call besides what it wants.
struct Tag {
    id: String,
    span: Option<Box<OpenSpan>>,
}

impl Tag {
    fn cause(&self) -> Cause {
        let context = self.span.as_ref().map(|span| span.context());
        Cause { context, request: self.id.as_str().into() }
    }

    /// The answer with the correlation id.
    fn conclude(self, response: &str) -> String {
        if let Some(mut span) = self.span {
            let status = response.split(' ').nth(1).unwrap_or_default();
            span.set("http.response.status_code", status.parse::<u64>().unwrap_or_default());
            span.finish(status.starts_with('5').then_some("the server could not do it"));
        }
        http::with_header(response, "X-Request-Id", &self.id)
    }
}

fn read_some(stream: &mut TcpStream, bytes: &mut Vec<u8>, until: Instant) -> std::io::Result<()> {
    let left = until.saturating_duration_since(Instant::now());
    if left.is_zero() {
        return Err(std::io::ErrorKind::TimedOut.into());
    }
    stream.set_read_timeout(Some(left))?;
    let mut buffer = [0; 8192];
    match stream.read(&mut buffer)? {
        0 => Err(std::io::ErrorKind::UnexpectedEof.into()),
        count => {
            bytes.extend_from_slice(&buffer[..count]);
            Ok(())
        }
    }
}
