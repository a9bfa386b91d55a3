//! The operations on the path of a message that the benchmarks measure, by their names.

mod codec;
mod command;
mod message;
mod receivers;
mod uplink;

/// Something that can be done again and again in a steady state.
pub trait Operation {
    /// Brings about the state in which [`Self::run`] is measured. Not measured.
    fn prepare(&mut self) {}

    /// What is measured.
    fn run(&mut self);

    /// Whether runs can follow each other without [`Self::prepare`].
    #[allow(dead_code, reason = "of interest to timing only: a clock per run would be part of the time")]
    fn is_repeatable(&self) -> bool {
        false
    }
}

/// An operation that needs no preparation.
impl<F: FnMut()> Operation for F {
    fn run(&mut self) {
        self();
    }

    fn is_repeatable(&self) -> bool {
        true
    }
}

/// An operation that can be measured.
pub struct Entry {
    /// `stage/what/variant`.
    pub name: String,
    /// How many times one run does what is counted: frames, events, receivers.
    pub units: u64,
    /// Makes it.
    pub build: Box<dyn Fn() -> Box<dyn Operation>>,
}

impl Entry {
    fn new<O: Operation + 'static>(
        name: impl Into<String>,
        units: usize,
        build: impl Fn() -> O + 'static,
    ) -> Self {
        Self { name: name.into(), units: units as u64, build: Box::new(move || Box::new(build())) }
    }
}

/// All operations, in the order in which a message meets them.
pub fn all() -> Vec<Entry> {
    [codec::entries(), command::entries(), receivers::entries(), uplink::entries(), message::entries()]
        .into_iter()
        .flatten()
        .collect()
}

/// A JSON object of `bytes` bytes, such as a game sends; `number` makes it differ from others.
fn json_object(bytes: usize, number: usize) -> String {
    let place = 100 + number % 900;
    let head = format!(r#"{{"kind":"move","piece":"knight","from":[6,{place}],"note":""#);
    let filling = bytes.checked_sub(head.len() + 2).expect("room for the fields");
    let words = "the quick brown fox jumps over the lazy dog ".chars().cycle().skip(number % 44);
    let object = head + &words.take(filling).collect::<String>() + "\"}";
    assert_eq!(object.len(), bytes);
    object
}
