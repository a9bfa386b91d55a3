//! One connection to Redis, without its socket: handshake, replies in order, deadlines, backoff.

use std::collections::VecDeque;
use std::time::{Duration, Instant};

use redis::{Cmd, ServerError, Value, cmd};

use super::wire::{Decoder, Inbound, WireError};

/// Wait after the first failed attempt: a restarted Redis is found again quickly.
const BACKOFF_FIRST: Duration = Duration::from_millis(100);

/// Longest wait between attempts: many instances must not hammer a Redis that is coming up.
pub const BACKOFF_LONGEST: Duration = Duration::from_secs(5);

/// Codes of errors by which Redis says "not now" rather than "never", having done nothing.
pub const PASSING: [&str; 8] =
    ["LOADING", "MASTERDOWN", "BUSY", "READONLY", "OOM", "MISCONF", "TRYAGAIN", "NOREPLICAS"];

impl LinkError {
    /// Whether Redis is there and will refuse this instance again: a wrong password, a missing right.
    pub fn is_lasting_refusal(&self) -> bool {
        matches!(self, Self::Refused { error, .. } if !PASSING.iter().any(|code| error.starts_with(code)))
    }
}

/// What a connection says first.
#[derive(Clone, Debug)]
pub struct Handshake {
    /// ACL user name; Redis calls its only one `default`.
    pub username: Option<String>,
    /// Password.
    pub password: Option<String>,
    /// Database of the keys.
    pub db: u32,
    /// What CLIENT LIST shows.
    pub name: String,
}

/// Why a connection is of no more use.
#[derive(Debug, thiserror::Error)]
pub enum LinkError {
    /// A step of the handshake was refused: a wrong password, a missing right, no such database.
    #[error("Redis refused {step}: {error}")]
    Refused {
        /// The command.
        step: &'static str,
        /// Redis's own words.
        error: String,
    },
    /// An answer did not come in time.
    #[error("Redis did not answer within {0:?}")]
    Timeout(Duration),
    /// What came is not the protocol.
    #[error(transparent)]
    Wire(#[from] WireError),
    /// A reply without a command: nothing that follows can be trusted.
    #[error("Redis sent a reply that no command waits for")]
    Unexpected,
    /// The other of the instance's two connections was lost: both come back together.
    #[error("the instance's other connection to Redis was lost")]
    OtherConnection,
    /// A reason that lies outside of this connection.
    #[error("{0}")]
    Other(&'static str),
    /// The socket failed or was closed.
    #[error("the connection to Redis failed: {0}")]
    Socket(#[from] std::io::Error),
}

/// What a connection reports; `T` names the command that a reply belongs to.
#[derive(Debug)]
pub enum Event<T> {
    /// The handshake is done: commands may be sent.
    Up,
    /// The answer to a command.
    Reply(T, Result<Value, ServerError>),
    /// A message from a subscribed channel.
    Message {
        /// The channel.
        channel: Vec<u8>,
        /// What was published.
        payload: Vec<u8>,
    },
}

enum Phase {
    Waiting { until: Instant },
    Handshaking,
    Up,
}

enum Awaited<T> {
    Handshake(&'static str),
    Ping,
    Command(T),
}

/// The state of one connection.
pub struct Link<T> {
    handshake: Handshake,
    timeout: Duration,
    phase: Phase,
    backoff: Backoff,
    decoder: Decoder,
    output: Vec<u8>,
    written: usize,
    awaited: VecDeque<Awaited<T>>,
    /// When something last came, or when the first of the awaited commands was sent: an answer is late
    /// when nothing at all came for `timeout`, so a long pipeline is not mistaken for a dead Redis.
    progress: Instant,
}

impl<T> Link<T> {
    /// A link that wants to connect at once. `seed` makes its jitter differ from other instances'.
    pub fn new(handshake: Handshake, timeout: Duration, seed: u64, now: Instant) -> Self {
        Self {
            handshake,
            timeout,
            phase: Phase::Waiting { until: now },
            backoff: Backoff { attempts: 0, random: seed.wrapping_mul(0x9E37_79B9_7F4A_7C15) | 1 },
            decoder: Decoder::default(),
            output: Vec::new(),
            written: 0,
            awaited: VecDeque::new(),
            progress: now,
        }
    }

    /// Whether it is time for an attempt to connect.
    pub fn connect_due(&self, now: Instant) -> bool {
        matches!(self.phase, Phase::Waiting { until } if until <= now)
    }

    /// Whether there is a connection: up, or with its handshake under way.
    pub fn is_connected(&self) -> bool {
        !matches!(self.phase, Phase::Waiting { .. })
    }

    /// Whether commands may be sent.
    pub fn is_up(&self) -> bool {
        matches!(self.phase, Phase::Up)
    }

    /// How many commands wait for their answers.
    pub fn awaited(&self) -> usize {
        self.awaited.len()
    }

    /// The socket is connected: the handshake begins.
    pub fn connected(&mut self, now: Instant) {
        self.phase = Phase::Handshaking;
        self.progress = now;
        let mut hello = cmd("HELLO");
        hello.arg(3);
        if let Some(password) = &self.handshake.password {
            hello.arg("AUTH").arg(self.handshake.username.as_deref().unwrap_or("default")).arg(password);
        }
        let mut select = cmd("SELECT");
        select.arg(self.handshake.db);
        let mut name = cmd("CLIENT");
        name.arg("SETNAME").arg(&self.handshake.name);
        self.enqueue(&hello, Awaited::Handshake("HELLO (user name and password)"), now);
        self.enqueue(&select, Awaited::Handshake("SELECT (the database)"), now);
        self.enqueue(&name, Awaited::Handshake("CLIENT SETNAME"), now);
    }

    /// The connection is gone, or an attempt failed: the next attempt comes after a wait. Returns the
    /// commands whose outcome is unknown.
    pub fn lost(&mut self, now: Instant) -> Vec<T> {
        self.phase = Phase::Waiting { until: now + self.backoff.next() };
        self.decoder = Decoder::default();
        self.output.clear();
        self.written = 0;
        let awaited = std::mem::take(&mut self.awaited);
        awaited
            .into_iter()
            .filter_map(|a| if let Awaited::Command(tag) = a { Some(tag) } else { None })
            .collect()
    }

    /// The connection has proved useful: the next loss is followed by a short wait again.
    pub fn settled(&mut self) {
        self.backoff.attempts = 0;
    }

    /// Sends a command; its answer comes as [`Event::Reply`] with `tag`. Call it only when up.
    pub fn send(&mut self, command: &Cmd, tag: T, now: Instant) {
        debug_assert!(self.is_up());
        self.enqueue(command, Awaited::Command(tag), now);
    }

    /// Publishes `payload`; otherwise as [`Link::send`]. Written without a [`Cmd`], which would copy it.
    pub fn publish(&mut self, channel: &str, payload: &[u8], tag: T, now: Instant) {
        debug_assert!(self.is_up());
        self.expect(Awaited::Command(tag), now);
        self.output.extend_from_slice(b"*3\r\n$7\r\nPUBLISH\r\n");
        for argument in [channel.as_bytes(), payload] {
            self.output.push(b'$');
            self.output.extend_from_slice(itoa::Buffer::new().format(argument.len()).as_bytes());
            self.output.extend_from_slice(b"\r\n");
            self.output.extend_from_slice(argument);
            self.output.extend_from_slice(b"\r\n");
        }
    }

    fn enqueue(&mut self, command: &Cmd, awaited: Awaited<T>, now: Instant) {
        self.expect(awaited, now);
        command.write_packed_command(&mut self.output);
    }

    fn expect(&mut self, awaited: Awaited<T>, now: Instant) {
        if self.awaited.is_empty() {
            self.progress = now;
        }
        self.awaited.push_back(awaited);
    }

    /// Bytes for the socket.
    pub fn output(&self) -> &[u8] {
        &self.output[self.written..]
    }

    /// The socket took `bytes` of [`Link::output`].
    pub fn wrote(&mut self, bytes: usize) {
        self.written += bytes;
        if self.written == self.output.len() {
            self.output.clear();
            self.written = 0;
        }
    }

    /// Takes bytes from the socket and appends what they mean to `events`.
    ///
    /// # Errors
    /// When the connection is of no more use: the caller closes it and calls [`Link::lost`].
    pub fn receive(
        &mut self,
        bytes: &[u8],
        now: Instant,
        events: &mut Vec<Event<T>>,
    ) -> Result<(), LinkError> {
        self.progress = now;
        let mut fault = None;
        let (awaited, phase) = (&mut self.awaited, &mut self.phase);
        self.decoder.feed(bytes, |inbound| match inbound {
            Inbound::Message { channel, payload } => events.push(Event::Message { channel, payload }),
            Inbound::Other => {}
            Inbound::Reply(_) if fault.is_some() => {}
            Inbound::Reply(reply) => match (awaited.pop_front(), reply) {
                (Some(Awaited::Command(tag)), reply) => events.push(Event::Reply(tag, reply)),
                (Some(Awaited::Handshake(_)), Ok(_)) => {
                    if awaited.is_empty() {
                        *phase = Phase::Up;
                        events.push(Event::Up);
                    }
                }
                (Some(Awaited::Ping), Ok(_)) => {}
                // A Redis that cannot save refuses even this, and is there all the same.
                (Some(Awaited::Ping), Err(e)) if PASSING.contains(&e.code()) => {}
                (Some(Awaited::Handshake(step)), Err(e)) => {
                    fault = Some(LinkError::Refused { step, error: words(&e) });
                }
                (Some(Awaited::Ping), Err(e)) => {
                    fault = Some(LinkError::Refused { step: "PING", error: words(&e) });
                }
                (None, _) => fault = Some(LinkError::Unexpected),
            },
        })?;
        fault.map_or(Ok(()), Err)
    }

    /// Looks at the time: a PING when nothing came for the timeout, a failure when an answer is late.
    ///
    /// # Errors
    /// [`LinkError::Timeout`]: the caller closes the connection and calls [`Link::lost`].
    pub fn tick(&mut self, now: Instant) -> Result<(), LinkError> {
        if matches!(self.phase, Phase::Waiting { .. }) || now < self.progress + self.timeout {
            return Ok(());
        }
        if !self.awaited.is_empty() {
            return Err(LinkError::Timeout(self.timeout));
        }
        self.enqueue(&cmd("PING"), Awaited::Ping, now);
        Ok(())
    }

    /// When [`Link::tick`] or an attempt to connect is due next.
    pub fn deadline(&self) -> Instant {
        match self.phase {
            Phase::Waiting { until } => until,
            _ => self.progress + self.timeout,
        }
    }
}

/// An error reply in Redis's own words: code and text. An old Redis that does not know a command
/// repeats its arguments, the password among them: those are left out.
pub fn words(error: &ServerError) -> String {
    let details = error.details().unwrap_or_default();
    let details = details.split(", with args").next().unwrap_or_default();
    format!("{} {details}", error.code()).trim_end().to_owned()
}

/// Exponential waits with jitter: a random part of the upper half, so instances spread.
struct Backoff {
    attempts: u32,
    random: u64,
}

impl Backoff {
    fn next(&mut self) -> Duration {
        // Marsaglia's xorshift64: any spread will do here.
        self.random ^= self.random << 13;
        self.random ^= self.random >> 7;
        self.random ^= self.random << 17;
        let whole = BACKOFF_FIRST.saturating_mul(1 << self.attempts.min(16)).min(BACKOFF_LONGEST);
        self.attempts = self.attempts.saturating_add(1);
        let half = whole / 2;
        half + half.mul_f64((self.random >> 11) as f64 / (1u64 << 53) as f64)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const TIMEOUT: Duration = Duration::from_secs(1);
    const GREETINGS: &[u8] = b"%1\r\n+proto\r\n:3\r\n+OK\r\n+OK\r\n";

    fn handshake() -> Handshake {
        Handshake { username: None, password: Some("secret".into()), db: 2, name: "tf".into() }
    }

    fn link(now: Instant) -> Link<u8> {
        Link::new(handshake(), TIMEOUT, 42, now)
    }

    fn up(now: Instant) -> Link<u8> {
        let (mut link, mut events) = (link(now), Vec::new());
        link.connected(now);
        link.wrote(link.output().len());
        link.receive(GREETINGS, now, &mut events).expect("handshake accepted");
        assert!(matches!(events[..], [Event::Up]));
        link
    }

    #[test]
    fn greets_with_password_and_database() {
        let now = Instant::now();
        let mut link = link(now);
        assert!(link.connect_due(now));
        link.connected(now);
        let said = String::from_utf8_lossy(link.output()).replace("\r\n", " ");
        assert!(said.contains("HELLO $1 3 $4 AUTH $7 default $6 secret"), "{said}");
        assert!(said.contains("SELECT $1 2"), "{said}");
        assert!(!link.is_up());
    }

    #[test]
    fn a_refused_password_is_named() {
        let now = Instant::now();
        let mut link = link(now);
        link.connected(now);
        let refusal = b"-WRONGPASS invalid username-password pair\r\n";
        let error = link.receive(refusal, now, &mut Vec::new()).unwrap_err().to_string();
        assert!(error.contains("HELLO") && error.contains("WRONGPASS invalid"), "{error}");
    }

    #[test]
    fn an_old_redis_does_not_make_the_password_public() {
        let now = Instant::now();
        let mut link = link(now);
        link.connected(now);
        let refusal =
            b"-ERR unknown command `HELLO`, with args beginning with: `3`, `AUTH`, `default`, `secret`\r\n";
        let error = link.receive(refusal, now, &mut Vec::new()).unwrap_err().to_string();
        assert!(error.contains("unknown command `HELLO`") && !error.contains("secret"), "{error}");
    }

    #[test]
    fn replies_come_back_with_their_tags_in_order() {
        let now = Instant::now();
        let mut link = up(now);
        link.send(&cmd("GET"), 1, now);
        link.send(&cmd("GET"), 2, now);
        let mut events = Vec::new();
        link.receive(b":5\r\n>3\r\n+message\r\n", now, &mut events).unwrap();
        link.receive(b"$1\r\na\r\n$1\r\nb\r\n-ERR no\r\n", now, &mut events).unwrap();
        assert!(matches!(&events[0], Event::Reply(1, Ok(Value::Int(5)))));
        assert!(matches!(events.last(), Some(Event::Reply(2, Err(_)))));
        assert!(matches!(link.receive(b"+OK\r\n", now, &mut events), Err(LinkError::Unexpected)));
    }

    #[test]
    fn an_idle_link_pings_and_then_times_out() {
        let start = Instant::now();
        let mut link = up(start);
        assert_eq!(link.deadline(), start + TIMEOUT);
        link.tick(start + TIMEOUT / 2).unwrap();
        assert!(link.output().is_empty());
        link.tick(start + TIMEOUT).unwrap();
        assert!(link.output().ends_with(b"PING\r\n"));
        link.tick(start + TIMEOUT * 2 - Duration::from_millis(1)).unwrap();
        assert!(matches!(link.tick(start + TIMEOUT * 2), Err(LinkError::Timeout(_))));
    }

    #[test]
    fn a_ping_that_is_refused_for_a_while_is_a_sign_of_life() {
        let start = Instant::now();
        let mut link = up(start);
        link.tick(start + TIMEOUT).unwrap();
        let refusal = b"-MISCONF Redis is configured to save RDB snapshots\r\n";
        link.receive(refusal, start + TIMEOUT, &mut Vec::new()).unwrap();
        assert!(link.is_up() && link.awaited() == 0);
        link.tick(start + TIMEOUT * 2).unwrap();
        assert!(link.receive(b"-NOPERM no\r\n", start + TIMEOUT * 2, &mut Vec::new()).is_err());
    }

    #[test]
    fn a_slow_pipeline_that_makes_progress_is_no_timeout() {
        let start = Instant::now();
        let mut link = up(start);
        link.send(&cmd("GET"), 1, start);
        link.send(&cmd("GET"), 2, start);
        let later = start + TIMEOUT * 9 / 10;
        link.receive(b":1\r\n", later, &mut Vec::new()).unwrap();
        link.tick(start + TIMEOUT).unwrap();
        assert!(link.tick(later + TIMEOUT).is_err());
    }

    #[test]
    fn a_loss_returns_the_unanswered_and_waits_longer_each_time() {
        let start = Instant::now();
        let mut link = up(start);
        link.send(&cmd("GET"), 7, start);
        assert_eq!(link.lost(start), [7]);
        assert!(link.output().is_empty() && !link.connect_due(start));
        let mut waits = vec![link.deadline() - start];
        for _ in 0..9 {
            link.lost(start);
            waits.push(link.deadline() - start);
        }
        for (attempt, wait) in waits.iter().enumerate() {
            let whole = BACKOFF_FIRST.saturating_mul(1 << attempt).min(BACKOFF_LONGEST);
            assert!(*wait >= whole / 2 && *wait <= whole, "attempt {attempt}: {wait:?}");
        }
        link.settled();
        link.lost(start);
        assert!(link.deadline() - start <= BACKOFF_FIRST);
    }

    #[test]
    fn two_instances_do_not_wait_equally_long() {
        let now = Instant::now();
        let (mut a, mut b) = (link(now), Link::<u8>::new(handshake(), TIMEOUT, 43, now));
        let wait = |link: &mut Link<u8>| {
            (0..8).map(|_| (link.lost(now), link.deadline() - now).1).collect::<Vec<_>>()
        };
        assert_ne!(wait(&mut a), wait(&mut b));
    }
}
