//! The whole path of a message on one shard, from received bytes to marked outboxes.

use std::hint::black_box;
use std::sync::Arc;

use tableforge::config::Settings;
use tableforge::identity::ShardId;
use tableforge::instance::{Instance, Phase};
use tableforge::ring::{Key, SendBatch};
use tableforge::shard::mesh::Mesh;
use tableforge::shard::{Now, Shard};

use super::codec::masked_frame;
use super::command::{join_room, room_message};
use super::{Entry, Operation};

const NOW: Now = Now { since_start_ms: 1000, unix_ms: 1_790_000_000_000 };

const UPGRADE: &str = "GET /ws HTTP/1.1\r\nHost: localhost\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\
    Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n";

pub fn entries() -> Vec<Entry> {
    [(2, "room_of_2"), (5, "room_of_5"), (50, "room_of_50")]
        .map(|(members, room)| {
            Entry::new(format!("shard/message_128/{room}"), 1, move || Message::new(members))
        })
        .into()
}

/// One member of a room says something to the others.
struct Message {
    shard: Shard,
    masked: Vec<u8>,
    received: Vec<u8>,
    in_flight: Vec<(u32, Box<SendBatch>)>,
}

impl Message {
    fn new(members: u32) -> Self {
        let mut settings = Settings::for_tests();
        settings.message_rate = 0;
        let instance = Arc::new(Instance::new(settings, 1));
        instance.enter(Phase::Serving);
        let mesh = Mesh::new(ShardId(0), vec![None]);
        let mut message = Self {
            shard: Shard::new(ShardId(0), instance.clone(), None, mesh, None),
            masked: masked_frame(&room_message(128)),
            received: Vec::new(),
            in_flight: Vec::new(),
        };
        for slot in 0..members {
            let client = Key { slot, generation: 0 };
            message.shard.handle_accepted(client, NOW);
            message.shard.handle_received(client, &mut UPGRADE.as_bytes().to_vec(), NOW);
            message.shard.handle_received(client, &mut masked_frame(&join_room()), NOW);
            message.finish_turn();
        }
        message.prepare();
        message.run();
        let delivered = instance.shards[0].deliveries.get();
        assert_eq!(delivered, u64::from(members) - 1, "the message reaches every other member");
        message
    }

    /// Ends the turn with a flush to a ring that sends nothing and is done at once.
    fn finish_turn(&mut self) {
        self.shard.finish_turn(NOW);
        self.shard.take_actions();
        self.shard.outboxes().flush(1, usize::MAX, |slot, batch| {
            self.in_flight.push((slot, batch));
            Ok(())
        });
        for (slot, batch) in self.in_flight.drain(..) {
            self.shard.outboxes().sent(slot, batch);
        }
    }
}

impl Operation for Message {
    fn prepare(&mut self) {
        self.finish_turn();
        self.received.clone_from(&self.masked);
    }

    fn run(&mut self) {
        let sender = Key { slot: 0, generation: 0 };
        self.shard.handle_received(sender, black_box(&mut self.received), NOW);
    }
}
