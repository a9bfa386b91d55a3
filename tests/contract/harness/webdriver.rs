//! A headless Chromium, driven through chromedriver by the WebDriver protocol (W3C WebDriver).

use std::os::unix::process::CommandExt;
use std::path::PathBuf;
use std::process::Command;
use std::sync::atomic::{AtomicU32, Ordering::Relaxed};

use serde_json::{Value, json};

use super::process::Process;
use super::{eventually, free_port, http};

/// The key under which WebDriver names elements.
const ELEMENT: &str = "element-6066-11e4-a52e-4f735466cecf";

/// A browser with one window. Dropping it ends browser and driver, and removes the profile.
pub struct Browser {
    port: u16,
    session: String,
    profile: PathBuf,
    _driver: Process,
}

impl Browser {
    /// Starts a browser with a fresh profile.
    #[track_caller]
    pub fn start() -> Self {
        static STARTED: AtomicU32 = AtomicU32::new(0);
        let number = STARTED.fetch_add(1, Relaxed);
        let name = format!("chromium-{}-{number}", std::process::id());
        let profile = PathBuf::from(env!("CARGO_TARGET_TMPDIR")).join(name);
        let port = free_port();
        let mut command = Command::new("chromedriver");
        command.arg(format!("--port={port}")).env("TMPDIR", env!("CARGO_TARGET_TMPDIR")).process_group(0);
        let driver = Process::start("chromedriver", &mut command);
        eventually("chromedriver is ready", || {
            http::try_get(port, "/status").filter(|answer| answer.body.contains("\"ready\":true"))
        });
        let mut browser = Self { port, session: String::new(), profile, _driver: driver };
        let args = [
            "--headless=new",
            "--no-sandbox",
            "--disable-gpu",
            "--disable-dev-shm-usage",
            "--disable-quic",
            "--no-first-run",
            "--disable-background-networking",
            "--disable-component-update",
            "--disable-sync",
            "--window-size=1100,900",
            &format!("--user-data-dir={}", browser.profile.display()),
        ];
        let options = json!({"goog:chromeOptions": {"args": args}});
        let session = browser.call("POST", "/session", &json!({"capabilities": {"alwaysMatch": options}}));
        session["sessionId"].as_str().expect("a session").clone_into(&mut browser.session);
        browser
    }

    /// Goes to `url` and waits until the page has loaded.
    #[track_caller]
    pub fn open(&self, url: &str) {
        self.in_session("POST", "/url", &json!({"url": url}));
    }

    /// The value that the JavaScript function body `script` returns.
    #[track_caller]
    pub fn run(&self, script: &str) -> Value {
        self.in_session("POST", "/execute/sync", &json!({"script": script, "args": []}))
    }

    /// Types `text` into the element that `selector` finds, in the place of what it holds.
    #[track_caller]
    pub fn fill(&self, selector: &str, text: &str) {
        let element = self.find(selector);
        self.in_session("POST", &format!("/element/{element}/clear"), &json!({}));
        self.in_session("POST", &format!("/element/{element}/value"), &json!({"text": text}));
    }

    /// Sends `keys` (WebDriver key codes) to the element that `selector` finds.
    #[track_caller]
    pub fn press(&self, selector: &str, keys: &str) {
        let element = self.find(selector);
        self.in_session("POST", &format!("/element/{element}/value"), &json!({"text": keys}));
    }

    /// Clicks the element that `selector` finds.
    #[track_caller]
    pub fn click(&self, selector: &str) {
        let element = self.find(selector);
        self.in_session("POST", &format!("/element/{element}/click"), &json!({}));
    }

    /// Drags the element that `selector` finds by so many pixels, in several steps.
    #[track_caller]
    pub fn drag(&self, selector: &str, by: (i32, i32)) {
        let origin = json!({ELEMENT: self.find(selector)});
        let step = |x: i32, y: i32| json!({"type": "pointerMove", "duration": 50, "origin": "pointer", "x": x, "y": y});
        let actions = json!([
            {"type": "pointerMove", "duration": 0, "origin": origin, "x": 0, "y": 0},
            {"type": "pointerDown", "button": 0},
            step(by.0 / 4, by.1 / 4),
            step(by.0 / 2, by.1 / 2),
            step(by.0 - by.0 / 4 - by.0 / 2, by.1 - by.1 / 4 - by.1 / 2),
            {"type": "pointerUp", "button": 0},
        ]);
        let mouse = json!({"type": "pointer", "id": "mouse", "parameters": {"pointerType": "mouse"}, "actions": actions});
        self.in_session("POST", "/actions", &json!({"actions": [mouse]}));
    }

    #[track_caller]
    fn find(&self, selector: &str) -> String {
        let found = self.in_session("POST", "/element", &json!({"using": "css selector", "value": selector}));
        found[ELEMENT].as_str().unwrap_or_else(|| panic!("{selector}: {found}")).to_owned()
    }

    #[track_caller]
    fn in_session(&self, method: &str, path: &str, body: &Value) -> Value {
        self.call(method, &format!("/session/{}{path}", self.session), body)
    }

    #[track_caller]
    fn call(&self, method: &str, path: &str, body: &Value) -> Value {
        let body = if body.is_null() { String::new() } else { body.to_string() };
        let answer = http::send_json(self.port, method, path, &body).expect("chromedriver answers");
        assert_eq!(answer.status, 200, "{method} {path}: {}", answer.body);
        let mut answer: Value = serde_json::from_str(&answer.body).expect("chromedriver answers in JSON");
        answer["value"].take()
    }
}

impl Drop for Browser {
    fn drop(&mut self) {
        if !self.session.is_empty() {
            // Ends the browser; the driver is killed next, whatever this says.
            let _ = http::send_json(self.port, "DELETE", &format!("/session/{}", self.session), "");
        }
        let _ = std::fs::remove_dir_all(&self.profile);
    }
}
