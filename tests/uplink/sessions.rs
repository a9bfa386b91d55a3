//! The count of users' connections: what comes late over a connection to Redis that was given up.

use redis::{Connection, RedisError};
use tableforge::config::RedisSettings;
use tableforge::identity::{ConnectionId, InstanceId, ShardId, SocketId};
use tableforge::shard::envelope::{Counted, Envelope, UplinkCommand};
use tableforge::uplink::batch::Origin;
use tableforge::uplink::sessions::{Call, SessionCaller};

use crate::harness::*;

fn socket(slot: u32) -> SocketId {
    SocketId { boot: 7, connection: ConnectionId { shard: ShardId(0), slot, generation: 1 } }
}

/// What Redis has of the instance's connections.
fn counted(client: &mut Connection) -> Vec<(String, String)> {
    redis::cmd("HGETALL").arg("tf:sessions:a").query(client).expect("a hash or nothing")
}

fn call(caller: &SessionCaller, call: &Call, client: &mut Connection) -> Result<i64, RedisError> {
    caller.command(call, true).query(client)
}

/// Every operation that changes the count, about another connection than the one that is there.
fn changes() -> [Call; 4] {
    [
        Call::Attach { user: user("ann"), socket: socket(2), most: 9 },
        Call::Detach { user: user("ann"), socket: socket(1) },
        Call::Restore(vec![(user("ann"), vec![socket(3)])]),
        Call::Reset,
    ]
}

#[test]
fn what_comes_over_an_earlier_connection_changes_no_count() {
    let redis = Redis::start();
    let mut client = redis.client();
    let a = Instance::up("a", &RedisSettings { counts_connections: true, ..settings(redis.port) });
    let command = Counted { socket: socket(1), most: 1 };
    let connection = command.socket.connection;
    a.command(UplinkCommand::Attach { user: user("ann"), connection, counted: Some(command) });
    let answer = a.next(0);
    assert!(
        matches!(answer, Envelope::Attached { connection: waiting } if waiting == connection),
        "{answer:?}"
    );
    let before = counted(&mut client);
    assert_eq!(before, [("ann".to_owned(), format!(" {}", socket(1)))]);

    let entry: String = redis::cmd("HGET").arg("tf:boots").arg("a").query(&mut client).expect("it registers");
    let origin = entry.split(' ').next().and_then(|origin| u64::from_str_radix(origin, 16).ok());
    let (id, origin) = (InstanceId::parse("a").unwrap(), Origin(origin.expect("a number")));
    let earlier = SessionCaller::new("tf:", (&id, origin), true);
    let mut of_another_process = SessionCaller::new("tf:", (&id, Origin(origin.0 ^ 1)), true);
    (0..9).for_each(|_| of_another_process.reconnected());
    for caller in [&earlier, &of_another_process] {
        for late in changes() {
            let error = call(caller, &late, &mut client).expect_err("it is too late");
            assert_eq!((error.code(), counted(&mut client)), (Some("OUTDATED"), before.clone()), "{late:?}");
        }
    }
    let mut present = SessionCaller::new("tf:", (&id, origin), true);
    present.reconnected();
    for (change, answer) in changes().iter().zip([1, 0, 0, 0]) {
        assert_eq!(call(&present, change, &mut client).expect("it is in time"), answer, "{change:?}");
    }
    assert_eq!(counted(&mut client), []);
}
