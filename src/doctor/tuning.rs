//! How the machine is set up, held against tuning/settings.tsv by the same rules as tuning/check.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};

use serde::Serialize;

/// What is wanted; its first lines say what the fields mean.
const TABLE: &str = include_str!("../../tuning/settings.tsv");

/// One setting of the machine.
#[derive(Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
pub struct Tuned {
    /// Whether it is as wanted.
    pub met: bool,
    /// The subject, as tuning/apply takes it.
    pub subject: &'static str,
    /// The file, from the root.
    pub file: String,
    /// What it holds; `none` if it is not there.
    pub current: String,
    /// What it should hold.
    pub wanted: String,
    /// The reason.
    pub why: &'static str,
}

type Cpus = BTreeSet<usize>;

/// Every setting that the table means on the machine whose files are below `root`. `shard_cpus` is a list such as
/// `2-7`; without one, shards have all but the first quarter of the CPUs, or none of fewer than four.
///
/// # Errors
/// When `shard_cpus` is no such list, or leaves no CPU for everything else.
pub fn settings(root: &Path, shard_cpus: Option<&str>) -> Result<Vec<Tuned>, String> {
    let machine = Machine::new(root, shard_cpus)?;
    let mut found = Vec::new();
    for line in TABLE.lines().filter(|line| !line.starts_with('#')) {
        let mut fields = line.split('\t');
        let [Some(subject), Some(pattern), Some(rule), Some(wanted), Some(why)] =
            std::array::from_fn(|_| fields.next())
        else {
            return Err(format!("tuning/settings.tsv: a line without five fields: {line}"));
        };
        if !machine.has_shard_cpus && matches!(subject, "steering" | "isolation") {
            continue;
        }
        for file in machine.files(pattern) {
            // A file that cannot be read belongs to something that this machine does not offer.
            let Some(current) = machine.content(&file) else { continue };
            let wanted = machine.wanted(&file, rule, wanted);
            let met = is_met(rule, &current, &wanted);
            found.push(Tuned { met, subject, file: format!("/{file}"), current, wanted, why });
        }
    }
    Ok(found)
}

/// The machine that is looked at.
struct Machine<'a> {
    root: &'a Path,
    all: Vec<usize>,
    network: Cpus,
    has_shard_cpus: bool,
}

impl<'a> Machine<'a> {
    fn new(root: &'a Path, shard_cpus: Option<&str>) -> Result<Self, String> {
        let online = fs::read_to_string(root.join("sys/devices/system/cpu/online")).unwrap_or_default();
        let online = online.trim();
        let all: Vec<_> =
            parse_list(online).filter(|all| !all.is_empty()).unwrap_or([0].into()).into_iter().collect();
        let shards = match shard_cpus {
            Some(list) => parse_list(list).ok_or_else(|| {
                format!("TABLEFORGE_SHARD_CPUS: {list:?} is not a list of CPUs such as 2-7 or 1,3")
            })?,
            None if all.len() >= 4 => all[all.len() / 4..].iter().copied().collect(),
            None => Cpus::new(),
        };
        let network: Cpus = all.iter().copied().filter(|cpu| !shards.contains(cpu)).collect();
        if network.is_empty() {
            let list = shard_cpus.unwrap_or_default();
            return Err(format!(
                "TABLEFORGE_SHARD_CPUS: {list:?} leaves no CPU for everything else; there are {online}"
            ));
        }
        Ok(Self { root, all, network, has_shard_cpus: !shards.is_empty() })
    }

    /// The network devices that are hardware, as paths below the root.
    fn hardware(&self) -> Vec<String> {
        let mut found = expand(self.root, "sys/class/net/*");
        found.retain(|device| self.root.join(device).join("device").exists());
        found
    }

    /// The files that a pattern of the table means, as paths below the root.
    fn files(&self, pattern: &str) -> Vec<String> {
        if let Some((_, rest)) = pattern.split_once("{nic}") {
            self.hardware().iter().flat_map(|device| expand(self.root, &format!("{device}{rest}"))).collect()
        } else if let Some((start, rest)) = pattern.split_once("{irq}") {
            let mut numbers = BTreeSet::new();
            for device in self.hardware() {
                // The interrupts of a virtio device are its parent's.
                for place in ["device/msi_irqs", "device/../msi_irqs"] {
                    numbers.extend(names(&self.root.join(&device).join(place)));
                }
            }
            let files = numbers.iter().map(|number| format!("{start}{number}{rest}"));
            files.filter(|file| self.root.join(file).exists()).collect()
        } else if pattern.starts_with("etc/") {
            vec![pattern.to_owned()]
        } else {
            expand(self.root, pattern)
        }
    }

    /// A file's words with one space between; `None` if it cannot be read.
    fn content(&self, file: &str) -> Option<String> {
        let path = self.root.join(file);
        if !path.exists() {
            return Some("none".to_owned());
        }
        Some(words(&fs::read_to_string(path).ok()?))
    }

    /// The value that a file should have.
    fn wanted(&self, file: &str, rule: &str, wanted: &str) -> String {
        match wanted {
            "{network}" if rule == "mask" => mask(&self.network),
            "{network}" => list(&self.network),
            "{queue}" => mask(&self.cpus_of_queue(file)),
            _ if wanted.contains("{memory/") => {
                let pages = memory_kib(self.root, "MemTotal").unwrap_or(0) / 4;
                [16, 8, 4].iter().fold(wanted.to_owned(), |text, part| {
                    text.replace(&format!("{{memory/{part}}}"), &(pages / part).to_string())
                })
            }
            _ => words(&wanted.replace("\\n", "\n")),
        }
    }

    /// The CPUs that should send through the queue of a file `…/tx-N/xps_cpus`.
    fn cpus_of_queue(&self, file: &str) -> Cpus {
        let Some((queues, rest)) = file.split_once("/tx-") else { return Cpus::new() };
        let number: usize = rest.split('/').next().and_then(|number| number.parse().ok()).unwrap_or(0);
        let count = expand(self.root, &format!("{queues}/tx-*")).len().max(1);
        self.all.iter().copied().skip(number).step_by(count).collect()
    }
}

/// A line of meminfo, in KiB.
pub fn memory_kib(root: &Path, name: &str) -> Option<u64> {
    let text = fs::read_to_string(root.join("proc/meminfo")).ok()?;
    let line = text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':'))?;
    line.split_whitespace().next()?.parse().ok()
}

fn words(text: &str) -> String {
    text.split_whitespace().collect::<Vec<_>>().join(" ")
}

fn names(directory: &Path) -> Vec<String> {
    let entries = fs::read_dir(directory).into_iter().flatten().flatten();
    let mut names: Vec<_> = entries.filter_map(|entry| entry.file_name().into_string().ok()).collect();
    names.sort();
    names
}

/// The paths below `root` that match, where `*` stands for any part of a name.
fn expand(root: &Path, pattern: &str) -> Vec<String> {
    let mut paths = vec![PathBuf::new()];
    for part in pattern.split('/') {
        paths = match part.split_once('*') {
            None => paths.into_iter().map(|path| path.join(part)).collect(),
            Some((start, end)) => paths
                .into_iter()
                .flat_map(|path| {
                    let names = names(&root.join(&path)).into_iter();
                    let fits = |name: &String| name.starts_with(start) && name.ends_with(end);
                    names.filter(fits).map(|name| path.join(name)).collect::<Vec<_>>()
                })
                .collect(),
        };
    }
    let found = paths.into_iter().filter(|path| root.join(path).exists());
    found.filter_map(|path| path.into_os_string().into_string().ok()).collect()
}

/// The CPUs of a list such as `0-2,5`.
fn parse_list(text: &str) -> Option<Cpus> {
    let mut cpus = Cpus::new();
    for part in text.trim().split(',').filter(|part| !part.is_empty()) {
        let (first, last) = part.split_once('-').unwrap_or((part, part));
        cpus.extend(first.parse::<usize>().ok()?..=last.parse().ok()?);
    }
    Some(cpus)
}

fn list(cpus: &Cpus) -> String {
    let mut ranges: Vec<(usize, usize)> = Vec::new();
    for cpu in cpus {
        match ranges.last_mut() {
            Some((_, last)) if *last + 1 == *cpu => *last = *cpu,
            _ => ranges.push((*cpu, *cpu)),
        }
    }
    let text = |(first, last): &(usize, usize)| {
        if first == last { first.to_string() } else { format!("{first}-{last}") }
    };
    ranges.iter().map(text).collect::<Vec<_>>().join(",")
}

/// The CPUs as 32-bit words in hexadecimal, the highest first.
fn mask(cpus: &Cpus) -> String {
    let mut words = vec![0_u32; cpus.last().map_or(1, |last| last / 32 + 1)];
    for cpu in cpus {
        words[cpu / 32] |= 1 << (cpu % 32);
    }
    let mut text = format!("{:x}", words.pop().unwrap_or(0));
    words.iter().rev().for_each(|word| text.push_str(&format!(",{word:08x}")));
    text
}

fn is_met(rule: &str, current: &str, wanted: &str) -> bool {
    let number = |text: &str| text.parse::<f64>().unwrap_or(0.0);
    let mut pairs = wanted.split(' ').enumerate().map(|(at, wanted)| {
        let current = current.split(' ').nth(at).unwrap_or_default();
        (at, number(current), number(wanted))
    });
    match rule {
        "least" => pairs.all(|(_, current, wanted)| current >= wanted),
        "range" => pairs.all(|(at, now, wanted)| if at == 0 { now <= wanted } else { now >= wanted }),
        "list" => parse_list(current).is_some_and(|cpus| list(&cpus) == wanted),
        "mask" => bare(current) == bare(wanted),
        _ => current == wanted,
    }
}

/// A mask without commas and leading zeros.
fn bare(mask: &str) -> String {
    let text = mask.replace(',', "");
    let trimmed = text.trim_start_matches('0');
    if trimmed.is_empty() { "0".to_owned() } else { trimmed.to_owned() }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sets_of_cpus_are_written_as_the_kernel_does() {
        let cpus = parse_list("0-2,5,40").unwrap();
        assert_eq!(list(&cpus), "0-2,5,40");
        assert_eq!(mask(&cpus), "100,00000027");
        assert_eq!(bare("00000000,0000000f"), "f");
        assert_eq!(parse_list("3-x"), None);
    }

    #[test]
    fn what_is_better_than_wanted_is_met() {
        assert!(is_met("least", "4096 200000 99999999", "4096 16384 4194304"));
        assert!(!is_met("least", "4096 16384 100", "4096 16384 4194304"));
        assert!(
            is_met("range", "1024 65535", "10240 65535") && !is_met("range", "32768 60999", "10240 65535")
        );
        assert!(!is_met("least", "none", "1") && is_met("least", "9223372036854775807", "2097152"));
    }
}
