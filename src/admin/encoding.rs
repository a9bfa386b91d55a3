//! Orders as the fields of administrative commands (docs/redis.md).

use serde_json::Value;

use super::signing::Fields;
use crate::ban::Ban;
use crate::identity::{InstanceId, UserId};
use crate::limits;
use crate::shard::envelope::Order;

/// The fields of an order.
pub fn encode(order: &Order) -> Fields {
    let mut fields = Fields::new();
    let mut put = |name: &str, value: Value| fields.insert(name.to_owned(), value);
    put("command", order.name().into());
    match order {
        Order::Instances | Order::Bans => None,
        Order::Rooms(most) => put("limit", (*most as u64).into()),
        Order::User(user) | Order::Unban(user) => put("userId", user.as_str().into()),
        Order::Disconnect(user, reason) => {
            put("userId", user.as_str().into());
            put("reason", reason.as_str().into())
        }
        Order::Ban(user, ban) => {
            put("userId", user.as_str().into());
            put("reason", ban.reason.as_str().into());
            put("until", ban.until_ms.into())
        }
        Order::Drain(instance) => put("instanceId", instance.as_str().into()),
    };
    fields
}

/// Reads the fields of an order at `now_ms` (milliseconds since 1970); nothing when they are none.
pub fn decode(fields: &Fields, now_ms: u64) -> Option<Order> {
    let text = |name: &str| fields.get(name).and_then(Value::as_str);
    let user = || text("userId").and_then(UserId::parse);
    let reason = text("reason").unwrap_or("disconnected by an administrator").to_owned();
    if reason.len() > limits::REASON_BYTES {
        return None;
    }
    Some(match text("command")? {
        "instances" => Order::Instances,
        "rooms" => {
            let limit = fields.get("limit").and_then(Value::as_u64).unwrap_or(20);
            Order::Rooms(usize::try_from(limit).ok()?.min(limits::LISTED_ROOMS))
        }
        "user" => Order::User(user()?),
        "disconnect" => Order::Disconnect(user()?, reason),
        "ban" => {
            let until_ms = fields.get("until").and_then(Value::as_u64)?;
            if until_ms.saturating_sub(now_ms) > limits::BAN_MS {
                return None;
            }
            Order::Ban(user()?, Ban { until_ms, reason })
        }
        "unban" => Order::Unban(user()?),
        "drain" => Order::Drain(text("instanceId").and_then(InstanceId::parse)?),
        _ => return None,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn orders_are_read_as_they_were_written() {
        let user = UserId::parse("ann").unwrap();
        for order in [
            Order::Instances,
            Order::Rooms(5),
            Order::User(user.clone()),
            Order::Disconnect(user.clone(), "bye".into()),
            Order::Ban(user.clone(), Ban { until_ms: 9, reason: "spam".into() }),
            Order::Unban(user),
            Order::Drain(InstanceId::parse("a").unwrap()),
        ] {
            assert_eq!(decode(&encode(&order), 0), Some(order));
        }
        assert_eq!(decode(&encode(&Order::Bans), 0), None);
        let far = Ban { until_ms: limits::BAN_MS + 1, reason: String::new() };
        assert_eq!(decode(&encode(&Order::Ban(UserId::parse("a").unwrap(), far)), 0), None);
    }
}
