//! The settings of what a connection, a user, an address, a room and the whole cluster may use.

use super::Mode;
use crate::accept::address::Network;

/// Limits that are not about one connection's messages and rooms alone. 0 is no limit, and so is `None`.
#[derive(Clone, Debug)]
pub struct LimitSettings {
    /// Bytes of messages per second and connection.
    pub byte_rate: u32,
    /// Joins per second and connection.
    pub join_rate: u32,
    /// Joins of one connection at once.
    pub join_burst: u32,
    /// Messages per second and user, over all connections to this instance.
    pub user_message_rate: u32,
    /// Messages per second and address, over all connections to this instance.
    pub address_message_rate: u32,
    /// Messages per second and room that clients of this instance send.
    pub room_message_rate: u32,
    /// Messages per second that the clients of all instances send to others.
    pub global_message_rate: u32,
    /// Connections of one user to all instances together.
    pub max_connections_per_user: u32,
    /// Connections from one address to this instance.
    pub max_connections_per_address: u32,
    /// Whether loopback addresses have no limits: they are a proxy's or a test's, unless someone set the limit.
    pub spare_loopback: bool,
    /// Handshakes under way on one shard.
    pub max_handshakes: usize,
    /// Sockets accepted per second.
    pub accept_rate: u32,
    /// Whose word on a client's address is believed.
    pub trusted_proxies: Vec<Network>,
    /// Whether trusted proxies say by the PROXY protocol for whom they speak.
    pub proxy_protocol: bool,
}

/// `MAX_CONNECTIONS_PER_ADDRESS` of `tableforge serve` where it is not set: a household, an office, a school class.
const CONNECTIONS_PER_ADDRESS: u32 = 100;

impl LimitSettings {
    /// Fills in what depends on whether it was given, and checks the values against each other.
    pub(super) fn finish(&mut self, mode: Mode, per_address: Option<u32>) -> Result<(), &'static str> {
        self.spare_loopback = per_address.is_none();
        self.max_connections_per_address = per_address.unwrap_or(match mode {
            Mode::Serve => CONNECTIONS_PER_ADDRESS,
            Mode::Dev => 0,
        });
        if self.proxy_protocol && self.trusted_proxies.is_empty() {
            return Err(
                "PROXY_PROTOCOL is on without TRUSTED_PROXIES: name the addresses of the proxies that speak it",
            );
        }
        Ok(())
    }

    /// No limit at all.
    pub fn none() -> Self {
        Self {
            byte_rate: 0,
            join_rate: 0,
            join_burst: 0,
            user_message_rate: 0,
            address_message_rate: 0,
            room_message_rate: 0,
            global_message_rate: 0,
            max_connections_per_user: 0,
            max_connections_per_address: 0,
            spare_loopback: false,
            max_handshakes: usize::MAX,
            accept_rate: 0,
            trusted_proxies: Vec::new(),
            proxy_protocol: false,
        }
    }
}
