//! Rooms above `PRESENCE_MAX_MEMBERS` report their size instead of each coming and going.

use crate::harness::client::Client;
use crate::harness::server::Server;

with_one_shard_and_four!(a_large_room_reports_its_size_instead_of_its_members);

fn a_large_room_reports_its_size_instead_of_its_members(shards: usize) {
    let shards = shards.to_string();
    let server = Server::start(&[("SHARDS", &shards), ("PRESENCE_MAX_MEMBERS", "3")]);
    let mut witness = Client::connect(&server);
    witness.join("r");
    let mut crowd: Vec<_> = (0..6).map(|_| Client::connect(&server)).collect();
    crowd.iter_mut().for_each(|client| drop(client.join("r")));
    for count in [2, 3] {
        assert_eq!(witness.expect("user_joined_room")["memberCount"], count);
    }
    let size =
        witness.expect_that("the size", |event| event["type"] == "room_size" && event["memberCount"] == 7);
    assert_eq!(size["roomId"], "r", "{}", size.text);
    crowd.truncate(4);
    witness.expect_that("the size", |event| event["type"] == "room_size" && event["memberCount"] == 5);
    witness.assert_none("user_joined_room");
    witness.assert_none("user_left_room");
}
