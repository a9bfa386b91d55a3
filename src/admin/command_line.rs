//! `tableforge admin`: what the HTTP interface does, from a shell.

use std::error::Error;
use std::path::PathBuf;

use clap::{Args, Subcommand};
use serde::Serialize;
use serde_json::value::RawValue;
use serde_json::{Value, json};

use super::client::{Client, encode};

/// The arguments of `tableforge admin`.
#[derive(Args)]
pub struct AdminArgs {
    /// Where a server of the cluster answers: its main port, or ADMIN_PORT.
    #[arg(long, env = "TABLEFORGE_URL", default_value = "http://127.0.0.1:3001", global = true)]
    url: String,
    /// The authorities (PEM) that the certificate of an https:// server leads to, instead of the system's.
    #[arg(long, env = "TABLEFORGE_CA_FILE", value_name = "FILE", global = true)]
    ca_file: Option<PathBuf>,
    /// An API key, or a token with the admin permission.
    #[arg(long, env = "TABLEFORGE_API_KEY", hide_env_values = true, global = true)]
    api_key: Option<String>,
    #[command(subcommand)]
    command: AdminCommand,
}

#[derive(Subcommand)]
enum AdminCommand {
    /// The instances of the cluster.
    Instances,
    /// The busiest rooms, or who is in one.
    Rooms {
        /// A room: its members.
        room: Option<String>,
        /// How many rooms at most.
        #[arg(long, default_value_t = 20)]
        limit: u32,
    },
    /// A user's connections, or (without a user) who is banned.
    Users {
        /// The user.
        user: Option<String>,
    },
    /// Send an instance's clients away and stop it.
    Drain {
        /// The instance.
        instance: String,
    },
    /// Close a user's connections.
    Disconnect {
        /// The user.
        user: String,
        /// What the user is told.
        #[arg(long)]
        reason: Option<String>,
    },
    /// Close a user's connections and keep the user out.
    Ban {
        /// The user.
        user: String,
        /// For how long: seconds, or a number with s, m, h or d.
        #[arg(long = "for", value_name = "TIME", value_parser = crate::config::setting::parse_span)]
        seconds: u64,
        /// What the user is told.
        #[arg(long)]
        reason: Option<String>,
    },
    /// Let a user in again.
    Unban {
        /// The user.
        user: String,
    },
    /// Send JSON to everyone.
    Broadcast {
        /// The message's data: any JSON.
        data: String,
    },
    /// Publish JSON to a room.
    Publish {
        /// The room.
        room: String,
        /// The message's data: any JSON.
        data: String,
        /// The publisher's name for the message.
        #[arg(long)]
        message_id: Option<String>,
    },
}

/// Carries out one command and prints the answer.
///
/// # Errors
/// When there is no answer, or the server refuses.
pub fn run(args: AdminArgs) -> Result<(), Box<dyn Error>> {
    let client = Client::new(&args.url, args.api_key, args.ca_file.as_deref())?;
    let (method, path, body) = request(args.command)?;
    let (status, answer) = client.request(method, &path, body.as_deref())?;
    let answer: Value = serde_json::from_str(&answer).unwrap_or(Value::String(answer));
    if !(200..300).contains(&status) {
        let message =
            answer["error"]["message"].as_str().or(answer["error"].as_str()).unwrap_or("no reason given");
        return Err(format!("the server answers {status}: {message}").into());
    }
    println!("{answer:#}");
    Ok(())
}

type Request = (&'static str, String, Option<String>);

/// The body of a publication. Its data goes out as it was written: the order of keys and the digits of numbers are the
/// publisher's.
#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Publication<'a> {
    data: &'a RawValue,
    #[serde(skip_serializing_if = "Option::is_none")]
    message_id: Option<&'a str>,
}

fn publication(data: &str, message_id: Option<&str>) -> Result<String, String> {
    let data = serde_json::from_str(data)
        .map_err(|error| format!("the data is not JSON ({error}); a text needs quotes: '\"hello\"'"))?;
    let publication = Publication { data, message_id };
    Ok(serde_json::to_string(&publication).expect("texts and JSON are always JSON"))
}

fn request(command: AdminCommand) -> Result<Request, Box<dyn Error>> {
    let user_path = |user: &str, rest: &str| format!("/api/v1/users/{}{rest}", encode(user));
    Ok(match command {
        AdminCommand::Instances => ("GET", "/api/v1/instances".to_owned(), None),
        AdminCommand::Rooms { room: None, limit } => ("GET", format!("/api/v1/rooms?limit={limit}"), None),
        AdminCommand::Rooms { room: Some(room), .. } => {
            ("GET", format!("/api/v1/rooms/{}/members", encode(&room)), None)
        }
        AdminCommand::Users { user: None } => ("GET", "/api/v1/bans".to_owned(), None),
        AdminCommand::Users { user: Some(user) } => ("GET", user_path(&user, ""), None),
        AdminCommand::Drain { instance } => {
            ("POST", format!("/api/v1/instances/{}/drain", encode(&instance)), None)
        }
        AdminCommand::Disconnect { user, reason } => (
            "POST",
            user_path(&user, "/disconnect"),
            reason.map(|reason| json!({ "reason": reason }).to_string()),
        ),
        AdminCommand::Ban { user, seconds, reason } => {
            let mut body = json!({ "durationMs": seconds.saturating_mul(1000) });
            if let Some(reason) = reason {
                body["reason"] = reason.into();
            }
            ("POST", user_path(&user, "/ban"), Some(body.to_string()))
        }
        AdminCommand::Unban { user } => ("DELETE", user_path(&user, "/ban"), None),
        AdminCommand::Broadcast { data } => {
            ("POST", "/api/v1/broadcast".to_owned(), Some(publication(&data, None)?))
        }
        AdminCommand::Publish { room, data, message_id } => {
            let body = publication(&data, message_id.as_deref())?;
            ("POST", format!("/api/v1/rooms/{}/messages", encode(&room)), Some(body))
        }
    })
}
