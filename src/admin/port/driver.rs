//! The separate port: a thread of its own answers probes and metrics, whatever the shards do; what is for `/api/` goes
//! to a shard that is awake.

use std::io::{self, ErrorKind, Read, Write};
use std::net::{Shutdown, TcpListener, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering::SeqCst};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use arc_swap::ArcSwapOption;
use crossbeam_channel::{Sender, bounded};

use super::seats::{Denied, Place, Seats};
use crate::accept::api::{self, Answer, Call};
use crate::accept::http;
use crate::accept::request::{self, Head, Refusal};
use crate::command::authorize::TokenVerifier;
use crate::instance::Instance;
use crate::metrics::kinds::Limit;
use crate::shard::api::{authorize, most_body_bytes};
use crate::shard::correlation::{Cause, describe, given_id, given_parent};
use crate::shard::envelope::{ControlMessage, PortRequest};
use crate::shard::outlet::Waker;
use crate::trace::{OpenSpan, SpanKind};

/// Wait for a shard's answer, which has its own shorter deadlines.
const ANSWER: Duration = Duration::from_secs(8);

/// Wait for a client's end of the connection after its answer, as on the main port.
const LINGER: Duration = Duration::from_secs(5);

/// Wait after accepting failed, for want of descriptors.
const PAUSE: Duration = Duration::from_millis(100);

/// To whoever gives way before it has asked for anything.
const FULL: Refusal = Refusal {
    status: "503 Service Unavailable",
    reason: "too many connections to this port: send the request at once, and end connections after the answer",
    header: "Retry-After: 1\r\n",
};

const SLOW_HEAD: Refusal = Refusal::new("408 Request Timeout", "the request head was not complete in time");

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
    pub fn serve(self, listener: TcpListener) -> io::Result<()> {
        let seats = Seats::default();
        let accept = move || {
            loop {
                match listener.accept() {
                    Ok((stream, _)) => self.attend(Arc::new(stream), &seats),
                    Err(error) => {
                        tracing::warn!(%error, "ADMIN_PORT accepts nothing for now: raise the limit of open files if this persists");
                        std::thread::sleep(PAUSE);
                    }
                }
            }
        };
        std::thread::Builder::new().name("tf-admin-accept".to_owned()).spawn(accept).map(drop)
    }

    /// Gives the client a seat and a thread.
    fn attend(&self, stream: Arc<TcpStream>, seats: &Seats) {
        let refusal = http::refuse(&FULL);
        let (place, refused) = seats.take(&stream, &refusal);
        if refused {
            tracing::warn!("ADMIN_PORT has as many connections as it takes: one without a request gave way");
            self.instance.port.reached(Limit::AdminConnections);
            self.instance.port.answered(&refusal);
        }
        let (port, client) = (self.clone(), stream.clone());
        let spawned = std::thread::Builder::new().name("tf-admin".to_owned()).spawn(move || {
            // A client that went away gets no answer.
            let _ = port.serve_one(&client, &place);
        });
        if let Err(error) = spawned {
            tracing::error!(%error, "ADMIN_PORT cannot answer a request: the system gives no thread");
            self.instance.port.answered(&refusal);
            // Whoever cannot be told sees the connection end.
            let _ = (&*stream).write_all(refusal.as_bytes());
        }
    }

    fn serve_one(&self, stream: &TcpStream, place: &Place) -> io::Result<()> {
        stream.set_write_timeout(Some(ANSWER))?;
        let mut bytes = Vec::new();
        let Some(response) = self.respond(stream, place, &mut bytes) else { return Ok(()) };
        if !place.answer() {
            return Ok(());
        }
        let response = http::fitted(request::method(&bytes), response);
        self.instance.port.answered(&response);
        let mut writer = stream;
        writer.write_all(response.as_bytes())?;
        stream.shutdown(Shutdown::Write)?;
        place.leave();
        // A socket that is closed with unread bytes in it is reset, and the answer lost with it.
        let until = Instant::now() + LINGER;
        let mut rest = Vec::new();
        loop {
            rest.clear();
            read_some(stream, &mut rest, until)?;
        }
    }

    /// What the client is answered, whose request is read into `bytes`. Nothing when it has gone or given way.
    fn respond(&self, stream: &TcpStream, place: &Place, bytes: &mut Vec<u8>) -> Option<String> {
        let until = Instant::now() + self.instance.live().handshake_timeout;
        loop {
            match request::parse(bytes) {
                Head::Refused(refusal) => return Some(http::refuse(&refusal)),
                Head::Incomplete => {}
                Head::Request(request, length) if api::is_api(request.path) => {
                    let tag = self.correlate(&request);
                    let answer = match self.permitted(&request) {
                        Err(answer) => answer,
                        Ok(call) => {
                            let body = bytes.split_off(length);
                            self.carry_out(stream, place, call, body, until, tag.cause())?
                        }
                    };
                    return Some(tag.conclude(&answer.encode()));
                }
                Head::Request(request, _) => {
                    let uptime_ms = self.started.elapsed().as_millis() as u64;
                    return Some(http::respond_on_any(&request, &self.instance, uptime_ms));
                }
            }
            match read_some(stream, bytes, until) {
                Ok(()) => {}
                Err(error) if is_late(&error) => return Some(http::refuse(&SLOW_HEAD)),
                Err(_) => return None,
            }
        }
    }

    /// Reads the rest of the call's body, which begins with `body`, and has a shard answer it.
    fn carry_out(
        &self,
        mut stream: &TcpStream,
        place: &Place,
        call: Call,
        mut body: Vec<u8>,
        until: Instant,
        cause: Cause,
    ) -> Option<Answer> {
        match place.call() {
            Ok(()) => {}
            Err(Denied::Gone) => return None,
            Err(Denied::TooMany) => {
                self.instance.port.reached(Limit::Calls);
                return Some(Answer::unavailable("too many calls are under way: try again"));
            }
        }
        if call.expects_continue {
            stream.write_all(b"HTTP/1.1 100 Continue\r\n\r\n").ok()?;
        }
        while body.len() < call.body_bytes {
            match read_some(stream, &mut body, until) {
                Ok(()) => {}
                Err(error) if is_late(&error) => return Some(Answer::slow_body()),
                Err(_) => return None,
            }
        }
        body.truncate(call.body_bytes);
        Some(self.ask_a_shard(call, body, cause))
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
            self.instance.port.reached(Limit::Queue);
            return Answer::unavailable("too much is being administrated: try again");
        }
        self.waker.wake();
        // It may still be carried out, or have been already: only what was not sent is known to be undone.
        answer.recv_timeout(ANSWER).unwrap_or_else(|_| Answer::timed_out())
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

fn is_late(error: &io::Error) -> bool {
    matches!(error.kind(), ErrorKind::TimedOut | ErrorKind::WouldBlock)
}

fn read_some(mut stream: &TcpStream, bytes: &mut Vec<u8>, until: Instant) -> io::Result<()> {
    let left = until.saturating_duration_since(Instant::now());
    if left.is_zero() {
        return Err(ErrorKind::TimedOut.into());
    }
    stream.set_read_timeout(Some(left))?;
    let mut buffer = [0; 8192];
    match stream.read(&mut buffer)? {
        0 => Err(ErrorKind::UnexpectedEof.into()),
        count => {
            bytes.extend_from_slice(&buffer[..count]);
            Ok(())
        }
    }
}
