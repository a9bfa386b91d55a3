//! Keys from files: one algorithm per key, chosen by the server and never by the token.

use jsonwebtoken::Algorithm;
use serde_json::json;

use crate::harness::client::Client;
use crate::harness::file::TempFile;
use crate::harness::process::Process;
use crate::harness::server::{Server, command};
use crate::harness::token::{self, KEY_PAIRS, KEY_SET, SECRET, seconds_from_now};
use crate::harness::{eventually, free_port};

/// The status with which `token` is refused, if it is.
fn refusal(server: &Server, token: &str) -> Option<u16> {
    Client::open(server.port, "/ws", &[("authorization", &format!("Bearer {token}"))]).err()
}

fn required(setting: &'static str, file: &TempFile) -> Server {
    Server::start(&[("AUTH_REQUIRED", "true"), (setting, file.path())])
}

#[test]
fn a_public_key_takes_the_tokens_of_its_own_algorithm_and_no_others() {
    for pair in &KEY_PAIRS {
        let file = TempFile::new(pair.public);
        let server = required("JWT_PUBLIC_KEY_FILE", &file);
        for other in &KEY_PAIRS {
            let expected = (other.algorithm != pair.algorithm).then_some(401);
            assert_eq!(refusal(&server, &other.token("ann", None)), expected, "{:?}", other.algorithm);
        }
        let claims = json!({"sub": "mallory", "exp": seconds_from_now(60)});
        for hmac in [Algorithm::HS256, Algorithm::HS384, Algorithm::HS512] {
            for secret in [pair.public, pair.public.trim_end(), SECRET] {
                let forged = token::sign(&claims, hmac, secret);
                assert_eq!(refusal(&server, &forged), Some(401), "the public key as a secret, {hmac:?}");
            }
        }
    }
}

#[test]
fn a_key_set_chooses_by_kid() {
    let file = TempFile::new(KEY_SET);
    let server = required("JWKS_FILE", &file);
    for pair in &KEY_PAIRS {
        assert_eq!(refusal(&server, &pair.token("ann", Some(pair.kid))), None, "{}", pair.kid);
        assert_eq!(refusal(&server, &pair.token("ann", None)), None, "{}", pair.kid);
        for kid in ["unknown", "../../dev/null", "", "rsa-1 "] {
            assert_eq!(refusal(&server, &pair.token("ann", Some(kid))), Some(401), "{kid:?}");
        }
    }
    assert_eq!(refusal(&server, &KEY_PAIRS[1].token("ann", Some("rsa-1"))), Some(401), "another key's kid");
}

#[test]
fn a_secret_is_for_the_one_algorithm_that_is_set() {
    let secret = SECRET.repeat(2);
    let claims = json!({"sub": "ann", "exp": seconds_from_now(60)});
    let all = [("HS256", Algorithm::HS256), ("HS384", Algorithm::HS384), ("HS512", Algorithm::HS512)];
    for (name, algorithm) in all {
        let settings = [("AUTH_REQUIRED", "true"), ("JWT_SECRET", secret.as_str()), ("JWT_ALGORITHM", name)];
        let server = Server::start(&settings);
        for (_, other) in all {
            let expected = (other != algorithm).then_some(401);
            assert_eq!(
                refusal(&server, &token::sign(&claims, other, &secret)),
                expected,
                "{other:?} at {name}"
            );
        }
    }
}

#[test]
fn keys_are_read_again_when_their_file_changes_and_kept_when_it_is_broken() {
    let [rsa, ec, _] = &KEY_PAIRS;
    let file = TempFile::new(rsa.public);
    let server = required("JWT_PUBLIC_KEY_FILE", &file);
    let mut ann = Client::connect_as(&server, &rsa.token("ann", None));
    file.replace(ec.public);
    eventually("the new key is in use", || refusal(&server, &ec.token("bob", None)).is_none().then_some(()));
    assert_eq!(refusal(&server, &rsa.token("bob", None)), Some(401), "the old key is gone");
    assert_eq!(ann.request(json!({"type": "ping"}))["type"], "pong", "who is in stays in");

    let complaints = |what: &str| server.process.output().matches(what).count();
    file.replace("no key at all");
    eventually("the broken file is told of", || (complaints("is not one public key") == 1).then_some(()));
    assert_eq!(refusal(&server, &ec.token("bob", None)), None, "the last good key stays");
    file.remove();
    eventually("the missing file is told of", || (complaints("cannot be read") == 1).then_some(()));
    assert_eq!(refusal(&server, &ec.token("bob", None)), None, "the last good key stays");
    file.replace(rsa.public);
    eventually("the third key is in use", || {
        refusal(&server, &rsa.token("bob", None)).is_none().then_some(())
    });
    assert_eq!((complaints("is not one public key"), complaints("cannot be read")), (1, 1), "each once");
}

#[test]
fn a_file_without_a_usable_key_is_no_start_and_is_named() {
    for (setting, text, reason) in [
        ("JWT_PUBLIC_KEY_FILE", KEY_PAIRS[0].private, "private key"),
        ("JWT_PUBLIC_KEY_FILE", include_str!("../harness/keys/rsa1024.public.pem"), "2048"),
        ("JWKS_FILE", "{\"keys\":[]}", "no usable key"),
        ("JWKS_FILE", KEY_PAIRS[0].public, "RFC 7517"),
    ] {
        let file = TempFile::new(text);
        let settings = [("AUTH_REQUIRED", "true"), (setting, file.path())];
        let mut process = Process::start("tableforge", &mut command("serve", free_port(), &settings));
        assert_eq!(process.wait().code(), Some(1));
        let output = process.output();
        let told = [setting, file.path(), reason].iter().all(|part| output.contains(part));
        assert!(told, "{output}");
    }
}
