//! What instances say to an order, and the one answer that is made of it.

use std::collections::HashMap;

use serde_json::{Value, json};

use crate::accept::api::Answer;
use crate::ban::Bans;
use crate::identity::RoomId;
use crate::instance::{Instance, Phase};
use crate::shard::envelope::{Order, Part};

/// What this instance says of itself. `uptime` in seconds.
pub fn instance_facts(instance: &Instance, uptime: u64) -> Value {
    let status = match instance.phase() {
        Phase::Starting => "starting",
        Phase::Serving if instance.is_degraded() => "degraded",
        Phase::Serving => "serving",
        Phase::Draining => "draining",
    };
    let mut facts = json!({
        "instanceId": instance.id.as_str(),
        "status": status,
        "connections": instance.connections(),
        "rooms": instance.rooms(),
        "shards": instance.shards.len(),
        "uptime": uptime,
        "version": env!("CARGO_PKG_VERSION"),
    });
    instance.load().add_to(&mut facts);
    facts
}

/// What the shards of one instance have answered so far.
#[derive(Debug, Default)]
pub struct Gathered {
    sessions: Vec<Value>,
    closed: u64,
    rooms: HashMap<RoomId, (u64, u64)>,
}

impl Gathered {
    /// Takes one shard's part.
    pub fn add(&mut self, part: Part) {
        match part {
            Part::Disconnected(count) => self.closed += count,
            Part::Sessions(sessions) => self.sessions.extend(sessions.into_iter().map(|session| {
                json!({ "socketId": session.socket, "rooms": session.rooms, "openMs": session.open_ms })
            })),
            Part::Rooms(rooms) => {
                for (room, connections, deliveries) in rooms {
                    let sum = self.rooms.entry(room).or_default();
                    *sum = (sum.0 + connections, sum.1 + deliveries);
                }
            }
        }
    }

    /// What the instance says to `order`.
    pub fn finish(self, order: &Order) -> Value {
        match order {
            Order::User(_) => self.sessions.into(),
            Order::Rooms(most) => busiest(self.rooms, *most),
            _ => self.closed.into(),
        }
    }
}

fn busiest(rooms: HashMap<RoomId, (u64, u64)>, most: usize) -> Value {
    let mut rooms: Vec<_> = rooms.into_iter().collect();
    rooms.sort_unstable_by(|(a, (a_here, a_sent)), (b, (b_here, b_sent))| {
        (b_sent, b_here, a).cmp(&(a_sent, a_here, b))
    });
    rooms.truncate(most);
    let entry = |(room, (connections, deliveries)): (RoomId, (u64, u64))| json!({ "roomId": room.as_str(), "connections": connections, "deliveries": deliveries });
    rooms.into_iter().map(entry).collect()
}

fn sum(reports: &[(String, Value)]) -> u64 {
    reports.iter().filter_map(|(_, value)| value.as_u64()).sum()
}

/// How far an order came.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Hearing {
    /// To all instances, and all have answered.
    Complete,
    /// To others, of which not all have answered.
    Partial,
    /// To no other instance, though there may be some.
    Nobody,
}

/// The answer to `order` out of what each instance said.
pub fn combine(
    order: &Order,
    reports: Vec<(String, Value)>,
    hearing: Hearing,
    bans: &Bans,
    now_ms: u64,
) -> Answer {
    let mut body = match order {
        Order::Instances => {
            json!({ "instances": reports.into_iter().map(|(_, facts)| facts).collect::<Vec<_>>() })
        }
        Order::Rooms(most) => json!({ "rooms": merged_rooms(&reports, *most) }),
        Order::User(user) => {
            let ban = bans.of(user.as_str(), now_ms);
            let count = |sessions: &Value| sessions.as_array().map_or(0, Vec::len);
            let instances: Vec<_> = reports
                .iter()
                .filter(|(_, sessions)| count(sessions) > 0)
                .map(|(name, sessions)| {
                    json!({ "instanceId": name, "connections": count(sessions), "sessions": sessions })
                })
                .collect();
            json!({
                "userId": user.as_str(),
                "connections": reports.iter().map(|(_, sessions)| count(sessions)).sum::<usize>(),
                "instances": instances,
                "bannedUntil": ban.map(|ban| ban.until_ms),
            })
        }
        Order::Disconnect(user, _) => json!({ "userId": user.as_str(), "disconnected": sum(&reports) }),
        Order::Ban(user, ban) => {
            json!({ "userId": user.as_str(), "bannedUntil": ban.until_ms, "disconnected": sum(&reports) })
        }
        Order::Unban(user) => json!({ "userId": user.as_str(), "unbanned": sum(&reports) > 0 }),
        Order::Bans => {
            let holding = bans.iter().filter(|(_, ban)| now_ms < ban.until_ms);
            let entry = |(user, ban): (&crate::identity::UserId, &crate::ban::Ban)| json!({ "userId": user.as_str(), "until": ban.until_ms, "reason": ban.reason });
            json!({ "bans": holding.map(entry).collect::<Vec<_>>() })
        }
        Order::Drain(instance) => {
            if reports.iter().any(|(_, is_it)| *is_it == Value::Bool(true)) {
                return Answer::accepted(&json!({ "instanceId": instance.as_str(), "draining": true }));
            }
            return match hearing {
                Hearing::Complete => {
                    Answer::error("404 Not Found", "not_found", "no instance of this cluster has this name")
                }
                Hearing::Partial => Answer::timed_out(),
                Hearing::Nobody => Answer::unavailable(
                    "the instance cannot be asked: it may be gone, or it or this one is cut off from Redis",
                ),
            };
        }
    };
    if hearing != Hearing::Complete {
        body["complete"] = Value::Bool(false);
    }
    Answer::ok(&body)
}

fn merged_rooms(reports: &[(String, Value)], most: usize) -> Value {
    let mut rooms: HashMap<RoomId, (u64, u64)> = HashMap::new();
    for entry in reports.iter().filter_map(|(_, list)| list.as_array()).flatten() {
        let Some(room) = entry["roomId"].as_str().and_then(RoomId::parse) else { continue };
        let sum = rooms.entry(room).or_default();
        sum.0 += entry["connections"].as_u64().unwrap_or_default();
        sum.1 += entry["deliveries"].as_u64().unwrap_or_default();
    }
    busiest(rooms, most)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::identity::{InstanceId, UserId};

    fn body(order: &Order, reports: &[(&str, Value)], hearing: Hearing) -> Value {
        let reports = reports.iter().map(|(name, value)| ((*name).to_owned(), value.clone())).collect();
        serde_json::from_str(&combine(order, reports, hearing, &Bans::default(), 0).body).unwrap()
    }

    #[test]
    fn rooms_of_several_instances_add_up_and_the_busiest_come_first() {
        let list = |rooms: &[(&str, u64, u64)]| {
            let mut gathered = Gathered::default();
            let room = |name: &str| RoomId::parse(name).unwrap();
            gathered.add(Part::Rooms(rooms.iter().map(|(name, c, d)| (room(name), *c, *d)).collect()));
            gathered.finish(&Order::Rooms(10))
        };
        let reports = [("a", list(&[("x", 1, 5), ("y", 2, 6)])), ("b", list(&[("x", 3, 5), ("z", 1, 0)]))];
        let answer = body(&Order::Rooms(2), &reports, Hearing::Complete);
        let expected = json!({"rooms": [
            {"roomId": "x", "connections": 4, "deliveries": 10}, {"roomId": "y", "connections": 2, "deliveries": 6},
        ]});
        assert_eq!(answer, expected);
    }

    #[test]
    fn a_users_connections_are_listed_by_instance() {
        let user = Order::User(UserId::parse("ann").unwrap());
        let answer = body(&user, &[("a", json!([])), ("b", json!([{"socketId": "s"}]))], Hearing::Partial);
        assert_eq!((&answer["connections"], &answer["complete"]), (&json!(1), &json!(false)));
        assert_eq!(
            answer["instances"],
            json!([{"instanceId": "b", "connections": 1, "sessions": [{"socketId": "s"}]}])
        );
    }

    #[test]
    fn a_drain_needs_the_instance_that_is_meant() {
        let drain = Order::Drain(InstanceId::parse("b").unwrap());
        let answer = |reports: Vec<(String, Value)>, hearing| {
            let answer = combine(&drain, reports, hearing, &Bans::default(), 0);
            let body: Value = serde_json::from_str(&answer.body).unwrap();
            (answer.status[..3].to_owned(), body["error"]["code"].as_str().unwrap_or_default().to_owned())
        };
        let told = |status: &str, code: &str| (status.to_owned(), code.to_owned());
        assert_eq!(answer(vec![("b".into(), json!(true))], Hearing::Partial), told("202", ""));
        let of_a = || vec![("a".into(), json!(false))];
        assert_eq!(answer(of_a(), Hearing::Complete), told("404", "not_found"));
        assert_eq!(answer(of_a(), Hearing::Partial), told("503", "timeout"));
        assert_eq!(answer(of_a(), Hearing::Nobody), told("503", "unavailable"));
    }
}
