//! The `tableforge` program: its commands, and what each prints.

use std::collections::BTreeMap;
use std::error::Error;
use std::io::Write;
use std::path::Path;
use std::process::ExitCode;
use std::time::{SystemTime, UNIX_EPOCH};

use clap::{Args, CommandFactory, Parser, Subcommand};
use jsonwebtoken::{EncodingKey, Header};
use serde::Serialize;

use tableforge::admin::command_line::{self, AdminArgs};
use tableforge::command::keys::SECRET_ALGORITHMS;
use tableforge::config::setting::{SettingError, parse_span};
use tableforge::config::sources::SettingArgs;
use tableforge::config::{Checked, Settings};
use tableforge::permission::RoomRight;
use tableforge::reload::Origin;
use tableforge::{doctor, limits, logging, preflight, server};

#[cfg(not(feature = "system-allocator"))]
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

/// A self-hosted realtime room server.
#[derive(Parser)]
#[command(name = "tableforge", version)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Run the server.
    Serve(SettingArgs<false>),
    /// Run the server to try it out: loopback only, anonymous users, no Redis, a console page.
    Dev(SettingArgs<true>),
    /// Print a token for a try-out, signed with the server's secret.
    Token(TokenArgs),
    /// Administrate a running cluster over its HTTP interface.
    Admin(AdminArgs),
    /// Say whether the server can run here with these settings, what this machine carries, and what would be better.
    Doctor(DoctorArgs),
    /// Print the completions of a shell, to be read by it at its start.
    Completions {
        /// The shell.
        shell: clap_complete::Shell,
    },
    /// Print the man page, in roff.
    Man,
}

#[derive(Args)]
struct DoctorArgs {
    /// Print JSON, for programs.
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    settings: SettingArgs<false>,
}

#[derive(Args)]
struct TokenArgs {
    /// User id.
    #[arg(long)]
    sub: String,
    /// Display name.
    #[arg(long)]
    name: Option<String>,
    /// How long the token is valid: seconds, or a number with s, m, h or d.
    #[arg(long, default_value = "1h", value_parser = parse_span)]
    ttl: u64,
    /// Permission: broadcast or admin. May be repeated.
    #[arg(long, value_parser = ["broadcast", "admin"])]
    permission: Vec<String>,
    /// Rights in rooms, such as 'table-*=join,publish'. May be repeated; without it the server's defaults hold.
    #[arg(long, value_name = "PATTERN=RIGHTS", value_parser = parse_room)]
    room: Vec<(String, Vec<String>)>,
    /// The server's secret.
    #[arg(long, env = "JWT_SECRET", hide_env_values = true)]
    jwt_secret: String,
    /// The algorithm that goes with the secret: HS256, HS384 or HS512.
    #[arg(long, env = "JWT_ALGORITHM", hide_env_values = true, default_value = "HS256", value_parser = secret_algorithms())]
    jwt_algorithm: String,
    /// The issuer that the server wants.
    #[arg(long, env = "JWT_ISSUER", hide_env_values = true)]
    jwt_issuer: Option<String>,
    /// The audience that the server wants.
    #[arg(long, env = "JWT_AUDIENCE", hide_env_values = true)]
    jwt_audience: Option<String>,
}

fn main() -> ExitCode {
    let outcome = match Cli::parse().command {
        Command::Serve(given) => start(given),
        Command::Dev(given) => start(given),
        Command::Token(args) => print_token(args).map_err(|error| (error, WRONG_USE)),
        Command::Admin(args) => command_line::run(args).map_err(|error| (error, FAILED)),
        Command::Doctor(args) => return diagnose(args),
        Command::Completions { shell } => {
            let mut script = Vec::new();
            clap_complete::generate(shell, &mut Cli::command(), "tableforge", &mut script);
            if shell == clap_complete::Shell::Fish {
                // What is generated for fish says nothing about arguments without a name.
                script.extend_from_slice(FISH_SHELLS.as_bytes());
            }
            print(&script)
        }
        Command::Man => man_page().and_then(|page| print(&page)),
    };
    match outcome {
        Ok(()) => ExitCode::SUCCESS,
        Err((error, code)) => {
            eprintln!("tableforge: {error}");
            ExitCode::from(code)
        }
    }
}

/// What fish completes behind `tableforge completions`.
const FISH_SHELLS: &str = "complete -c tableforge -n '__fish_tableforge_using_subcommand completions' -f \
    -a 'bash elvish fish powershell zsh'\n";

/// Exit code for what was wrong on the command line, in the environment or in the file.
const WRONG_USE: u8 = 2;
/// Exit code for everything that failed although it was asked for rightly.
const FAILED: u8 = 1;

type Failure = (Box<dyn Error>, u8);

fn start<const DEV: bool>(args: SettingArgs<DEV>) -> Result<(), Failure> {
    // A huge page is resident from the first byte in it on, which doubles what idle connections take and saves no time
    // that could be measured. It can be forbidden in all kernels that we run on.
    let _ = rustix::thread::disable_transparent_huge_pages(true);
    let mode = SettingArgs::<DEV>::MODE;
    let wrong = |error: SettingError| (error.into(), WRONG_USE);
    let values = args.read().map_err(wrong)?;
    let Checked { settings, notes } = Settings::from_given(mode, &values).map_err(wrong)?;
    // Held to the end: what still waits to be logged is written when it goes.
    let mut logging = logging::start(&settings);
    let log_level = std::mem::replace(&mut logging.set_level, Box::new(|_| ()));
    let report = preflight::check(&settings).map_err(|error| (error.into(), FAILED))?;
    for warning in notes.iter().chain(&report.warnings) {
        tracing::warn!("{warning}");
    }
    let origin = Origin { mode, given: values, read: Box::new(move || args.read()), log_level };
    server::run(settings, origin).map_err(|error| (error, FAILED))
}

/// Whoever reads may stop before the end, as a pager does.
fn print(text: &[u8]) -> Result<(), Failure> {
    match std::io::stdout().write_all(text) {
        Err(error) if error.kind() != std::io::ErrorKind::BrokenPipe => Err((error.into(), FAILED)),
        _ => Ok(()),
    }
}

/// One page that refers to no other: the program, and a section for each command.
fn man_page() -> Result<Vec<u8>, Failure> {
    let mut page = Vec::new();
    let mut write = || {
        let mut command = Cli::command().disable_help_subcommand(true);
        command.build();
        let man = clap_mangen::Man::new(command.clone());
        man.render_title(&mut page)?;
        man.render_name_section(&mut page)?;
        man.render_synopsis_section(&mut page)?;
        man.render_options_section(&mut page)?;
        command.get_subcommands().try_for_each(|sub| man_of(sub, &mut page))?;
        man.render_version_section(&mut page)
    };
    write().map_err(|error: std::io::Error| (error.into(), FAILED))?;
    Ok(page)
}

/// The section of a command, and those of its own commands.
fn man_of(command: &clap::Command, page: &mut Vec<u8>) -> std::io::Result<()> {
    let name = command.get_bin_name().unwrap_or_else(|| command.get_name());
    writeln!(page, ".SH \"{}\"", name.to_uppercase())?;
    let mut body = Vec::new();
    let man = clap_mangen::Man::new(command.clone());
    man.render_description_section(&mut body)?;
    man.render_synopsis_section(&mut body)?;
    man.render_options_section(&mut body)?;
    for line in String::from_utf8_lossy(&body).lines() {
        match line.strip_prefix(".SH ") {
            Some(heading) => writeln!(page, ".SS {heading}")?,
            None => writeln!(page, "{line}")?,
        }
    }
    command.get_subcommands().try_for_each(|sub| man_of(sub, page))
}

/// 0 when the server can run, 1 when not; what was found goes to stdout either way.
fn diagnose(args: DoctorArgs) -> ExitCode {
    let variable = |name| std::env::var(name).ok().filter(|value| !value.is_empty());
    let root = variable("TABLEFORGE_TUNING_ROOT").unwrap_or_else(|| "/".to_owned());
    let shard_cpus = variable("TABLEFORGE_SHARD_CPUS");
    let diagnosis = match doctor::diagnose(args.settings.read(), Path::new(&root), shard_cpus.as_deref()) {
        Ok(diagnosis) => diagnosis,
        Err(error) => {
            eprintln!("tableforge: {error}");
            return ExitCode::from(FAILED);
        }
    };
    let text = match serde_json::to_string(&diagnosis) {
        Ok(json) if args.json => format!("{json}\n"),
        _ => diagnosis.to_string(),
    };
    match print(text.as_bytes()) {
        Ok(()) if diagnosis.ok => ExitCode::SUCCESS,
        _ => ExitCode::from(FAILED),
    }
}

#[derive(Serialize)]
struct NewClaims {
    sub: String,
    exp: u64,
    #[serde(skip_serializing_if = "Option::is_none")]
    name: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    iss: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    aud: Option<String>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    permissions: Vec<String>,
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    rooms: BTreeMap<String, Vec<String>>,
}

fn print_token(args: TokenArgs) -> Result<(), Box<dyn Error>> {
    let known = SECRET_ALGORITHMS.into_iter().find(|(name, _, _)| *name == args.jwt_algorithm);
    let (_, algorithm, least) = known.ok_or("--jwt-algorithm: allowed are HS256, HS384 and HS512")?;
    if args.jwt_secret.len() < least {
        return Err(format!(
            "JWT_SECRET: a secret needs {least} bytes or more; `openssl rand -hex 32` makes one"
        )
        .into());
    }
    if !(1..=limits::USER_ID_BYTES).contains(&args.sub.len()) {
        return Err(format!("--sub: a user id has 1 to {} bytes", limits::USER_ID_BYTES).into());
    }
    if args.name.as_ref().is_some_and(|name| !(1..=limits::DISPLAY_NAME_BYTES).contains(&name.len())) {
        return Err(format!("--name: a display name has 1 to {} bytes", limits::DISPLAY_NAME_BYTES).into());
    }
    let mut rooms = BTreeMap::<_, Vec<_>>::new();
    for (pattern, rights) in args.room {
        rooms.entry(pattern).or_default().extend(rights);
    }
    let claims = NewClaims {
        sub: args.sub,
        exp: SystemTime::now().duration_since(UNIX_EPOCH)?.as_secs().saturating_add(args.ttl),
        name: args.name,
        iss: args.jwt_issuer.filter(|issuer| !issuer.is_empty()),
        aud: args.jwt_audience.filter(|audience| !audience.is_empty()),
        permissions: args.permission,
        rooms,
    };
    let key = EncodingKey::from_secret(args.jwt_secret.as_bytes());
    println!("{}", jsonwebtoken::encode(&Header::new(algorithm), &claims, &key)?);
    Ok(())
}

fn secret_algorithms() -> [&'static str; 3] {
    SECRET_ALGORITHMS.map(|(name, _, _)| name)
}

fn parse_room(text: &str) -> Result<(String, Vec<String>), String> {
    let known = |name: &&str| RoomRight::parse(name).is_some();
    let parsed = text.split_once('=').filter(|(pattern, rights)| {
        let start = pattern.strip_suffix('*').unwrap_or(pattern);
        !pattern.is_empty() && !start.contains('*') && rights.split(',').all(|name| known(&name))
    });
    let (pattern, rights) = parsed.ok_or(
        "allowed: a room or the beginning of one with `*`, then `=` and a list out of join, publish, history, \
         members",
    )?;
    Ok((pattern.into(), rights.split(',').map(String::from).collect()))
}
