//! All clients together, on one thread, and the checker that hears what they live through.

use std::collections::{BTreeSet, HashSet, VecDeque};
use std::sync::mpsc::TryRecvError;
use std::time::{Duration, Instant};

use checker::Checker;
use checker::record::{Member, Message, Record, Room};
use fastrand::Rng;
use rustix::event::{PollFd, PollFlags, Timespec, poll};

use crate::Ms;
use crate::client::{Client, Notes, has_history, room_name};
use crate::control::{Bit, Ending, Order};
use crate::pending::Pending;
use crate::socket::Socket;
use crate::tally::{Tally, count};

/// What the thread waits at most for something to read.
const TURN: Timespec = Timespec { tv_sec: 0, tv_nsec: 2_000_000 };

/// Milliseconds between two arrivals or departures of one client, on average.
const ROAMS_EVERY: Ms = 8_000;

/// Milliseconds between two losses of one client's connection, on average.
const BREAKS_EVERY: Ms = 20_000;

/// Milliseconds for which a client that has vanished leaves its connection behind.
const VANISHED: Ms = 12_000;

/// Milliseconds after which what an undisturbed host has acknowledged is with the other hosts.
const PASSED_ON: Ms = 1_000;

/// Milliseconds without a fault after which a host counts as undisturbed.
const UNDISTURBED: Ms = 3_000;

/// Records that are kept for whoever looks into a violation.
const LOGGED: usize = 200_000;

/// What the clients are given.
pub(crate) struct Plan {
    pub(crate) start: Instant,
    pub(crate) clients: u32,
    pub(crate) rooms: u32,
    /// Messages per second.
    pub(crate) rate: u32,
    /// Ports of the hosts.
    pub(crate) ports: Vec<u16>,
    pub(crate) seed: u64,
    /// The token of a client.
    pub(crate) token: fn(u32) -> String,
}

/// The clients.
pub(crate) struct Crowd {
    plan: Plan,
    random: Rng,
    clients: Vec<Client>,
    /// Connections that nobody reads any more, and until when they stay.
    vanished: Vec<(Ms, Socket)>,
    /// How many processes each host has had.
    processes: Vec<u32>,
    /// Hosts whose last process was killed: what they acknowledged may still be on its way to a client.
    killed: BTreeSet<(usize, u32)>,
    /// Acknowledged messages that their host may not have passed on yet: host, when, room, message.
    unsure: Vec<(usize, Ms, Room, Message)>,
    checker: Checker,
    calm_since: Option<Ms>,
    pending: Pending,
    tally: Tally,
    log: VecDeque<(Ms, usize, Record)>,
    talking: bool,
    roaming: bool,
    /// Messages that are due, times a thousand milliseconds.
    due: u64,
    turned: Ms,
}

impl Crowd {
    pub(crate) fn new(plan: Plan) -> Self {
        let mut random = Rng::with_seed(plan.seed);
        let clients = (0..plan.clients).map(|number| {
            let mut client = Client::new(Member(number), (plan.token)(number), random.u64(0..1_000));
            for _ in 0..random.u32(1..4) {
                client.join(Room(random.u32(..plan.rooms)), random.u8(..10) < 3, 0);
            }
            client
        });
        let clients = clients.collect();
        Self {
            clients,
            vanished: Vec::new(),
            processes: vec![0; plan.ports.len()],
            killed: BTreeSet::new(),
            unsure: Vec::new(),
            checker: Checker::new(),
            calm_since: Some(0),
            pending: Pending::default(),
            tally: Tally::default(),
            log: VecDeque::new(),
            talking: true,
            roaming: true,
            due: 0,
            turned: 0,
            random,
            plan,
        }
    }

    /// Lives until the script says that it is over.
    pub(crate) fn live(mut self, bit: &Bit) -> Ending {
        loop {
            self.await_input();
            let now = self.plan.start.elapsed().as_millis() as Ms;
            self.turn(now);
            match bit.orders.try_recv() {
                Ok((Order::Finish(finals), done)) => {
                    let _ = done.send(());
                    return self.finish(now, finals);
                }
                Ok((order, done)) => {
                    self.obey(order, now);
                    self.show(bit, now);
                    let _ = done.send(());
                }
                Err(TryRecvError::Empty) => self.show(bit, now),
                Err(TryRecvError::Disconnected) => return self.finish(now, None),
            }
        }
    }

    fn await_input(&self) {
        let sockets = self.clients.iter().filter_map(Client::socket);
        let mut fds: Vec<_> = sockets.map(|socket| PollFd::new(socket.stream(), PollFlags::IN)).collect();
        if fds.is_empty() {
            std::thread::sleep(Duration::from_millis(2));
        } else {
            // Interrupted or not: the sockets are read anyhow.
            let _ = poll(&mut fds, Some(&TURN));
        }
    }

    fn show(&mut self, bit: &Bit, now: Ms) {
        let (waiting, current_ms) = self.pending.look(now);
        let mut state = bit.state.lock().expect("nobody panics while holding it");
        (state.waiting, state.current_ms) = (waiting, current_ms);
        state.open = self.clients.iter().filter(|client| client.is_open()).count();
        state.violations = self.checker.violations().len();
        state.tally.clone_from(&self.tally);
    }

    fn turn(&mut self, now: Ms) {
        let elapsed = now - std::mem::replace(&mut self.turned, now);
        for place in 0..self.clients.len() {
            let mut notes = Notes::new();
            if self.clients[place].wants_to_connect(now) {
                self.connect(place, now);
            }
            let client = &mut self.clients[place];
            let over = client.turn(now, &mut self.random, &mut self.tally, &mut notes);
            self.note(place, now, notes);
            if over {
                let wait = self.random.u64(50..600);
                self.part(place, now + wait, false, now);
            }
            if self.roaming {
                self.roam(place, elapsed, now);
            }
        }
        self.talk(elapsed, now);
        self.vanished.retain(|(until, _)| *until > now);
        if self.calm_since.is_some_and(|since| now > since + UNDISTURBED) {
            self.unsure.retain(|(_, at, ..)| at + PASSED_ON > now);
        }
        let clients = &self.clients;
        let wants = |client: &Client, room| !client.is_absent() && client.wishes().any(|wish| wish == room);
        self.pending.keep(|member, room| {
            let client = &clients[member.0 as usize];
            // Where nobody of another host would say anything, there is nothing to be heard from one.
            wants(client, room) && clients.iter().any(|other| other.host != client.host && wants(other, room))
        });
    }

    fn connect(&mut self, place: usize, now: Ms) {
        let host = self.random.usize(..self.plan.ports.len());
        let again = now + self.random.u64(50..400);
        let to = (self.plan.ports[host], self.processes[host]);
        if self.clients[place].connect(host, to, (now, again)) {
            self.tally.connections += 1;
        }
    }

    /// Ends a client's connection.
    fn part(&mut self, place: usize, until: Ms, by_choice: bool, now: Ms) -> Option<Socket> {
        let mut notes = Notes::new();
        self.tally.unknown += self.clients[place].unanswered();
        let socket = self.clients[place].part(until, by_choice, now, &mut notes);
        self.note(place, now, notes);
        socket
    }

    /// A client comes, goes, or loses its connection in one of the ways in which that happens.
    fn roam(&mut self, place: usize, elapsed: Ms, now: Ms) {
        let mut happens = |every: Ms| self.random.u64(..every) < elapsed;
        let (joins, leaves, breaks) =
            (happens(2 * ROAMS_EVERY), happens(2 * ROAMS_EVERY), happens(BREAKS_EVERY));
        if joins {
            let (room, echo) = (Room(self.random.u32(..self.plan.rooms)), self.random.u8(..10) < 3);
            self.clients[place].join(room, echo, now);
        }
        if leaves && let Some(room) = self.clients[place].some_room(&mut self.random) {
            self.clients[place].leave(room);
        }
        if breaks && self.clients[place].is_open() {
            // One in ten is away for so long that the window may be over when it returns.
            let away = if self.random.u8(..10) == 0 { 5_000..30_000 } else { 50..1_500 };
            let until = now + self.random.u64(away);
            let socket = self.part(place, until, true, now);
            match self.random.u8(..4) {
                0 => self.vanished.extend(socket.map(|socket| (now + VANISHED, socket))),
                1 => drop(socket),
                _ => socket.into_iter().for_each(Socket::reset),
            }
        }
    }

    fn talk(&mut self, elapsed: Ms, now: Ms) {
        if !self.talking {
            return;
        }
        // After a pause of this thread not everything is made up for.
        self.due += elapsed.min(200) * u64::from(self.plan.rate);
        while self.due >= 1_000 {
            self.due -= 1_000;
            let place = self.random.usize(..self.clients.len());
            let Some(room) = self.clients[place].some_room(&mut self.random) else { continue };
            let mut notes = Notes::new();
            self.tally.sent += 1;
            self.clients[place].publish(room, now, &mut notes);
            self.note(place, now, notes);
        }
    }

    fn note(&mut self, place: usize, now: Ms, notes: Notes) {
        let client = &mut self.clients[place];
        let (member, host, process) = (client.member, client.host, client.process);
        for heard in std::mem::take(&mut client.heard) {
            if heard.host != host {
                self.pending.heard(member, heard.room, heard.sent);
            }
        }
        for record in notes {
            if self.log.len() == LOGGED {
                self.log.pop_front();
            }
            self.log.push_back((now, host, record.clone()));
            if let Record::Acked { room, message, offset: None } = record
                && !has_history(room)
            {
                if self.killed.contains(&(host, process)) {
                    continue;
                }
                self.unsure.push((host, now, room, message));
            }
            self.checker.record(now, record);
        }
    }

    fn obey(&mut self, order: Order, now: Ms) {
        match order {
            Order::FaultsBegin => {
                self.calm_since = None;
                self.pending.forget();
                self.checker.record(now, Record::FaultsBegin);
            }
            Order::FaultsEnd => {
                self.calm_since = Some(now);
                self.checker.record(now, Record::FaultsEnd);
                let here = self.clients.iter().filter(|client| !client.is_absent());
                let waiting: HashSet<_> =
                    here.flat_map(|client| client.wishes().map(|room| (client.member, room))).collect();
                self.pending.begin(now, waiting);
            }
            Order::HostKilled(host) => {
                self.killed.insert((host, self.processes[host]));
                self.processes[host] += 1;
                // What a process had acknowledged and not yet passed on is lost with it.
                for (_, _, room, message) in self.unsure.extract_if(.., |(from, ..)| *from == host) {
                    self.checker.record(now, Record::Doubted { room, message });
                }
            }
            Order::HostEnded(host) => self.processes[host] += 1,
            Order::DropClients(every) => {
                for place in 0..self.clients.len() {
                    if self.random.u32(..every) == 0 && self.clients[place].is_open() {
                        let until = now + self.random.u64(..1_000);
                        self.part(place, until, false, now).into_iter().for_each(Socket::reset);
                        count(&mut self.tally.closes, "dropped");
                    }
                }
            }
            Order::StallReaders(number, lasts) => {
                for _ in 0..number {
                    let place = self.random.usize(..self.clients.len());
                    self.clients[place].reads_from = now + lasts;
                }
            }
            Order::Gather => {
                self.roaming = false;
                for client in &mut self.clients {
                    client.recall(now + self.random.u64(..500));
                }
            }
            Order::Hush => self.talking = false,
            Order::CountMembers => {
                for client in self.clients.iter_mut().filter(|client| client.is_open()) {
                    for room in client.wishes().collect::<Vec<_>>() {
                        client.ask_for_members(room);
                    }
                }
            }
            Order::Finish(_) => unreachable!("ends the thread"),
        }
    }

    fn finish(self, now: Ms, finals: Option<Vec<checker::record::Final>>) -> Ending {
        let mut wrong_counts = BTreeSet::new();
        if finals.is_some() {
            for client in &self.clients {
                for (room, told) in &client.counts {
                    let in_it = |client: &&Client| client.is_inside(*room);
                    let right = self.clients.iter().filter(in_it).count() as u64;
                    if *told != right {
                        let room = room_name(*room);
                        wrong_counts
                            .insert(format!("{room}: {told} members were counted, and there are {right}"));
                    }
                }
            }
        }
        let violations = match finals {
            Some(finals) => self.checker.finish(now, &finals),
            None => self.checker.violations().to_vec(),
        };
        let shown =
            |(at, host, record): &(Ms, usize, Record)| format!("{at:>8} ms at host {host}: {record:?}");
        let log = if violations.is_empty() { Vec::new() } else { self.log.iter().map(shown).collect() };
        Ending { violations, wrong_counts: wrong_counts.into_iter().collect(), log }
    }
}
