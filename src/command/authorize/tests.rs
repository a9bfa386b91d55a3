//! Tokens and what they grant, without keys from files.

use jsonwebtoken::{Algorithm, EncodingKey};
use serde_json::json;

use super::*;

const NOW: u64 = 1_700_000_000;
const SECRET: &str = "0123456789abcdef0123456789abcdef";

fn settings() -> Settings {
    Settings { jwt_secret: Some(SECRET.into()), ..Settings::for_tests() }
}

fn verifier() -> TokenVerifier {
    TokenVerifier::new(&settings()).unwrap()
}

fn signed_with(header: &Header, claims: &Value, secret: &str) -> String {
    jsonwebtoken::encode(header, claims, &EncodingKey::from_secret(secret.as_bytes())).unwrap()
}

fn signed(claims: &Value) -> String {
    signed_with(&Header::new(Algorithm::HS256), claims, SECRET)
}

fn verify(claims: &Value) -> Result<Identity, TokenError> {
    verifier().verify(&signed(claims), NOW)
}

/// `token` with its header replaced by base64url text.
fn with_header(token: &str, header: &str) -> String {
    format!("{header}.{}", token.split_once('.').unwrap().1)
}

#[test]
fn a_plain_token_proves_user_name_and_end() {
    let alice = verify(&json!({"sub": "alice", "exp": NOW + 60, "name": "Alice"})).unwrap();
    assert_eq!(alice.user.as_str(), "alice");
    assert_eq!(alice.name.as_deref(), Some("Alice"));
    assert_eq!(alice.expires_at, Some(NOW + 60));
    assert!(!alice.may_broadcast() && !alice.is_admin());
}

#[test]
fn without_a_secret_there_is_no_verifier() {
    assert!(TokenVerifier::new(&Settings::for_tests()).is_none());
}

#[test]
fn expiry_and_not_before_allow_the_leeway_and_no_second_more() {
    for (claims, outcome) in [
        (json!({"sub": "a", "exp": NOW - 5}), None),
        (json!({"sub": "a", "exp": NOW - 6}), Some(TokenError::Expired)),
        (json!({"sub": "a", "exp": NOW as f64 - 5.5}), Some(TokenError::Expired)),
        (json!({"sub": "a", "exp": u64::MAX}), None),
        (json!({"sub": "a", "exp": NOW, "nbf": NOW + 5}), None),
        (json!({"sub": "a", "exp": NOW, "nbf": NOW + 6}), Some(TokenError::NotYetValid)),
    ] {
        assert_eq!(verify(&claims).err(), outcome, "{claims}");
    }
}

#[test]
fn claims_that_are_missing_or_of_a_wrong_type_are_named() {
    let long = "x".repeat(limits::USER_ID_BYTES + 1);
    for (claims, word) in [
        (json!({"sub": "a"}), "`exp`"),
        (json!({"sub": "a", "exp": null}), "`exp`"),
        (json!({"sub": "a", "exp": (NOW + 60).to_string()}), "`exp`"),
        (json!({"sub": "a", "exp": -1}), "`exp`"),
        (json!({"sub": "a", "exp": NOW, "nbf": "0"}), "`nbf`"),
        (json!({"exp": NOW}), "`sub`"),
        (json!({"sub": "", "exp": NOW}), "`sub`"),
        (json!({"sub": 7, "exp": NOW}), "`sub`"),
        (json!({"sub": long, "exp": NOW}), "`sub`"),
        (json!({"sub": "a", "exp": NOW, "name": ["a"]}), "`name`"),
        (json!({"sub": "a", "exp": NOW, "name": long}), "`name`"),
        (json!({"sub": "a", "exp": NOW, "permissions": "admin"}), "`permissions`"),
        (json!({"sub": "a", "exp": NOW, "permissions": [1]}), "`permissions`"),
        (json!({"sub": "a", "exp": NOW, "rooms": null}), "`rooms`"),
        (json!({"sub": "a", "exp": NOW, "rooms": ["lobby"]}), "`rooms`"),
        (json!({"sub": "a", "exp": NOW, "rooms": {"lobby": "join"}}), "`rooms`"),
        (json!({"sub": "a", "exp": NOW, "rooms": {"a*b": ["join"]}}), "`rooms`"),
    ] {
        let error = verify(&claims).expect_err(&claims.to_string()).to_string();
        assert!(error.contains(word), "{claims}: {error}");
    }
}

#[test]
fn any_other_algorithm_is_refused() {
    let claims = json!({"sub": "a", "exp": NOW});
    let plain = signed(&claims);
    let (message, _) = plain.rsplit_once('.').unwrap();
    let none = "eyJhbGciOiJub25lIiwidHlwIjoiSldUIn0"; // {"alg":"none","typ":"JWT"}
    let rs256 = "eyJhbGciOiJSUzI1NiJ9"; // {"alg":"RS256"}
    let unsigned = with_header(&format!("{message}."), none);
    for token in [
        signed_with(&Header::new(Algorithm::HS512), &claims, SECRET),
        signed_with(&Header::new(Algorithm::HS384), &claims, SECRET),
        unsigned,
        with_header(&plain, none),
        with_header(&plain, rs256),
    ] {
        assert_eq!(verifier().verify(&token, NOW), Err(TokenError::Algorithm), "{token}");
    }
}

#[test]
fn a_forged_or_broken_token_is_refused_without_a_word_of_it() {
    let claims = json!({"sub": "mallory", "exp": NOW});
    let other = signed_with(&Header::new(Algorithm::HS256), &claims, &SECRET.replace('0', "1"));
    assert_eq!(verifier().verify(&other, NOW), Err(TokenError::Signature));
    let plain = signed(&claims);
    let (message, _) = plain.rsplit_once('.').unwrap();
    assert_eq!(verifier().verify(&format!("{message}."), NOW), Err(TokenError::Signature));
    for token in ["", "..", "a.b.c", "mallory", message, &format!("{plain}.{plain}")] {
        let error = verifier().verify(token, NOW).unwrap_err();
        assert!(!error.to_string().contains("mallory"), "{error}");
    }
    let long = format!("{plain}{}", "A".repeat(limits::TOKEN_BYTES));
    assert_eq!(verifier().verify(&long, NOW), Err(TokenError::TooLong));
}

#[test]
fn a_header_that_wants_more_or_brings_a_key_is_refused() {
    let plain = Header::new(Algorithm::HS256);
    let kid = |kid: &str| Header { kid: Some(kid.into()), ..plain.clone() };
    for (header, word) in [
        (Header { crit: Some(vec!["exp".into()]), ..plain.clone() }, "crit"),
        (Header { jku: Some("https://evil.example/keys".into()), ..plain.clone() }, "jku"),
        (Header { x5u: Some("https://evil.example/keys".into()), ..plain.clone() }, "x5u"),
        (kid("../../dev/null"), "kid"),
    ] {
        let token = signed_with(&header, &json!({"sub": "a", "exp": NOW}), SECRET);
        let error = verifier().verify(&token, NOW).unwrap_err().to_string();
        assert!(error.contains(word), "{error}");
    }
    let token = signed_with(&kid("key-2"), &json!({"sub": "a", "exp": NOW}), SECRET);
    assert!(verifier().verify(&token, NOW).is_ok(), "a plain key id does no harm");
}

#[test]
fn issuer_and_audience_are_required_where_configured() {
    let strict = Settings {
        jwt_issuer: Some("https://login.example".into()),
        jwt_audience: Some("tables".into()),
        ..settings()
    };
    let strict = TokenVerifier::new(&strict).unwrap();
    for (iss, aud, outcome) in [
        (json!("https://login.example"), json!("tables"), None),
        (json!("https://login.example"), json!(["other", "tables"]), None),
        (json!("https://evil.example"), json!("tables"), Some(TokenError::Issuer)),
        (json!(["https://login.example"]), json!("tables"), Some(TokenError::Issuer)),
        (json!(null), json!("tables"), Some(TokenError::Missing("iss"))),
        (json!("https://login.example"), json!("other"), Some(TokenError::Audience)),
        (json!("https://login.example"), json!([]), Some(TokenError::Audience)),
        (json!("https://login.example"), json!(null), Some(TokenError::Missing("aud"))),
    ] {
        let claims = json!({"sub": "a", "exp": NOW, "iss": iss, "aud": aud});
        assert_eq!(strict.verify(&signed(&claims), NOW).err(), outcome, "{claims}");
    }
    let claims = json!({"sub": "a", "exp": NOW, "iss": "anyone", "aud": "anything"});
    assert!(verify(&claims).is_ok(), "neither is configured");
}

#[test]
fn patterns_grant_what_they_name_and_add_up() {
    let claims = json!({"sub": "a", "exp": NOW, "rooms": {
        "lobby": ["join", "publish"],
        "table-*": ["join"],
        "table-4*": ["publish", "unheard-of"],
    }});
    let user = verify(&claims).unwrap();
    assert!(user.may(RoomRight::Join, "lobby") && user.may(RoomRight::Publish, "lobby"));
    assert!(!user.may(RoomRight::Members, "lobby") && !user.may(RoomRight::Join, "lobby2"));
    assert!(user.may(RoomRight::Join, "table-") && user.may(RoomRight::Join, "table-7"));
    assert!(!user.may(RoomRight::Publish, "table-7"));
    assert!(user.may(RoomRight::Join, "table-42") && user.may(RoomRight::Publish, "table-42"));
    assert!(!user.may(RoomRight::Join, "Table-42") && !user.may(RoomRight::Join, "tables"));
}

#[test]
fn an_empty_rooms_claim_grants_nothing_and_a_star_everything() {
    let nothing = verify(&json!({"sub": "a", "exp": NOW, "rooms": {}})).unwrap();
    assert!(RoomRight::ALL.into_iter().all(|right| !nothing.may(right, "lobby")));
    let all = verify(&json!({"sub": "a", "exp": NOW, "rooms": {"*": ["join"]}})).unwrap();
    assert!(all.may(RoomRight::Join, "anything") && !all.may(RoomRight::Publish, "anything"));
}

#[test]
fn without_a_rooms_claim_the_default_rights_hold_for_anonymous_users_too() {
    let rights = RoomRights::NONE.with(RoomRight::Join);
    let settings = Settings { default_room_permissions: rights, ..settings() };
    let token = signed(&json!({"sub": "a", "exp": NOW}));
    let user = TokenVerifier::new(&settings).unwrap().verify(&token, NOW).unwrap();
    let anonymous = Identity::anonymous(UserId::parse("guest-1").unwrap(), rights);
    for identity in [user, anonymous] {
        assert!(identity.may(RoomRight::Join, "lobby") && !identity.may(RoomRight::Publish, "lobby"));
    }
}

#[test]
fn permissions_are_what_the_token_lists() {
    let with = |list: Value| verify(&json!({"sub": "a", "exp": NOW, "permissions": list})).unwrap();
    let broadcaster = with(json!(["broadcast", "something-else"]));
    assert!(broadcaster.may_broadcast() && !broadcaster.is_admin());
    let admin = with(json!(["admin"]));
    assert!(admin.is_admin() && !admin.may_broadcast());
}
