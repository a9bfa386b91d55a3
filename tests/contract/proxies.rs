//! The configurations in deploy/ for nginx and HAProxy, in the real programs, before instances and a real Redis.

use std::path::{Path, PathBuf};
use std::process::Command;

use rustix::process::Signal;

use crate::harness::client::Client;
use crate::harness::process::Process;
use crate::harness::redis::RedisServer;
use crate::harness::server::Server;
use crate::harness::{eventually, free_port, http};

/// The ports of instances in the configurations; nobody listens on the third in a test.
const INSTANCES: [&str; 3] = ["127.0.0.1:3001", "127.0.0.1:3002", "127.0.0.1:3003"];

fn deploy(file: &str) -> String {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("deploy").join(file);
    std::fs::read_to_string(&path).unwrap_or_else(|why| panic!("{}: {why}", path.display()))
}

/// A proxy before two instances, each of which may have settings of its own.
struct Stage {
    _redis: RedisServer,
    instances: Vec<Server>,
    _proxy: Process,
    port: u16,
}

/// How to start a proxy on `port` with files below `directory`, before `instances`.
type Program = fn(directory: &Path, port: u16, instances: [u16; 3]) -> Command;

impl Stage {
    fn new(name: &str, program: Program, settings: [&[(&str, &str)]; 2]) -> Self {
        let redis = RedisServer::start();
        let instances: Vec<_> = ["a", "b"]
            .into_iter()
            .zip(settings)
            .map(|(id, settings)| Server::in_cluster(&redis, id, settings))
            .collect();
        let (port, nobody) = (free_port(), free_port());
        let directory = Path::new(env!("CARGO_TARGET_TMPDIR")).join(format!("{name}-{port}"));
        std::fs::create_dir_all(&directory).unwrap();
        let mut command = program(&directory, port, [instances[0].port, instances[1].port, nobody]);
        let mut proxy = Process::start(name, &mut command);
        eventually("the proxy leads to an instance", || {
            assert_eq!(proxy.ended(), None, "{}", proxy.output());
            http::try_get(port, "/ready").filter(|response| response.status == 200)
        });
        Self { _redis: redis, instances, _proxy: proxy, port }
    }

    /// A client through the proxy, and the instance that it came to.
    #[track_caller]
    fn connect(&self, headers: &[(&str, &str)]) -> (Client, String) {
        let mut client = Client::open(self.port, "/ws", headers).expect("the proxy leads to an instance");
        let instance = client.expect("connection_established")["instanceId"].as_str().unwrap().to_owned();
        (client, instance)
    }

    /// Connects until a client has come to `instance`.
    #[track_caller]
    fn connect_to(&self, instance: &str) -> Client {
        let mut others = Vec::new();
        eventually(&format!("a client comes to {instance}"), || {
            let (client, reached) = self.connect(&[]);
            if reached == instance {
                return Some(client);
            }
            others.push(client);
            None
        })
    }
}

fn with_ports(mut text: String, listen: (&str, String), instances: [u16; 3]) -> String {
    assert!(text.contains(listen.0), "{text}");
    text = text.replace(listen.0, &listen.1);
    for (place, port) in INSTANCES.iter().zip(instances) {
        text = text.replace(place, &format!("127.0.0.1:{port}"));
    }
    text
}

fn nginx_with(upstream: &str, directory: &Path, port: u16, instances: [u16; 3]) -> Command {
    let listen = ("listen 8080", format!("listen 127.0.0.1:{port}"));
    let mut text = with_ports(deploy("nginx/tableforge.conf"), listen, instances);
    // The paths of the package belong to root; a test may run as anyone.
    let kinds = ["client_body", "proxy", "fastcgi", "uwsgi", "scgi"];
    let places: String = kinds.map(|kind| format!("    {kind}_temp_path {kind};\n")).concat();
    text = text.replacen("http {\n", &format!("http {{\n{places}"), 1);
    std::fs::write(directory.join("nginx.conf"), text).unwrap();
    let backends = with_ports(deploy(upstream), ("upstream", "upstream".to_owned()), instances);
    std::fs::write(directory.join("tableforge-upstream.conf"), backends).unwrap();
    let mut command = Command::new(installed("nginx"));
    command.arg("-p").arg(directory).args(["-e", "stderr", "-c", "nginx.conf"]);
    command.args(["-g", "daemon off; master_process off; pid nginx.pid;"]);
    command
}

fn nginx(directory: &Path, port: u16, instances: [u16; 3]) -> Command {
    nginx_with("nginx/tableforge-upstream.conf", directory, port, instances)
}

fn nginx_sticky(directory: &Path, port: u16, instances: [u16; 3]) -> Command {
    nginx_with("nginx/tableforge-sticky.conf", directory, port, instances)
}

fn haproxy_with(file: &str, directory: &Path, port: u16, instances: [u16; 3]) -> Command {
    let text = with_ports(deploy(file), ("bind :8080", format!("bind 127.0.0.1:{port}")), instances);
    let path = directory.join("haproxy.cfg");
    // A test needs no hundred thousand descriptors.
    std::fs::write(&path, text.replace("maxconn 100000", "maxconn 200")).unwrap();
    let mut command = Command::new(installed("haproxy"));
    command.arg("-db").arg("-f").arg(path);
    command
}

fn haproxy(directory: &Path, port: u16, instances: [u16; 3]) -> Command {
    haproxy_with("haproxy/tableforge.cfg", directory, port, instances)
}

fn haproxy_sticky(directory: &Path, port: u16, instances: [u16; 3]) -> Command {
    haproxy_with("haproxy/tableforge-sticky.cfg", directory, port, instances)
}

/// Debian has servers where only root's PATH leads.
fn installed(program: &str) -> PathBuf {
    let place = Path::new("/usr/sbin").join(program);
    if place.exists() { place } else { PathBuf::from(program) }
}

/// Rooms work over instances, and a client whose instance goes away comes to another one.
fn rooms_cross_and_an_instance_goes(name: &str, program: Program) {
    let mut stage = Stage::new(name, program, [&[], &[]]);
    let (mut ann, mut bob) = (stage.connect_to("a"), stage.connect_to("b"));
    ann.join("r");
    bob.join("r");
    ann.say("r", "over the proxy");
    bob.expect_said("r", "over the proxy");
    bob.say("r", "and back");
    ann.expect_said("r", "and back");
    stage.instances[0].terminate();
    assert_eq!(ann.expect_close(), 1012, "the server's code comes through");
    let (mut ann, instance) = stage.connect(&[]);
    assert_eq!(instance, "b");
    ann.join("r");
    ann.say("r", "here again");
    bob.expect_said("r", "here again");
}

#[test]
fn nginx_leads_to_any_instance() {
    rooms_cross_and_an_instance_goes("nginx", nginx);
}

#[test]
fn haproxy_leads_to_any_instance() {
    rooms_cross_and_an_instance_goes("haproxy", haproxy);
}

#[test]
fn nginx_with_sticky_sessions_keeps_an_address_until_its_instance_goes() {
    let mut stage = Stage::new("nginx-sticky", nginx_sticky, [&[], &[]]);
    let (mut ann, first) = stage.connect(&[]);
    for _ in 0..5 {
        assert_eq!(stage.connect(&[]).1, first);
    }
    let at = usize::from(first == "b");
    stage.instances[at].terminate();
    assert_eq!(ann.expect_close(), 1012);
    let (mut ann, second) = stage.connect(&[]);
    assert_ne!(second, first);
    ann.join("r");
}

#[test]
fn haproxy_with_sticky_sessions_follows_the_cookie_until_its_instance_goes() {
    let mut stage = Stage::new("haproxy-sticky", haproxy_sticky, [&[], &[]]);
    let cookie = [("Cookie", "tableforge=tableforge-2")];
    let mut clients: Vec<_> = (0..5).map(|_| stage.connect(&cookie)).collect();
    assert!(clients.iter().all(|(_, instance)| instance == "b"));
    stage.instances[1].terminate();
    assert_eq!(clients[0].0.expect_close(), 1012);
    assert_eq!(stage.connect(&cookie).1, "a");
}

#[test]
fn a_full_instance_is_passed_over() {
    for (name, program) in [("nginx", nginx as Program), ("haproxy", haproxy)] {
        let stage = Stage::new(name, program, [&[("WS_MAX_CONNECTIONS", "1")], &[]]);
        let _only = Client::connect(&stage.instances[0]);
        let clients: Vec<_> = (0..6).map(|_| stage.connect(&[])).collect();
        assert!(clients.iter().all(|(_, instance)| instance == "b"), "{name}");
    }
}

#[test]
fn an_overloaded_instance_and_one_that_drains_are_passed_over() {
    let sticky = [("nginx-sticky", nginx_sticky as Program), ("haproxy-sticky", haproxy_sticky)];
    for (name, program) in [("nginx", nginx as Program), ("haproxy", haproxy)].into_iter().chain(sticky) {
        let small = [("WS_MAX_CONNECTIONS", "40"), ("OVERLOAD_CONNECTIONS", "50")];
        let mut stage = Stage::new(name, program, [&small, &[]]);
        let mut clients: Vec<_> = (0..20).map(|_| Client::connect(&stage.instances[0])).collect();
        eventually("it is overloaded", || {
            (http::get(stage.instances[0].port, "/ready").status == 503).then_some(())
        });
        let passed = |stage: &Stage| (0..6).all(|_| stage.connect(&[]).1 == "b");
        assert!(passed(&stage), "{name}");
        stage.instances[0].process.signal(Signal::TERM);
        clients[0].expect("server_draining");
        assert!(passed(&stage), "{name}");
        drop(clients);
        assert!(stage.instances[0].process.wait().success(), "{name}");
        assert!(passed(&stage), "{name}");
    }
}

#[test]
fn what_is_for_operators_stays_inside() {
    for (name, program) in [("nginx", nginx as Program), ("haproxy", haproxy)] {
        let stage = Stage::new(name, program, [&[], &[]]);
        for path in ["/metrics", "/stats", "/api/v1/instances"] {
            assert_eq!(http::get(stage.port, path).status, 404, "{name} {path}");
        }
        assert_eq!(http::get(stage.port, "/health").status, 200, "{name}");
    }
}

#[test]
fn silent_clients_are_the_servers_to_judge() {
    let default = |name| {
        let setting = tableforge::config::catalog::find(name).unwrap();
        setting.default.to_string().parse::<u64>().unwrap() / 1000
    };
    let ours = default("PING_INTERVAL") + default("PONG_TIMEOUT");
    for (file, key) in [
        ("nginx/tableforge.conf", "proxy_read_timeout"),
        ("nginx/tableforge.conf", "proxy_send_timeout"),
        ("haproxy/tableforge.cfg", "timeout tunnel"),
        ("haproxy/tableforge-sticky.cfg", "timeout tunnel"),
    ] {
        let text = deploy(file);
        let line = text.lines().map(str::trim).find(|line| line.starts_with(key)).expect(key);
        let seconds: u64 =
            line[key.len()..].trim().trim_end_matches(['s', ';']).parse().expect("a time in seconds");
        assert!(seconds > 2 * ours, "{file}: {line}, and the server looks every {ours} s");
    }
}
