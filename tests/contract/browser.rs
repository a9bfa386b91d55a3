//! The console page in a real browser: two pages at one table.

use serde_json::Value;

use crate::harness::process::Process;
use crate::harness::server::{Server, command};
use crate::harness::webdriver::Browser;
use crate::harness::{eventually, free_port, http};

/// WebDriver's code of the right arrow key.
const ARROW_RIGHT: &str = "\u{E014}";

/// `tableforge dev` on `port`, once it answers.
#[track_caller]
fn dev_server(port: u16) -> Process {
    let process = Process::start("tableforge dev", &mut command("dev", port, &[]));
    eventually("the page is there", || http::try_get(port, "/").filter(|response| response.status == 200));
    process
}

/// A browser at the table `room` as `name`.
#[track_caller]
fn sit_down(port: u16, name: &str, room: &str) -> Browser {
    let browser = Browser::start();
    browser.open(&format!("http://127.0.0.1:{port}/"));
    wait_for_state(&browser, "open");
    browser.fill("#name", name);
    browser.fill("#room", room);
    browser.click("#join");
    wait_for_state(&browser, "joined");
    browser
}

#[track_caller]
fn wait_for_state(browser: &Browser, state: &str) {
    let script = "return document.querySelector('#status').dataset.state";
    eventually(&format!("the page is {state}"), || (browser.run(script) == state).then_some(()));
}

#[track_caller]
fn wait_for_members(browser: &Browser, names: &[&str]) {
    let script = "return [...document.querySelectorAll('#members li .name')].map(e => e.textContent).sort()";
    let names: Value = names.to_vec().into();
    eventually(&format!("the list shows {names}"), || (browser.run(script) == names).then_some(()));
}

#[track_caller]
fn wait_for_chat(browser: &Browser, text: &str) {
    let script = "return document.querySelector('#chat-log').innerText";
    eventually(&format!("the chat shows {text}"), || {
        browser.run(script).as_str().is_some_and(|log| log.contains(text)).then_some(())
    });
}

#[track_caller]
fn say(browser: &Browser, text: &str) {
    browser.fill("#chat-input", text);
    browser.click("#send");
}

/// Where a page shows the first token: its place on the table.
fn token_place(browser: &Browser) -> Value {
    browser.run("const t = document.querySelector('#table .token'); return [t.dataset.x, t.dataset.y]")
}

#[test]
fn two_pages_see_each_other_chat_and_move_tokens() {
    let port = free_port();
    let _server = dev_server(port);
    let ann = sit_down(port, "Ann", "tavern");
    wait_for_members(&ann, &["Ann"]);
    ann.press("#table .token", ARROW_RIGHT);
    let bob = sit_down(port, "Bob <b>", "tavern");
    wait_for_members(&ann, &["Ann", "Bob <b>"]);
    wait_for_members(&bob, &["Ann", "Bob <b>"]);

    eventually("who comes later gets the table as it is", || {
        (token_place(&ann) == token_place(&bob)).then_some(())
    });
    say(&ann, "hello <i>Bob</i> 🎲");
    wait_for_chat(&bob, "hello <i>Bob</i> 🎲");
    say(&bob, "hello Ann");
    wait_for_chat(&ann, "hello Ann");
    wait_for_chat(&ann, "Bob <b>");

    let before = token_place(&bob);
    ann.drag("#table .token", (120, 80));
    eventually("the token moves in the other page", || (token_place(&bob) != before).then_some(()));
    eventually("and comes to rest in the same place", || {
        (token_place(&ann) == token_place(&bob)).then_some(())
    });
    let before = token_place(&ann);
    bob.press("#table .token", ARROW_RIGHT);
    eventually("by keyboard and the other way too", || (token_place(&ann) != before).then_some(()));

    drop(bob);
    wait_for_members(&ann, &["Ann"]);
}

#[test]
fn pages_in_different_rooms_are_apart() {
    let port = free_port();
    let _server = dev_server(port);
    let ann = sit_down(port, "Ann", "tavern");
    let bob = sit_down(port, "Bob", "cellar");
    say(&ann, "in the tavern");
    wait_for_chat(&ann, "in the tavern");
    wait_for_members(&bob, &["Bob"]);
    bob.fill("#room", "tavern");
    bob.click("#join");
    wait_for_members(&bob, &["Ann", "Bob"]);
    say(&ann, "welcome up");
    wait_for_chat(&bob, "welcome up");
    let log = bob.run("return document.querySelector('#chat-log').innerText");
    assert!(!log.as_str().expect("text").contains("in the tavern"), "{log}");
}

#[test]
fn a_page_reconnects_by_itself_and_is_in_its_room_again() {
    let port = free_port();
    let mut server = dev_server(port);
    let ann = sit_down(port, "Ann", "tavern");
    let bob = sit_down(port, "Bob", "tavern");
    wait_for_members(&ann, &["Ann", "Bob"]);
    server.kill();
    wait_for_state(&ann, "waiting");
    let _server = dev_server(port);
    for page in [&ann, &bob] {
        wait_for_state(page, "joined");
        wait_for_members(page, &["Ann", "Bob"]);
    }
    say(&ann, "back again");
    wait_for_chat(&bob, "back again");
}

#[test]
fn a_page_without_errors_fits_a_phone() {
    let port = free_port();
    let _server = dev_server(port);
    let ann = sit_down(port, "Ann", "tavern");
    let too_wide = ann.run(
        "const f = document.createElement('iframe'); f.style.width = '360px'; f.src = '/'; document.body.append(f);
         return new Promise(done => f.onload = () => {
             const page = f.contentDocument.documentElement; done(page.scrollWidth - page.clientWidth); });",
    );
    assert_eq!(too_wide, 0, "pixels to scroll sideways at a width of 360");
    let unlabelled = ann.run(
        "return [...document.querySelectorAll('input, button')].filter(e =>
             !(e.labels?.length || e.getAttribute('aria-label') || e.textContent.trim())).map(e => e.outerHTML)",
    );
    assert_eq!(unlabelled, Value::Array(vec![]), "every control has a name");
}

#[test]
fn serve_shows_no_console_page() {
    let server = Server::start(&[]);
    assert_eq!(http::get(server.port, "/").status, 404);
}
