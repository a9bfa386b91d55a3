//! A token becomes an identity: who the user is, until when, and what the user may do.

use std::sync::Arc;

use jsonwebtoken::errors::ErrorKind;
use jsonwebtoken::{Algorithm, DecodingKey, Header, Validation};
use serde::Deserialize;
use serde_json::Value;

use crate::config::Settings;
use crate::identity::UserId;
use crate::limits;
use crate::permission::{RoomRight, RoomRights};

/// Who a connection belongs to and what it may do. There is one per connection, so it is small:
/// a token without a `rooms` claim costs no list.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Identity {
    /// The user.
    pub user: UserId,
    /// The display name, if the token had one.
    pub name: Option<Arc<str>>,
    /// When the connection ends unless the token is renewed, in seconds since 1970: the token's `exp`,
    /// or the end of the leeway if that had passed already. `None` for an anonymous user.
    pub expires_at: Option<u64>,
    permissions: Permissions,
    rooms: Rooms,
}

const _: () = assert!(size_of::<Identity>() <= 72, "there is one per connection");

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Permissions {
    broadcast: bool,
    admin: bool,
}

#[derive(Clone, Debug, PartialEq, Eq)]
enum Rooms {
    /// No `rooms` claim: the same rights in every room.
    Everywhere(RoomRights),
    /// The `rooms` claim, which may be empty.
    Granted(Box<[Grant]>),
}

#[derive(Clone, Debug, PartialEq, Eq)]
struct Grant {
    /// The room's name, or the beginning of its name.
    pattern: Box<str>,
    /// Whether any rest may follow.
    open_end: bool,
    rights: RoomRights,
}

impl Grant {
    fn covers(&self, room: &str) -> bool {
        if self.open_end { room.starts_with(&*self.pattern) } else { room == &*self.pattern }
    }
}

impl Identity {
    /// The identity of a user without a token: `rights` in every room, no other permission, no end.
    pub fn anonymous(user: UserId, rights: RoomRights) -> Self {
        let rooms = Rooms::Everywhere(rights);
        Self { user, name: None, expires_at: None, permissions: Permissions::default(), rooms }
    }

    /// Whether the user has `right` in `room`. Where several patterns of the `rooms` claim cover the
    /// room, what any of them grants is granted.
    pub fn may(&self, right: RoomRight, room: &str) -> bool {
        match &self.rooms {
            Rooms::Everywhere(rights) => rights.contains(right),
            Rooms::Granted(grants) => {
                grants.iter().any(|grant| grant.rights.contains(right) && grant.covers(room))
            }
        }
    }

    /// Whether the user may send to everyone in the cluster.
    pub fn may_broadcast(&self) -> bool {
        self.permissions.broadcast
    }

    /// Whether the user may use the administrative interface.
    pub fn is_admin(&self) -> bool {
        self.permissions.admin
    }
}

/// Why a token was refused. The text is fit for the client; it never holds any part of the token.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum TokenError {
    /// More than [`limits::TOKEN_BYTES`].
    #[error("the token is too long; at most {} bytes are accepted", limits::TOKEN_BYTES)]
    TooLong,
    /// Not three parts of base64url with JSON objects in the first two.
    #[error("the token is not a JSON Web Token (RFC 7519)")]
    Malformed,
    /// An `alg` that the server is not configured for, `none` among them.
    #[error("the token's `alg` is not accepted; this server accepts HS256")]
    Algorithm,
    /// A header that asks for what this server does not do, or names a key of the token's own.
    #[error("the token's header has {0}, which is not accepted")]
    Header(&'static str),
    /// Not signed with the server's secret.
    #[error("the token's signature is wrong")]
    Signature,
    /// A claim that must be there is not.
    #[error("the token has no `{0}`")]
    Missing(&'static str),
    /// A claim of the wrong type or form.
    #[error("the token's `{0}` must be {1}")]
    Claim(&'static str, &'static str),
    /// `exp` has passed.
    #[error("the token has expired; get a new one")]
    Expired,
    /// `nbf` has not come yet.
    #[error("the token is not valid yet (`nbf`); check the clocks")]
    NotYetValid,
    /// Another issuer's token.
    #[error("the token's `iss` is not the one that this server accepts")]
    Issuer,
    /// A token for someone else.
    #[error("the token's `aud` does not name this server")]
    Audience,
}

/// Verifies tokens. The algorithm is fixed by the configuration, never chosen by the token.
#[derive(Clone)]
pub struct TokenVerifier {
    key: DecodingKey,
    signature_only: Validation,
    issuer: Option<String>,
    audience: Option<String>,
    leeway_seconds: u64,
    default_rights: RoomRights,
}

/// The claims that this server reads. Those that may have a wrong type are read as they are, so that
/// the error can name them.
#[derive(Deserialize)]
struct Claims {
    sub: Option<Value>,
    exp: Option<Value>,
    nbf: Option<Value>,
    iss: Option<Value>,
    aud: Option<Value>,
    name: Option<Value>,
    permissions: Option<Value>,
    /// Here `null` is not the same as absent: absent means the default rights in every room.
    #[serde(default, deserialize_with = "even_null")]
    rooms: Option<Value>,
}

fn even_null<'de, D: serde::Deserializer<'de>>(value: D) -> Result<Option<Value>, D::Error> {
    Value::deserialize(value).map(Some)
}

impl TokenVerifier {
    /// A verifier as `settings` want it; `None` where no secret is set.
    pub fn new(settings: &Settings) -> Option<Self> {
        let secret = settings.jwt_secret.as_ref()?;
        // The crate would check times against its own clock; everything but the signature is checked
        // here, against the caller's.
        let mut signature_only = Validation::new(Algorithm::HS256);
        signature_only.required_spec_claims.clear();
        signature_only.validate_exp = false;
        signature_only.validate_nbf = false;
        signature_only.validate_aud = false;
        Some(Self {
            key: DecodingKey::from_secret(secret.as_bytes()),
            signature_only,
            issuer: settings.jwt_issuer.clone(),
            audience: settings.jwt_audience.clone(),
            leeway_seconds: settings.token_leeway.as_secs(),
            default_rights: settings.default_room_permissions,
        })
    }

    /// Verifies `token` at the time `now` (seconds since 1970) and gives the identity that it proves.
    ///
    /// # Errors
    /// When the token is not to be trusted, has expired, or has a claim of a wrong form.
    pub fn verify(&self, token: &str, now: u64) -> Result<Identity, TokenError> {
        if token.len() > limits::TOKEN_BYTES {
            return Err(TokenError::TooLong);
        }
        let decoded = jsonwebtoken::decode::<Claims>(token, &self.key, &self.signature_only)
            .map_err(|error| refusal(error.kind()))?;
        check_header(&decoded.header)?;
        let claims = decoded.claims;
        let expires_at = self.check_times(&claims, now)?;
        self.check_parties(&claims)?;
        let rooms = match claims.rooms {
            None => Rooms::Everywhere(self.default_rights),
            Some(rooms) => Rooms::Granted(read_rooms(&rooms)?),
        };
        Ok(Identity {
            user: read_subject(claims.sub)?,
            name: read_name(claims.name)?,
            expires_at: Some(expires_at),
            permissions: read_permissions(claims.permissions)?,
            rooms,
        })
    }

    fn check_times(&self, claims: &Claims, now: u64) -> Result<u64, TokenError> {
        let exp = claims.exp.as_ref().ok_or(TokenError::Missing("exp"))?;
        let exp = numeric_date("exp", exp)?;
        if now > exp.saturating_add(self.leeway_seconds) {
            return Err(TokenError::Expired);
        }
        if let Some(nbf) = &claims.nbf
            && numeric_date("nbf", nbf)? > now.saturating_add(self.leeway_seconds)
        {
            return Err(TokenError::NotYetValid);
        }
        // A token accepted only for the leeway's sake would otherwise end at once.
        Ok(if exp > now { exp } else { exp.saturating_add(self.leeway_seconds) })
    }

    fn check_parties(&self, claims: &Claims) -> Result<(), TokenError> {
        if let Some(issuer) = &self.issuer {
            let iss = claims.iss.as_ref().ok_or(TokenError::Missing("iss"))?;
            if iss.as_str() != Some(issuer) {
                return Err(TokenError::Issuer);
            }
        }
        if let Some(audience) = &self.audience {
            // RFC 7519 section 4.1.3: one text, or a list of them.
            let named = match claims.aud.as_ref().ok_or(TokenError::Missing("aud"))? {
                Value::Array(list) => list.iter().any(|aud| aud.as_str() == Some(audience)),
                aud => aud.as_str() == Some(audience),
            };
            if !named {
                return Err(TokenError::Audience);
            }
        }
        Ok(())
    }
}

/// The crate's reason in this server's words. Its own text can hold pieces of the token.
fn refusal(kind: &ErrorKind) -> TokenError {
    match kind {
        ErrorKind::InvalidSignature => TokenError::Signature,
        ErrorKind::InvalidAlgorithm
        | ErrorKind::InvalidAlgorithmName
        | ErrorKind::UnsupportedAlgorithm
        | ErrorKind::MissingAlgorithm => TokenError::Algorithm,
        // `alg: none` and unknown names do not parse as a header at all.
        ErrorKind::Json(error) if error.to_string().starts_with("unknown variant") => TokenError::Algorithm,
        _ => TokenError::Malformed,
    }
}

/// Refuses a header with extensions that must be understood (`crit`, RFC 7515 section 4.1.11), and
/// one that brings or points to a key: keys come from the configuration alone.
fn check_header(header: &Header) -> Result<(), TokenError> {
    let path_in_kid = header.kid.as_ref().is_some_and(|kid| kid.contains(['/', '\\', '\0']));
    let refused = [
        ("`crit`", header.crit.is_some()),
        ("`jwk`", header.jwk.is_some()),
        ("`jku`", header.jku.is_some()),
        ("`x5u`", header.x5u.is_some()),
        ("`x5c`", header.x5c.is_some()),
        ("a path in `kid`", path_in_kid),
    ];
    match refused.into_iter().find(|(_, there)| *there) {
        Some((name, _)) => Err(TokenError::Header(name)),
        None => Ok(()),
    }
}

/// Seconds since 1970, whole or not (RFC 7519 section 2, NumericDate). Text is refused.
fn numeric_date(claim: &'static str, value: &Value) -> Result<u64, TokenError> {
    let seconds = value.as_u64().or_else(|| value.as_f64().filter(|s| *s >= 0.0).map(|s| s as u64));
    seconds.ok_or(TokenError::Claim(claim, "a number of seconds since 1970"))
}

fn read_subject(sub: Option<Value>) -> Result<UserId, TokenError> {
    let sub = sub.ok_or(TokenError::Missing("sub"))?;
    sub.as_str().and_then(UserId::parse).ok_or(TokenError::Claim("sub", "text of 1 to 256 bytes"))
}

fn read_name(name: Option<Value>) -> Result<Option<Arc<str>>, TokenError> {
    let Some(name) = name else { return Ok(None) };
    let text = name.as_str().filter(|text| (1..=limits::DISPLAY_NAME_BYTES).contains(&text.len()));
    text.map(|text| Some(text.into())).ok_or(TokenError::Claim("name", "text of 1 to 256 bytes"))
}

/// Names that this server does not know may mean something to another reader of the same token.
fn read_permissions(list: Option<Value>) -> Result<Permissions, TokenError> {
    let mut permissions = Permissions::default();
    let Some(list) = list else { return Ok(permissions) };
    for name in texts(&list).ok_or(TokenError::Claim("permissions", "a list of texts"))? {
        match name {
            "broadcast" => permissions.broadcast = true,
            "admin" => permissions.admin = true,
            _ => {}
        }
    }
    Ok(permissions)
}

fn read_rooms(rooms: &Value) -> Result<Box<[Grant]>, TokenError> {
    const FORM: TokenError =
        TokenError::Claim("rooms", "an object of room patterns, each with a list of texts");
    rooms
        .as_object()
        .ok_or(FORM)?
        .iter()
        .map(|(pattern, list)| {
            let (pattern, open_end) = match pattern.strip_suffix('*') {
                Some(start) => (start, true),
                None => (pattern.as_str(), false),
            };
            if pattern.contains('*') {
                return Err(TokenError::Claim("rooms", "patterns with `*` at the end only"));
            }
            let known = texts(list).ok_or(FORM)?.into_iter().filter_map(RoomRight::parse);
            Ok(Grant {
                pattern: pattern.into(),
                open_end,
                rights: known.fold(RoomRights::NONE, RoomRights::with),
            })
        })
        .collect()
}

fn texts(list: &Value) -> Option<Vec<&str>> {
    list.as_array()?.iter().map(Value::as_str).collect()
}

#[cfg(test)]
mod tests {
    use jsonwebtoken::EncodingKey;
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
}
