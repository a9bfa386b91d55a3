//! What other threads tell a shard, and what a home shard decides.

use bytes::Bytes;

use super::envelope::{Asker, Counted, Envelope, Join, Joined, LinkState, Member, Presence, UplinkCommand};
use super::requests::authenticated;
use super::session::Phase;
use super::{Now, Shard};
use crate::codec::forms::Forms;
use crate::command::decode;
use crate::command::event::{self, ClusterStatus};
use crate::identity::{ConnectionId, RoomId, UserId};
use crate::ring::Stretch;
use crate::room::fanout::{CROWD, SliceMember, fan_out};
use crate::room::history::Position;
use crate::room::users::Detached;
use crate::send::outbox::{Outboxes, Outgoing};

/// Members as the lists that clients get hold them.
fn listed(members: &[Member]) -> impl ExactSizeIterator<Item = event::Member<'_>> {
    members.iter().map(as_listed)
}

fn as_listed(member: &Member) -> event::Member<'_> {
    event::Member { user: member.user.as_str(), name: member.name.as_deref(), socket: &member.socket }
}

/// Members of a slice from which on its frames are put into a log: copies for fewer cost about as much.
const LOGGED_FROM: usize = 8;

/// A room's frame for those of its members who take compressed frames. They have a log of their own, so that what one of them
/// gets stands there in a row, compressed or not.
struct Compressible {
    log: Option<u32>,
    /// Once somebody needs it: where the bytes of the form in the log come from, and where they stand there if they are few enough.
    logged: Option<(*const u8, Option<Stretch>)>,
}

impl Compressible {
    /// The frame for one of them, who expands with a window of `window` bits.
    // Not inlined: it would take registers from the loop over all members.
    #[inline(never)]
    fn outgoing<'a>(
        &'a mut self,
        window: u8,
        forms: &'a mut Forms<'_>,
        outboxes: &mut Outboxes,
    ) -> Outgoing<'a> {
        let frame = forms.fitting(window);
        let Some(number) = self.log else { return Outgoing::Alone(frame) };
        match self.logged.get_or_insert_with(|| (frame.as_ptr(), outboxes.log(number, frame))) {
            (logged, Some(stretch)) if *logged == frame.as_ptr() => Outgoing::Logged(stretch),
            _ => Outgoing::Alone(frame),
        }
    }
}

impl Shard {
    /// A message from another thread.
    pub fn handle_envelope(&mut self, envelope: Envelope, now: Now) {
        self.step(envelope, now);
        self.step_local(now);
    }

    /// Handles what this shard has sent to itself.
    pub(super) fn step_local(&mut self, now: Now) {
        while let Some(envelope) = self.mesh.next_local() {
            self.step(envelope, now);
        }
    }

    fn step(&mut self, envelope: Envelope, now: Now) {
        let Some(envelope) = self.step_api(envelope, now) else { return };
        match envelope {
            Envelope::Join(join) => self.home_join(join, now),
            Envelope::Leave { room, connection, user } => self.home_leave(&room, connection, &user),
            Envelope::ListMembers { room, asker } => self.home_list(room, asker),
            Envelope::Joined(joined) => self.joined(*joined, now),
            Envelope::Members { room, asker, member_count, members } => {
                self.listed_members(&room, &asker, member_count, &members);
            }
            Envelope::Authorized { room, connection, verdict } => {
                self.authorized(&room, connection, verdict, now);
            }
            Envelope::Attached { connection } => self.attached(connection, now),
            Envelope::TooManyConnections { connection } => self.close_excess(connection, now),
            Envelope::RoomFrame { room, sender, frame } => self.deliver_to_room(&room, sender, &frame),
            Envelope::Presence(presence) => self.deliver_presence(&presence),
            Envelope::RoomResync { room, reason, position } => {
                self.deliver_resync(room.as_ref(), reason, position);
            }
            Envelope::Store(store) => self.home_store(*store, now),
            Envelope::Stored { room, asker, outcome } => self.stored(&room, &asker, outcome),
            Envelope::ReadHistory(request) => self.home_read(request, now),
            Envelope::History { room, asker, page } => self.history_read(&room, &asker, page),
            Envelope::Attach { connection, user } => self.home_attach(connection, &user),
            Envelope::Detach { connection, user } => self.home_detach(connection, &user),
            Envelope::ToUser { user, frame } => self.home_to_user(&user, &frame),
            Envelope::UserFrame { user, frame } => self.deliver_to_user(&user, &frame),
            Envelope::GlobalFrame { frame } => self.deliver_to_everyone(&frame),
            Envelope::Link(state) => self.link_changed(state),
            Envelope::Reloaded(reloaded) => self.adopt(&reloaded),
            Envelope::Bans(_)
            | Envelope::ToRoom { .. }
            | Envelope::Ask { .. }
            | Envelope::Answered { .. }
            | Envelope::Api(_) => {}
        }
    }

    // ── as the home of rooms and users ────────────────────────────────────────────────────

    fn home_join(&mut self, join: Box<Join>, now: Now) {
        let linked = self.is_linked();
        let (home, enters) = self.homes.join(&join.room, join.asker.connection, &join.member);
        if enters || join.again {
            // A request that is made again was lost with the link, and nobody heard of the user.
            home.set_registered(&join.member.user, linked);
        }
        let route = home.route.clone();
        if let (Some(uplink), true) = (&mut self.uplink, linked) {
            uplink.commands.send(UplinkCommand::Join { enters: enters || join.again, join, route });
        } else {
            home.mark_told_alone();
            let member_count = home.user_count();
            let members = join.want_members.then(|| home.members().collect());
            if enters || join.again {
                self.announce(&join.room, true, &join.member, member_count);
            }
            let to = join.asker.connection.shard;
            let (history, recovery) = self.home_recovery(&join.room, join.since, now);
            let joined = Joined {
                room: join.room,
                asker: join.asker,
                route,
                member_count,
                members,
                history,
                recovery,
            };
            self.mesh.send(to, Envelope::Joined(Box::new(joined)));
        }
        self.cells.rooms.set(self.homes.len() as u64);
    }

    fn home_leave(&mut self, room: &RoomId, connection: ConnectionId, user: &UserId) {
        let linked = self.is_linked();
        let Some(left) = self.homes.leave(room, connection, user) else { return };
        self.cells.rooms.set(self.homes.len() as u64);
        if let (Some(uplink), true) = (&mut self.uplink, linked) {
            let last = left.remaining == 0;
            uplink.commands.send(UplinkCommand::Leave { room: room.clone(), member: left.member, last });
        } else {
            if let Some(home) = self.homes.get_mut(room.as_str()) {
                home.mark_told_alone();
            }
            self.announce(room, false, &left.member, left.remaining);
        }
    }

    /// Tells the shards with members of the room that a user came or left.
    fn announce(&mut self, room: &RoomId, joined: bool, member: &Member, member_count: u32) {
        let Some(home) = self.homes.get(room.as_str()) else { return };
        for shard in home.route.shards() {
            let presence = Presence { room: room.clone(), joined, member: member.clone(), member_count };
            self.mesh.send(shard, Envelope::Presence(Box::new(presence)));
        }
    }

    fn home_list(&mut self, room: RoomId, asker: Asker) {
        if let (true, Some(uplink)) = (self.is_linked(), &mut self.uplink) {
            return uplink.commands.send(UplinkCommand::ListMembers { room, asker });
        }
        let mut members = Vec::new();
        if let Some(home) = self.homes.get_mut(room.as_str()) {
            home.mark_told_alone();
            members.extend(home.members());
        }
        let (to, member_count) = (asker.connection.shard, members.len() as u32);
        self.mesh.send(to, Envelope::Members { room, asker, member_count, members });
    }

    fn home_attach(&mut self, connection: ConnectionId, user: &UserId) {
        self.user_homes.attach(user, connection);
        if self.refuses_another(connection, user) {
            return;
        }
        let linked = self.is_linked();
        let most = self.settings().limits.max_connections_per_user;
        let counted = self.counted_session(connection, user).map(|socket| Counted { socket, most });
        match &mut self.uplink {
            Some(uplink) if linked => {
                uplink.commands.send(UplinkCommand::Attach { user: user.clone(), connection, counted });
            }
            _ => self.mesh.send(connection.shard, Envelope::Attached { connection }),
        }
    }

    fn home_detach(&mut self, connection: ConnectionId, user: &UserId) {
        let detached = self.user_homes.detach(user, connection);
        let counted = self.counted_session(connection, user);
        let last = detached == Detached::Last;
        if let Some(uplink) = &mut self.uplink
            && (last || (counted.is_some() && detached != Detached::Unknown))
        {
            uplink.commands.send(UplinkCommand::Detach { user: user.clone(), counted, last });
        }
    }

    fn home_to_user(&mut self, user: &UserId, frame: &Bytes) {
        for shard in self.user_homes.shards(user.as_str()) {
            self.mesh.send(shard, Envelope::UserFrame { user: user.clone(), frame: frame.clone() });
        }
    }

    fn link_changed(&mut self, state: LinkState) {
        let Some(uplink) = &mut self.uplink else { return };
        let before = std::mem::replace(&mut uplink.state, state);
        uplink.settled |= state != LinkState::Restoring;
        match state {
            LinkState::Down if before != LinkState::Down => {
                self.deliver_to_everyone(&event::cluster_status(ClusterStatus::Degraded));
                self.ask_again();
            }
            LinkState::Restoring => self.restore(),
            LinkState::Up => {
                self.homes.iter_mut().for_each(|(_, home)| home.settle());
                self.deliver_to_everyone(&event::cluster_status(ClusterStatus::Ok));
            }
            LinkState::Down => {}
        }
    }

    /// Tells the uplink everything that this shard is home to.
    fn restore(&mut self) {
        let users = self.counted_users();
        let Some(uplink) = &mut self.uplink else { return };
        for (room, home) in self.homes.iter_mut() {
            let (members, newcomers) = home.by_registration();
            uplink.commands.send(UplinkCommand::Restore {
                room: room.clone(),
                route: home.route.clone(),
                members,
                newcomers,
                told: home.is_told_alone(),
            });
        }
        uplink.commands.send(UplinkCommand::RestoreUsers { users });
        let rooms = uplink.published_alone.drain().collect();
        uplink.commands.send(UplinkCommand::PublishedAlone { rooms });
        uplink.commands.send(UplinkCommand::Restored { shard: self.id });
    }

    // ── as the owner of connections ───────────────────────────────────────────────────────

    fn attached(&mut self, connection: ConnectionId, now: Now) {
        let Some(session) = self.session_of(connection) else { return };
        if session.phase == Phase::Attaching {
            return self.establish(connection.slot, now);
        }
        if self.close_if_banned(connection, now) {
            return;
        }
        let Some(session) = self.session_of(connection) else { return };
        let waiting = session.unsettled.as_mut().and_then(|unsettled| unsettled.authenticating.take());
        session.settle();
        if let (Some(message_id), Some(identity)) = (waiting, &session.identity) {
            let reply = authenticated(identity, message_id.as_deref());
            self.outboxes.push(connection.slot, &reply);
            self.watch_expiry(connection, now);
        }
    }

    fn joined(&mut self, joined: Joined, now: Now) {
        let Joined { room, asker, route, member_count, members, history, recovery } = joined;
        let id = asker.connection;
        let known = self.directory.find(room.as_str());
        // A join that was asked for twice is answered twice; one that the client's end has overtaken,
        // to nobody.
        let Some(session) = self.session_of(id) else { return };
        let Some(joining) = session.take_joining(&room) else { return };
        let inside = known.and_then(|slice| session.membership(slice));
        if let Some(mut span) = joining.span {
            span.set("tableforge.members", u64::from(member_count));
            span.finish(None);
        }
        let window = session.window;
        let covered = inside.is_none() && self.settings().history.covers(room.as_str());
        match inside {
            Some(at) => {
                let slice = self.directory.slice_mut(at.slice);
                slice.members[at.position as usize].echo = joining.echo;
            }
            None => {
                let member = SliceMember { slot: id.slot, echo: joining.echo, window };
                let membership = self.directory.add(&room, &route, covered, member);
                if let Some(session) = self.session_of(id) {
                    session.rooms.push(membership);
                }
            }
        }
        let mut list = members.as_deref().map(listed);
        let epoch = history.map(|position| position.epoch.to_string()).unwrap_or_default();
        let recovery = recovery.and_then(|frames| self.fitting(id.slot, frames));
        if joining.since.is_some() {
            self.cells.recoveries.count(recovery.as_ref().err().copied());
        }
        let recovery = recovery.as_deref().map_err(|reason| reason.as_str());
        let reply = event::room_joined(event::RoomJoined {
            room: room.as_str(),
            member_count,
            members: list.as_mut().map(|list| list as &mut dyn ExactSizeIterator<Item = _>),
            position: history.map(|position| decode::Position { epoch: &epoch, offset: position.offset }),
            recovery: joining.since.map(|_| recovery),
            message_id: joining.message_id.as_deref(),
        });
        self.outboxes.push_replay(id.slot, &reply);
        if let Some(number) = joining.resume {
            self.resumed_room(id, number, room);
        }
        for text in joining.parked {
            if self.session_of(id).is_none_or(|session| session.phase != Phase::Open) {
                return;
            }
            self.handle_message(id.slot, &text, None, now);
        }
    }

    fn listed_members(&mut self, room: &RoomId, asker: &Asker, member_count: u32, members: &[Member]) {
        if !self.answered(room, asker) {
            return;
        }
        let id = asker.connection;
        if self.session_of(id).is_some() {
            let reply = event::room_members(
                room.as_str(),
                member_count,
                listed(members),
                asker.message_id.as_deref(),
            );
            self.outboxes.push_replay(id.slot, &reply);
        }
    }

    fn deliver_to_room(&mut self, room: &RoomId, sender: Option<ConnectionId>, frame: &Bytes) {
        let Some(slice) = self.directory.find(room.as_str()) else { return };
        let sender = sender.filter(|sender| self.session_of(*sender).is_some());
        let sender = sender.filter(|sender| sender.shard == self.id).map(|sender| sender.slot);
        self.deliver_to_slice(slice, sender, frame);
    }

    /// Puts a frame into the outboxes of a slice's members, in the form that each of them takes.
    ///
    /// That they refer to a log of this shard also spares them from counting references in memory that another core counts
    /// them in as well, if the frame came from there.
    pub(super) fn deliver_to_slice(&mut self, number: u32, sender: Option<u32>, frame: &Bytes) {
        let slice = self.directory.slice(number);
        let outboxes = &mut self.outboxes;
        let mut forms = Forms::new(frame, &mut self.deflater);
        let log = (slice.members.len() >= LOGGED_FROM).then_some(2 * number);
        let takes_plain = slice.members.iter().any(|member| member.window == 0);
        let stretch = log.filter(|_| takes_plain).and_then(|number| outboxes.log(number, frame));
        let plain = stretch.as_ref().map_or(Outgoing::Alone(frame), Outgoing::Logged);
        let mut compressible = Compressible { log: log.map(|number| number + 1), logged: None };
        let is_crowd = slice.members.len() > CROWD;
        let count = fan_out(&slice.members, sender, |member| {
            let frame = match member.window {
                0 => plain,
                window => compressible.outgoing(window, &mut forms, outboxes),
            };
            if is_crowd {
                outboxes.push_in_bulk(member.slot, frame)
            } else {
                outboxes.push(member.slot, frame)
            }
        });
        self.cells.deliveries.add(count);
        self.cells.fan_out.observe(count);
        slice.count(count);
        self.cells.compressed.add(forms.is_compressed().into());
    }

    fn deliver_presence(&mut self, presence: &Presence) {
        let Some(number) = self.directory.find(presence.room.as_str()) else { return };
        if presence.member_count > self.settings().presence_max_members {
            return self.directory.resize(number, presence.member_count);
        }
        let Presence { room, joined, member, member_count } = presence;
        let encode = if *joined { event::user_joined_room } else { event::user_left_room };
        let frame = encode(room.as_str(), &as_listed(member), *member_count);
        let newcomer = self.users.slots(member.user.as_str()).find(|slot| {
            self.sessions[*slot as usize]
                .as_ref()
                .is_some_and(|session| self.socket_id(session.id).text().as_str() == &*member.socket)
        });
        let outboxes = &mut self.outboxes;
        for member in &self.directory.slice(number).members {
            if Some(member.slot) != newcomer {
                outboxes.push_patiently(member.slot, &frame);
            }
        }
    }

    /// Tells the members of rooms too large for single joins and leaves how large they are.
    pub(super) fn deliver_sizes(&mut self) {
        for number in self.directory.take_resized() {
            let slice = self.directory.slice(number);
            let frame = event::room_size(slice.room.as_str(), slice.member_count);
            let outboxes = &mut self.outboxes;
            fan_out(&slice.members, None, |member| outboxes.push(member.slot, &frame));
        }
    }

    fn deliver_resync(&mut self, room: Option<&RoomId>, reason: &str, position: Option<Position>) {
        let epoch = position.map(|position| position.epoch.to_string()).unwrap_or_default();
        let position = position.map(|position| decode::Position { epoch: &epoch, offset: position.offset });
        let numbers: Vec<_> = match room {
            Some(room) => self.directory.find(room.as_str()).into_iter().collect(),
            None => self.directory.numbers().collect(),
        };
        for number in numbers {
            let slice = self.directory.slice(number);
            let frame = event::room_resync(slice.room.as_str(), reason, position);
            let outboxes = &mut self.outboxes;
            fan_out(&slice.members, None, |member| outboxes.push(member.slot, &frame));
        }
    }

    fn deliver_to_user(&mut self, user: &UserId, frame: &Bytes) {
        let mut forms = Forms::new(frame, &mut self.deflater);
        for slot in self.users.slots(user.as_str()) {
            let window = self.sessions[slot as usize].as_ref().map_or(0, |session| session.window);
            self.cells.deliveries.add(1);
            self.outboxes.push(slot, forms.fitting(window));
        }
        self.cells.compressed.add(forms.is_compressed().into());
    }

    /// Everyone who is authenticated and has heard the first message.
    pub(super) fn deliver_to_everyone(&mut self, frame: &Bytes) {
        let mut forms = Forms::new(frame, &mut self.deflater);
        for session in self.sessions.iter().flatten() {
            if session.phase == Phase::Open && session.identity.is_some() {
                self.cells.deliveries.add(1);
                self.outboxes.push(session.id.slot, forms.fitting(session.window));
            }
        }
        self.cells.compressed.add(forms.is_compressed().into());
    }
}
