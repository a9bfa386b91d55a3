//! Keys from text: what is taken, what it is for, and what is refused.

use jsonwebtoken::{EncodingKey, Header};
use serde_json::json;

use super::*;

macro_rules! fixture {
    ($name:literal) => {
        include_str!(concat!("../../../tests/contract/harness/keys/", $name))
    };
}

const RSA: &str = fixture!("rsa.public.pem");
const EC: &str = fixture!("ec.public.pem");
const ED: &str = fixture!("ed.public.pem");
const SET: &str = fixture!("set.json");

fn entries() -> Vec<Value> {
    serde_json::from_str::<Value>(SET).unwrap()["keys"].as_array().unwrap().clone()
}

fn set(keys: &[Value]) -> Result<KeySet, KeyError> {
    KeySet::from_jwks(&json!({ "keys": keys }).to_string())
}

/// Whether `keys` verify a token that is signed with a private key and has that `kid`.
fn verifies(keys: &KeySet, algorithm: Algorithm, kid: Option<&str>) -> bool {
    let signing = match algorithm {
        Algorithm::RS256 => EncodingKey::from_rsa_pem(fixture!("rsa.private.pem").as_bytes()),
        Algorithm::ES256 => EncodingKey::from_ec_pem(fixture!("ec.private.pem").as_bytes()),
        _ => EncodingKey::from_ed_pem(fixture!("ed.private.pem").as_bytes()),
    };
    let header = Header { kid: kid.map(Into::into), ..Header::new(algorithm) };
    let token = jsonwebtoken::encode(&header, &json!({}), &signing.unwrap()).unwrap();
    keys.choose(algorithm, kid)
        .is_ok_and(|key| jsonwebtoken::decode::<Value>(&token, &key.decoding, &key.signature_only).is_ok())
}

const PUBLIC: [Algorithm; 3] = [Algorithm::RS256, Algorithm::ES256, Algorithm::EdDSA];

#[test]
fn a_pem_file_is_for_the_one_algorithm_of_its_kind() {
    for (pem, algorithm) in [RSA, EC, ED].into_iter().zip(PUBLIC) {
        let keys = KeySet::from_pem(pem).unwrap();
        for other in PUBLIC {
            assert_eq!(verifies(&keys, other, None), other == algorithm, "{other:?} with {algorithm:?}");
        }
        for hmac in [Algorithm::HS256, Algorithm::HS384, Algorithm::HS512] {
            assert_eq!(keys.choose(hmac, None).err(), Some(NoKey::Algorithm));
        }
        assert!(verifies(&keys, algorithm, Some("any")), "a lone key has no name");
    }
}

#[test]
fn other_pem_files_are_refused_with_the_reason() {
    for (pem, error) in [
        (fixture!("rsa.private.pem"), KeyError::Private),
        (fixture!("ed.private.pem"), KeyError::Private),
        (fixture!("p384.public.pem"), KeyError::Kind),
        (fixture!("rsa1024.public.pem"), KeyError::Kind),
        ("", KeyError::Pem),
        ("0123456789abcdef0123456789abcdef", KeyError::Pem),
        (&RSA.repeat(2), KeyError::Pem),
        (&RSA.replace("PUBLIC KEY", "CERTIFICATE"), KeyError::Pem),
        ("-----BEGIN PUBLIC KEY-----\nAAAA\n-----END PUBLIC KEY-----\n", KeyError::Kind),
    ] {
        assert_eq!(KeySet::from_pem(pem).err(), Some(error), "{pem}");
    }
}

#[test]
fn the_key_id_chooses_among_the_keys_of_a_set() {
    let keys = KeySet::from_jwks(SET).unwrap();
    assert_eq!(keys.algorithms(), ["ES256", "EdDSA", "RS256"]);
    for (algorithm, id) in PUBLIC.into_iter().zip(["rsa-1", "ec-1", "ed-1"]) {
        assert!(verifies(&keys, algorithm, Some(id)), "{id}");
        assert!(verifies(&keys, algorithm, None), "the only one of its kind needs no name");
        assert!(!verifies(&keys, algorithm, Some("unknown")));
        assert!(!verifies(&keys, algorithm, Some("../../dev/null")));
    }
    assert!(!verifies(&keys, Algorithm::EdDSA, Some("rsa-1")), "another key's name");
    let mut second = entries()[2].clone();
    second["kid"] = "ed-2".into();
    let two = set(&[entries()[2].clone(), second]).unwrap();
    assert!(verifies(&two, Algorithm::EdDSA, Some("ed-1")) && !verifies(&two, Algorithm::EdDSA, None));
}

#[test]
fn entries_for_other_purposes_are_passed_over() {
    let with = |entry: usize, field: &str, value: Value| {
        let mut entry = entries()[entry].clone();
        entry[field] = value;
        entry
    };
    for unusable in [
        with(0, "alg", json!("RS512")),
        with(0, "use", json!("enc")),
        with(0, "key_ops", json!(["encrypt"])),
        with(0, "n", json!("AQAB")),
        with(1, "crv", json!("P-384")),
        with(1, "x", json!("AAAA")),
        with(1, "y", entries()[1]["x"].clone()),
        with(2, "x", json!("AAAA")),
        with(2, "crv", json!("X25519")),
        json!({"kty": "oct", "k": "c2VjcmV0", "kid": "shared"}),
        json!({"kty": "later", "kid": "x"}),
        json!(7),
    ] {
        assert_eq!(set(std::slice::from_ref(&unusable)).err(), Some(KeyError::NoKey), "{unusable}");
        assert_eq!(set(&[unusable, entries()[2].clone()]).unwrap().len(), 1);
    }
}

#[test]
fn a_set_that_is_none_or_ambiguous_or_private_is_refused() {
    for text in ["", "[]", "{}", r#"{"keys":{}}"#, "{\"keys\":["] {
        assert_eq!(KeySet::from_jwks(text).err(), Some(KeyError::Set), "{text}");
    }
    let twice = [entries()[1].clone(), entries()[1].clone()];
    assert_eq!(set(&twice).err(), Some(KeyError::Ambiguous("ES256")));
    let mut private = entries()[2].clone();
    private["d"] = json!("AAAA");
    assert_eq!(set(&[private]).err(), Some(KeyError::Private));
}
