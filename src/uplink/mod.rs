//! This instance and the others: Redis between them.
//!
//! ```text
//!            commands ──▶ ingress thread ──▶ link ──▶ wire ──▶ Redis   SUBSCRIBE, presence scripts
//!   shards ◀── envelopes ── delivery ◀─────────┘                       messages, replies
//!            publications ──▶ publisher thread ──▶ packing ──▶ link ──▶ Redis   PUBLISH
//! ```
//!
//! Everything but [`driver`], [`preflight`] and [`socket`] is logic without clock, thread or socket.

mod arrivals;
pub mod batch;
pub mod batch_pacer;
pub mod channel;
pub mod delivery;
pub mod driver;
pub mod follower;
pub mod following;
pub mod history;
pub mod ingress;
pub mod lane;
pub mod link;
pub mod packing;
pub mod pair;
pub mod preflight;
pub mod presence;
pub mod publisher;
pub mod registry;
pub mod script_queue;
pub mod sessions;
pub mod socket;
pub mod store_queue;
mod thread;
pub mod wire;

/// Why an instance cannot start with the Redis that it was given.
#[derive(Debug, thiserror::Error)]
pub enum UplinkError {
    /// Redis refused a command: a wrong password, a missing right, no such database.
    #[error("{0}; check REDIS_USERNAME, REDIS_PASSWORD and REDIS_DB, and the user's rights (ACL GETUSER)")]
    Refused(link::LinkError),
    /// The Redis user lacks a right that is named.
    #[error(
        "the Redis user has no right to {0}; grant it with ACL SETUSER (docs/redis.md lists all that are needed)"
    )]
    MissingRight(String),
    /// A file that TLS needs cannot be used.
    #[error(transparent)]
    Certificate(#[from] crate::accept::certificate::CertificateError),
    /// Redis cannot be reached by TLS, or what answers is not proven to be it.
    #[error(
        "TLS to Redis fails: {0}; check REDIS_TLS, REDIS_CA_FILE, and that the certificate of Redis names REDIS_HOST"
    )]
    Tls(String),
    /// Redis does not answer, or not as it should.
    #[error("{0}; check REDIS_HOST, REDIS_PORT and REDIS_TLS, and that it runs")]
    Unreachable(link::LinkError),
    /// Another live process uses the same instance id.
    #[error("another live process uses this INSTANCE_ID; give each instance its own")]
    NameTaken,
    /// The operating system refused a thread, or zstd its memory.
    #[error("the uplink cannot start: {0}")]
    Resources(#[from] std::io::Error),
}
