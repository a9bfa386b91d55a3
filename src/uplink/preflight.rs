//! The first look at Redis, before any thread starts: password, rights, and whether the name is free.

use std::time::{Duration, Instant};

use redis::{Cmd, Value};

use super::UplinkError;
use super::history::{self, HistoryCaller};
use super::link::{Event, Link, LinkError, PASSING, words};
use super::presence::{self, Call, Caller, Registered};
use super::sessions::{self, SessionCaller};
use super::socket::{self, Connector, Socket};
use crate::config::RedisSettings;
use crate::room::history::Epoch;

/// Between two looks whether the holder of this instance's name is still alive.
const HELD_LOOKS: Duration = Duration::from_millis(50);

/// Connects, checks the rights, and registers the instance. False when Redis cannot be reached now: the
/// instance starts alone then and keeps trying.
///
/// A dead process with the same name (a crash, a restart) is waited for: at most two and a half of its
/// heartbeat intervals.
///
/// # Errors
/// When Redis refuses what the uplink needs, or another live process has the name.
pub fn check(
    settings: &RedisSettings,
    (caller, history, sessions): (&Caller, &HistoryCaller, &SessionCaller),
    link: Link<()>,
) -> Result<bool, UplinkError> {
    let outcome = Session::open(&Connector::new(settings)?, link).and_then(|mut session| {
        let missing = session.call(caller, &Call::Probe)?;
        let mut missing = presence::decode_text(&missing).unwrap_or_default();
        if missing.is_empty() && sessions.counts() {
            let probe = session.send(&sessions.command(&sessions::Call::Probe, true))?;
            missing = presence::decode_text(&probe).unwrap_or_default();
        }
        if missing.is_empty() {
            // No epoch begins by looking at rights.
            let probe = session.send(&history.command(&history::Call::Probe, Epoch(0), true))?;
            missing = presence::decode_text(&probe).unwrap_or_default();
        }
        if missing.is_empty() {
            session.register(caller)
        } else {
            Ok(Err(UplinkError::MissingRight(missing)))
        }
    });
    match outcome {
        Ok(registered) => registered.map(|()| true),
        Err(LinkError::Refused { step, error }) if !PASSING.iter().any(|code| error.starts_with(code)) => {
            Err(UplinkError::Refused(LinkError::Refused { step, error }))
        }
        Err(LinkError::Socket(error)) if let Some(reason) = socket::tls_failure(&error) => {
            Err(UplinkError::Tls(reason))
        }
        Err(error) => {
            tracing::warn!(host = %settings.host, port = settings.port, %error, "Redis cannot be reached: starting alone");
            Ok(false)
        }
    }
}

/// Connects and logs in, and leaves nothing behind.
///
/// # Errors
/// When Redis cannot be reached, or refuses.
pub fn reach(settings: &RedisSettings, link: Link<()>) -> Result<(), UplinkError> {
    match Session::open(&Connector::new(settings)?, link) {
        Ok(_) => Ok(()),
        Err(error @ LinkError::Refused { .. }) => Err(UplinkError::Refused(error)),
        Err(LinkError::Socket(error)) if let Some(reason) = socket::tls_failure(&error) => {
            Err(UplinkError::Tls(reason))
        }
        Err(error) => Err(UplinkError::Unreachable(error)),
    }
}

/// A connection on which one command after the other is carried out.
struct Session {
    stream: Socket,
    link: Link<()>,
    buffer: Vec<u8>,
}

impl Session {
    fn open(connector: &Connector, mut link: Link<()>) -> Result<Self, LinkError> {
        let stream = connector.connect()?;
        link.connected(Instant::now());
        let mut session = Self { stream, link, buffer: vec![0; socket::READ_BYTES] };
        session.next()?;
        Ok(session)
    }

    fn next(&mut self) -> Result<Event<()>, LinkError> {
        socket::write(&mut self.stream, &mut self.link)?;
        let mut events = Vec::new();
        while events.is_empty() {
            let now = Instant::now();
            socket::read(&mut self.stream, &mut self.link, &mut self.buffer, &mut events, now)?;
            self.link.tick(Instant::now())?;
        }
        Ok(events.remove(0))
    }

    fn call(&mut self, caller: &Caller, call: &Call) -> Result<Value, LinkError> {
        self.send(&caller.command(call, true))
    }

    fn send(&mut self, command: &Cmd) -> Result<Value, LinkError> {
        self.link.send(command, (), Instant::now());
        match self.next()? {
            Event::Reply((), Ok(value)) => Ok(value),
            Event::Reply((), Err(error)) => {
                Err(LinkError::Refused { step: "a script (EVAL)", error: words(&error) })
            }
            Event::Up | Event::Message { .. } => Err(LinkError::Unexpected),
        }
    }

    fn register(&mut self, caller: &Caller) -> Result<Result<(), UplinkError>, LinkError> {
        let mut last_age = Duration::ZERO;
        let mut waiting = false;
        loop {
            let answer = self.call(caller, &Call::Register { first: true, at: Instant::now() })?;
            match presence::decode_registered(answer) {
                Some(Registered::Alive { .. }) => return Ok(Ok(())),
                Some(Registered::Clearing) => {}
                // The age has fallen: the holder has sent another heartbeat, so it is alive.
                Some(Registered::Held { age, .. }) if age < last_age => {
                    return Ok(Err(UplinkError::NameTaken));
                }
                Some(Registered::Held { age, grace }) => {
                    if !std::mem::replace(&mut waiting, true) {
                        tracing::warn!(
                            at_most = ?grace.saturating_sub(age),
                            "a process with this INSTANCE_ID was alive a moment ago and has not signed off: \
                             waiting until it is certainly dead (after a clean stop there is no wait)"
                        );
                    }
                    last_age = age;
                    std::thread::sleep(HELD_LOOKS);
                }
                None => return Err(LinkError::Other("a presence script gave an answer of the wrong shape")),
            }
        }
    }
}
