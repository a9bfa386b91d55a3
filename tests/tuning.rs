//! tuning/check, apply and undo against a made-up root: what they show, change and restore.

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::process::Command;

/// What a machine of eight CPUs with one network card has before anyone tunes it.
const BEFORE: [(&str, &str); 20] = [
    ("proc/meminfo", "MemTotal:        8000000 kB\n"),
    ("proc/sys/kernel/random/boot_id", "first\n"),
    ("proc/sys/kernel/numa_balancing", "1\n"),
    ("proc/sys/fs/file-max", "9223372036854775807\n"),
    ("proc/sys/net/core/somaxconn", "128\n"),
    ("proc/sys/net/core/wmem_max", "212992\n"),
    ("proc/sys/net/ipv4/ip_local_port_range", "32768\t60999\n"),
    ("proc/sys/net/ipv4/tcp_mem", "9000\t12000\t18000\n"),
    ("proc/sys/net/ipv4/tcp_rmem", "4096\t131072\t33554432\n"),
    ("proc/irq/24/smp_affinity_list", "0-7\n"),
    ("proc/irq/25/smp_affinity_list", "0-7\n"),
    ("sys/devices/system/cpu/online", "0-7\n"),
    ("sys/devices/system/cpu/cpu0/cpufreq/scaling_governor", "powersave\n"),
    ("sys/devices/system/cpu/cpu1/cpufreq/scaling_governor", "schedutil\n"),
    ("sys/class/net/eth0/device/msi_irqs/24", "msix\n"),
    ("sys/class/net/eth0/queues/rx-0/rps_cpus", "00\n"),
    ("sys/class/net/eth0/queues/tx-0/xps_cpus", "00\n"),
    ("sys/class/net/eth0/queues/tx-1/xps_cpus", "00\n"),
    ("sys/class/net/lo/queues/rx-0/rps_cpus", "00\n"),
    ("sys/fs/cgroup/user.slice/cpuset.cpus", "\n"),
];

struct Machine(PathBuf);

impl Machine {
    fn new(name: &str) -> Self {
        let root = Path::new(env!("CARGO_TARGET_TMPDIR")).join(format!("tuning-{name}"));
        let _ = fs::remove_dir_all(&root);
        for directory in ["etc/security/limits.d", "var/lib/tableforge"] {
            fs::create_dir_all(root.join(directory)).unwrap();
        }
        let machine = Self(root);
        for (file, content) in BEFORE {
            machine.write(file, content);
        }
        machine
    }

    fn write(&self, file: &str, content: &str) {
        let path = self.0.join(file);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, content).unwrap();
    }

    fn read(&self, file: &str) -> String {
        fs::read_to_string(self.0.join(file)).unwrap()
    }

    /// Makes a file one that can be read and not be written, not even by root.
    fn refuse_writes(&self, file: &str) {
        fs::remove_file(self.0.join(file)).unwrap();
        symlink("/proc/version", self.0.join(file)).unwrap();
    }

    /// Every file below the root and its content.
    fn content(&self) -> BTreeMap<PathBuf, Vec<u8>> {
        let (mut found, mut directories) = (BTreeMap::new(), vec![self.0.clone()]);
        while let Some(directory) = directories.pop() {
            for entry in fs::read_dir(directory).unwrap().map(|entry| entry.unwrap().path()) {
                if entry.is_dir() {
                    directories.push(entry);
                } else {
                    let content = fs::read(&entry).unwrap();
                    found.insert(entry, content);
                }
            }
        }
        found
    }

    /// Runs a script; its exit code and what it printed, errors included.
    fn run(&self, script: &str, args: &[&str], shard_cpus: &str) -> (i32, String) {
        let output = Command::new(Path::new(env!("CARGO_MANIFEST_DIR")).join("tuning").join(script))
            .args(args)
            .env("TABLEFORGE_TUNING_ROOT", &self.0)
            .env("TABLEFORGE_SHARD_CPUS", shard_cpus)
            .output()
            .expect("the script runs");
        let text = [output.stdout, output.stderr].concat();
        (output.status.code().unwrap(), String::from_utf8(text).unwrap())
    }

    #[track_caller]
    fn expect(&self, script: &str, args: &[&str], code: i32) -> String {
        let (got, text) = self.run(script, args, "");
        assert_eq!(got, code, "{script} {args:?}: {text}");
        text
    }
}

impl Drop for Machine {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}

#[test]
fn check_shows_current_wanted_and_why_and_changes_nothing() {
    let machine = Machine::new("check");
    let before = machine.content();
    let text = machine.expect("check", &[], 1);
    let line = text.lines().find(|line| line.contains("somaxconn")).unwrap();
    assert!(line.starts_with('!') && line.contains(" 128 ") && line.contains(" 4096 "), "{line}");
    assert!(line.ends_with("the shards ask for 4,096"), "{line}");
    let met = text.lines().find(|line| line.contains("file-max")).unwrap();
    assert!(met.starts_with(' '), "{met}");
    assert!(!text.contains("/lo/"), "loopback is no hardware: {text}");
    assert_eq!(machine.content(), before);
}

#[test]
fn apply_wants_to_be_told_what() {
    let machine = Machine::new("asked");
    let before = machine.content();
    assert!(machine.expect("apply", &[], 2).contains("sysctl"));
    assert!(machine.expect("apply", &["sysctls"], 2).contains("no subject 'sysctls'"));
    assert_eq!(machine.content(), before);
    machine.expect("apply", &["backlog"], 0);
    assert_eq!(machine.read("proc/sys/net/core/somaxconn"), "4096\n");
    assert_eq!(machine.read("proc/sys/kernel/numa_balancing"), "1\n", "another subject");
}

#[test]
fn undo_restores_every_byte() {
    let machine = Machine::new("undo");
    let before = machine.content();
    machine.expect("apply", &["all"], 0);
    for (file, content) in [
        ("proc/sys/net/ipv4/ip_local_port_range", "10240 65535\n"),
        ("proc/sys/net/ipv4/tcp_mem", "125000 250000 500000\n"),
        ("proc/irq/24/smp_affinity_list", "0-1\n"),
        ("proc/irq/25/smp_affinity_list", "0-7\n"),
        ("sys/devices/system/cpu/cpu1/cpufreq/scaling_governor", "performance\n"),
        ("sys/class/net/eth0/queues/rx-0/rps_cpus", "3\n"),
        ("sys/class/net/eth0/queues/tx-1/xps_cpus", "aa\n"),
        ("sys/class/net/lo/queues/rx-0/rps_cpus", "00\n"),
        ("sys/fs/cgroup/user.slice/cpuset.cpus", "0-1\n"),
        ("etc/security/limits.d/90-tableforge.conf", "* - nofile 1048576\n* - memlock 65536\n"),
    ] {
        assert_eq!(machine.read(file), content, "{file}");
    }
    assert!(machine.expect("check", &[], 0).contains("everything is as wanted"));
    machine.expect("undo", &[], 0);
    assert_eq!(machine.content(), before);
    assert!(machine.expect("undo", &[], 0).contains("nothing is applied"));
}

#[test]
fn applying_twice_changes_nothing_and_keeps_what_was_there_first() {
    let machine = Machine::new("twice");
    let before = machine.content();
    machine.expect("apply", &["ports", "governor"], 0);
    let applied = machine.content();
    assert!(machine.expect("apply", &["ports", "governor"], 0).contains("0 changed"));
    assert_eq!(machine.content(), applied);
    machine.write("proc/sys/net/ipv4/ip_local_port_range", "40000 50000\n");
    machine.expect("apply", &["ports"], 0);
    machine.expect("undo", &[], 0);
    assert_eq!(machine.content(), before);
}

#[test]
fn what_is_better_already_stays() {
    let machine = Machine::new("better");
    machine.expect("apply", &["memory", "files"], 0);
    assert_eq!(machine.read("proc/sys/net/ipv4/tcp_rmem"), "4096\t131072\t33554432\n");
    assert_eq!(machine.read("proc/sys/fs/file-max"), "9223372036854775807\n");
}

#[test]
fn what_cannot_be_set_is_told_and_the_rest_is_applied_and_restored() {
    let machine = Machine::new("partial");
    machine.refuse_writes("proc/sys/net/core/somaxconn");
    let before = machine.content();
    let text = machine.expect("apply", &["all"], 1);
    assert!(text.contains("somaxconn cannot be set") && text.contains("1 failed"), "{text}");
    assert_eq!(machine.read("proc/sys/net/ipv4/ip_local_port_range"), "10240 65535\n");
    machine.expect("undo", &[], 0);
    assert_eq!(machine.content(), before);
}

#[test]
fn what_cannot_be_restored_is_kept_for_another_try() {
    let machine = Machine::new("stuck");
    let before = machine.content();
    machine.expect("apply", &["backlog", "ports"], 0);
    machine.refuse_writes("proc/sys/net/core/somaxconn");
    let text = machine.expect("undo", &[], 1);
    assert!(text.contains("somaxconn cannot be restored") && text.contains("1 restored, 1 failed"), "{text}");
    fs::remove_file(machine.0.join("proc/sys/net/core/somaxconn")).unwrap();
    machine.write("proc/sys/net/core/somaxconn", "4096\n");
    machine.expect("undo", &[], 0);
    assert_eq!(machine.content(), before);
}

#[test]
fn a_restart_of_the_machine_undoes_the_kernels_settings_by_itself() {
    let machine = Machine::new("boot");
    machine.expect("apply", &["backlog", "files"], 0);
    machine.write("proc/sys/kernel/random/boot_id", "second\n");
    machine.write("proc/sys/net/core/somaxconn", "1024\n");
    machine.expect("undo", &[], 0);
    assert_eq!(machine.read("proc/sys/net/core/somaxconn"), "1024\n", "it is not what was applied");
    assert!(!machine.0.join("etc/security/limits.d/90-tableforge.conf").exists(), "files outlast a restart");
}

#[test]
fn shard_cpus_can_be_named_and_have_to_leave_one() {
    let machine = Machine::new("cpus");
    assert_eq!(machine.run("apply", &["steering"], "4-7").0, 0);
    assert_eq!(machine.read("sys/class/net/eth0/queues/rx-0/rps_cpus"), "f\n");
    for wrong in ["0-7", "x", "1-"] {
        let (code, text) = machine.run("check", &[], wrong);
        assert!(code == 2 && text.contains("TABLEFORGE_SHARD_CPUS"), "{wrong}: {code} {text}");
    }
    machine.write("sys/devices/system/cpu/online", "0-1\n");
    assert!(!machine.run("check", &[], "").1.contains("rps_cpus"), "two CPUs are the shards' and everyone's");
}

#[test]
fn the_doctor_sees_what_check_sees() {
    let machine = Machine::new("doctor");
    for shard_cpus in ["", "4-7", "1,3"] {
        let (_, text) = machine.run("check", &["--tsv"], shard_cpus);
        let mut checked: Vec<_> = text.lines().map(|line| line.split('\t').collect::<Vec<_>>()).collect();
        let output = Command::new(env!("CARGO_BIN_EXE_tableforge"))
            .args(["doctor", "--json", "--auth-required", "false", "--ws-port", "0"])
            .env("TABLEFORGE_TUNING_ROOT", &machine.0)
            .env("TABLEFORGE_SHARD_CPUS", shard_cpus)
            .output()
            .unwrap();
        let said: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
        let text = |row: &serde_json::Value, name: &str| row[name].as_str().unwrap().to_owned();
        let mut seen: Vec<Vec<String>> = said["tuning"]
            .as_array()
            .unwrap()
            .iter()
            .map(|row| {
                let mark = if row["met"] == true { "met" } else { "unmet" };
                let file = text(row, "file").trim_start_matches('/').to_owned();
                let rest = ["current", "wanted", "why"].map(|name| text(row, name));
                [&[mark.to_owned(), text(row, "subject"), file][..], &rest].concat()
            })
            .collect();
        checked.sort();
        seen.sort();
        // The script shows line ends of a text as semicolons.
        let seen: Vec<Vec<_>> = seen
            .iter()
            .map(|row| row.iter().map(|field| field.replace("1048576 * - mem", "1048576; * - mem")).collect())
            .collect();
        assert_eq!(seen, checked, "shards on {shard_cpus:?}");
        assert!(checked.len() > 10);
    }
}
