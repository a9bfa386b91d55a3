//! What `sessions.lua` keeps in Redis and does there.

use super::register::{OUTDATED, Publishes, Register, Reply};

/// One call.
pub(super) struct SessionCall<'a> {
    pub(super) register: &'a mut Register,
    /// What follows the script and the number of keys.
    pub(super) arguments: &'a [Vec<u8>],
    /// Whether Redis has no memory left.
    pub(super) full: bool,
    /// Whether somebody subscribes to a channel.
    pub(super) is_heard: &'a dyn Fn(&[u8]) -> bool,
    pub(super) publishes: Publishes,
}

impl SessionCall<'_> {
    /// The argument as text; the operation's own ones begin at 6.
    fn text(&self, at: usize) -> String {
        self.arguments.get(at).map(|bytes| String::from_utf8_lossy(bytes).into_owned()).unwrap_or_default()
    }

    fn of(&self, instance: &str, user: &str) -> String {
        self.register.sessions.get(instance).and_then(|users| users.get(user)).cloned().unwrap_or_default()
    }

    /// Nothing is written without memory.
    fn write(&mut self, user: String, list: String) -> bool {
        if !self.full {
            self.register.sessions.entry(self.text(3)).or_default().insert(user, list);
        }
        !self.full
    }

    pub(super) fn run(&mut self) -> Reply {
        let (instance, number) = (self.text(3), self.text(5).parse().unwrap_or(0));
        let changes = ["attach", "detach", "reset", "restore"].contains(&self.text(1).as_str());
        if changes && self.register.is_outdated(&instance, &self.text(4), number) {
            return Reply::Error(OUTDATED);
        }
        match self.text(1).as_str() {
            "attach" => return Reply::Number(i64::from(self.attach(&instance))),
            "detach" => self.detach(&instance),
            "reset" => drop(self.register.sessions.remove(&instance)),
            "restore" => {
                for at in (6..self.arguments.len()).step_by(2) {
                    self.write(self.text(at), self.text(at + 1));
                }
            }
            _ => {}
        }
        Reply::Number(0)
    }

    fn attach(&mut self, instance: &str) -> bool {
        let (user, socket, most) = (self.text(6), self.text(7), self.text(8).parse().unwrap_or(0));
        let here = self.of(instance, &user);
        if here.contains(&socket) {
            return true;
        }
        let mut count = here.len() / socket.len();
        for other in self.register.registry.keys().filter(|other| *other != instance) {
            let there = self.of(other, &user);
            let alive = format!("{}alive:{other}", self.text(0)).into_bytes();
            if !there.is_empty() && (self.is_heard)(&alive) {
                count += there.len() / socket.len();
            }
            if !there.is_empty() {
                self.publishes.push((alive, Vec::new()));
            }
        }
        let fits = count < most;
        if fits {
            self.write(user, here + &socket);
        }
        fits
    }

    fn detach(&mut self, instance: &str) {
        let (user, socket) = (self.text(6), self.text(7));
        let here = self.of(instance, &user);
        if !here.contains(&socket) {
            return;
        }
        let rest = here.replacen(&socket, "", 1);
        if (rest.is_empty() || !self.write(user.clone(), rest))
            && let Some(users) = self.register.sessions.get_mut(instance)
        {
            users.remove(&user);
        }
    }
}
