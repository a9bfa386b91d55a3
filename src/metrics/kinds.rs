//! Counters that are told apart by a label. Every label has a fixed set of values: none comes from a user.

use super::Cell;
use crate::codec::close::CloseCode;
use crate::room::history::NotRecovered;

/// A limit that a request, a message or a connection ran into, by the setting that sets it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(usize)]
pub enum Limit {
    /// Messages of one connection.
    MessageRate,
    /// Bytes of one connection.
    ByteRate,
    /// Messages of one user.
    UserMessageRate,
    /// Messages from one address.
    AddressMessageRate,
    /// Messages to one room, or of the whole cluster.
    PublicationRate,
    /// Joins of one connection.
    JoinRate,
    /// Rooms of one connection.
    RoomsPerConnection,
    /// Connections of one user.
    ConnectionsPerUser,
    /// Connections from one address.
    ConnectionsPerAddress,
    /// Connections of the instance.
    Connections,
    /// Sockets accepted per second.
    AcceptRate,
    /// Handshakes under way.
    Handshakes,
    /// Bytes of one message.
    MessageBytes,
    /// A queue between threads: the request was answered `unavailable`.
    Queue,
    /// Calls of `/api/` under way.
    Calls,
    /// Connections of ADMIN_PORT.
    AdminConnections,
}

impl Limit {
    /// All of them, in the order of their numbers.
    pub const ALL: [Self; 16] = [
        Self::MessageRate,
        Self::ByteRate,
        Self::UserMessageRate,
        Self::AddressMessageRate,
        Self::PublicationRate,
        Self::JoinRate,
        Self::RoomsPerConnection,
        Self::ConnectionsPerUser,
        Self::ConnectionsPerAddress,
        Self::Connections,
        Self::AcceptRate,
        Self::Handshakes,
        Self::MessageBytes,
        Self::Queue,
        Self::Calls,
        Self::AdminConnections,
    ];

    /// The value of the label.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::MessageRate => "message_rate",
            Self::ByteRate => "byte_rate",
            Self::UserMessageRate => "user_message_rate",
            Self::AddressMessageRate => "address_message_rate",
            Self::PublicationRate => "room_or_global_message_rate",
            Self::JoinRate => "join_rate",
            Self::RoomsPerConnection => "max_rooms_per_connection",
            Self::ConnectionsPerUser => "max_connections_per_user",
            Self::ConnectionsPerAddress => "max_connections_per_address",
            Self::Connections => "ws_max_connections",
            Self::AcceptRate => "accept_rate",
            Self::Handshakes => "max_handshakes",
            Self::MessageBytes => "max_message_bytes",
            Self::Queue => "queue",
            Self::Calls => "api_calls",
            Self::AdminConnections => "admin_connections",
        }
    }
}

/// How a WebSocket connection ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ending {
    /// The server closed it with this code.
    Server(CloseCode),
    /// The client closed it with this code, or with none.
    Client(Option<u16>),
    /// It broke: no close frame was seen.
    Broken,
}

/// Codes that clients give by themselves; every other one is counted as `other`, so that no client makes up labels.
const CLIENT_CODES: [u16; 5] = [1000, 1001, 1002, 1003, 1011];

/// Ended connections by who ended them and with what.
#[derive(Debug, Default)]
pub struct Closes {
    server: [Cell; CloseCode::ALL.len()],
    client: [Cell; CLIENT_CODES.len()],
    client_none: Cell,
    client_other: Cell,
    broken: Cell,
}

impl Closes {
    /// Counts one.
    pub fn count(&self, ending: Ending) {
        let cell = match ending {
            Ending::Server(code) => {
                let place = CloseCode::ALL.iter().position(|other| *other == code);
                &self.server[place.unwrap_or_default()]
            }
            Ending::Client(None) => &self.client_none,
            Ending::Client(Some(code)) => match CLIENT_CODES.iter().position(|other| *other == code) {
                Some(place) => &self.client[place],
                None => &self.client_other,
            },
            Ending::Broken => &self.broken,
        };
        cell.add(1);
    }

    /// Who closed, with what code, and how often. 1005 is a close frame without a code, 1006 none at all (RFC 6455,
    /// section 7.1.5).
    pub fn each(&self) -> impl Iterator<Item = (&'static str, String, u64)> {
        let server = CloseCode::ALL.iter().zip(&self.server);
        let server = server.map(|(code, cell)| ("server", code.as_u16().to_string(), cell.get()));
        let client = CLIENT_CODES.iter().zip(&self.client);
        let client = client.map(|(code, cell)| ("client", code.to_string(), cell.get()));
        let rest = [
            ("client", "1005", &self.client_none),
            ("client", "other", &self.client_other),
            ("nobody", "1006", &self.broken),
        ];
        let rest = rest.into_iter().map(|(by, code, cell)| (by, code.to_owned(), cell.get()));
        server.chain(client).chain(rest)
    }
}

/// What became of a wish to get what was missed: everything, or why not.
#[derive(Debug, Default)]
pub struct Recoveries([Cell; 7]);

/// In the order of the cells behind the first, which counts successes.
const FAILURES: [NotRecovered; 6] = [
    NotRecovered::NoHistory,
    NotRecovered::Epoch,
    NotRecovered::Expired,
    NotRecovered::Future,
    NotRecovered::TooMuch,
    NotRecovered::Unavailable,
];

impl Recoveries {
    /// Counts one.
    pub fn count(&self, failure: Option<NotRecovered>) {
        let place = failure.and_then(|failure| FAILURES.iter().position(|other| *other == failure));
        self.0[place.map_or(0, |place| place + 1)].add(1);
    }

    /// Each outcome and how often it was.
    pub fn each(&self) -> impl Iterator<Item = (&'static str, u64)> {
        let names = std::iter::once("recovered").chain(FAILURES.iter().map(|failure| failure.as_str()));
        names.zip(self.0.iter().map(Cell::get))
    }
}

/// Status codes that the server answers with; every other one is counted with the last.
const STATUSES: [&str; 20] = [
    "200", "202", "307", "400", "401", "403", "404", "405", "408", "411", "413", "415", "421", "426", "429",
    "431", "500", "503", "505", "other",
];

/// Answers to requests that did not become a WebSocket, by status code.
#[derive(Debug, Default)]
pub struct Statuses([Cell; STATUSES.len()]);

impl Statuses {
    /// Counts a complete HTTP response.
    pub fn count(&self, response: &str) {
        let code = response.split(' ').nth(1).unwrap_or_default();
        let place = STATUSES.iter().position(|known| *known == code).unwrap_or(STATUSES.len() - 1);
        self.0[place].add(1);
    }

    /// Each code and how often it was given.
    pub fn each(&self) -> impl Iterator<Item = (&'static str, u64)> {
        STATUSES.into_iter().zip(self.0.iter().map(Cell::get))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn limits_stand_at_their_numbers() {
        for (place, limit) in Limit::ALL.into_iter().enumerate() {
            assert_eq!(limit as usize, place);
        }
    }

    #[test]
    fn a_client_cannot_make_up_a_label() {
        let closes = Closes::default();
        for code in [1000, 4242, 3999, 1001] {
            closes.count(Ending::Client(Some(code)));
        }
        closes.count(Ending::Client(None));
        closes.count(Ending::Broken);
        closes.count(Ending::Server(CloseCode::SlowReader));
        let counted: Vec<_> = closes.each().filter(|(.., count)| *count > 0).collect();
        let expected = [
            ("server", "4003", 1),
            ("client", "1000", 1),
            ("client", "1001", 1),
            ("client", "1005", 1),
            ("client", "other", 2),
            ("nobody", "1006", 1),
        ];
        assert_eq!(counted, expected.map(|(by, code, count)| (by, code.to_owned(), count)));
    }

    #[test]
    fn recoveries_are_counted_by_outcome() {
        let recoveries = Recoveries::default();
        recoveries.count(None);
        recoveries.count(Some(NotRecovered::Epoch));
        let counted: Vec<_> = recoveries.each().filter(|(_, count)| *count > 0).collect();
        assert_eq!(counted, [("recovered", 1), ("epoch", 1)]);
    }
}
