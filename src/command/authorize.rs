//! A token becomes an identity: who the user is, until when, and what the user may do.

use std::num::NonZeroU16;
use std::sync::Arc;

use arc_swap::ArcSwap;
use jsonwebtoken::Header;
use jsonwebtoken::errors::ErrorKind;
use serde::Deserialize;
use serde_json::Value;

use super::keys::{KeySet, NoKey};
use crate::config::Settings;
use crate::identity::{RoomId, UserId};
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
    /// How fast the connection may send, if the token says so.
    pub rate: Option<MessageRate>,
    permissions: Permissions,
    /// Whether the token (or its absence) leaves rooms to the server's configuration.
    unclaimed: bool,
    rooms: Rooms,
}

const _: () = assert!(size_of::<Identity>() <= 72, "there is one per connection");

/// How fast one connection may send: a token bucket.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct MessageRate {
    /// Messages per second.
    pub per_second: NonZeroU16,
    /// Messages at once.
    pub burst: NonZeroU16,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Permissions {
    broadcast: bool,
    admin: bool,
}

#[derive(Clone, Debug, PartialEq, Eq)]
enum Rooms {
    /// The same rights in every room.
    Everywhere(RoomRights),
    /// The `rooms` claim, or what the application has said room by room. May be empty.
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
        let permissions = Permissions::default();
        Self { user, name: None, expires_at: None, rate: None, permissions, unclaimed: true, rooms }
    }

    /// Where no `rooms` claim says what the user may do, nothing is allowed until the application has been
    /// asked about a room.
    #[must_use]
    pub fn asking(mut self) -> Self {
        if self.unclaimed {
            self.rooms = Rooms::Granted(Box::default());
        }
        self
    }

    /// Whether the application is to be asked before the user joins a room.
    pub fn is_asking(&self) -> bool {
        self.unclaimed && matches!(self.rooms, Rooms::Granted(_))
    }

    /// The application has granted `rights` in `room`. Of what it granted before, only rooms that are still
    /// `in_use` are kept, so the list is never longer than the connection's rooms.
    pub fn grant(&mut self, room: &RoomId, rights: RoomRights, in_use: impl Fn(&str) -> bool) {
        if let (true, Rooms::Granted(grants)) = (self.unclaimed, &mut self.rooms) {
            let kept = std::mem::take(grants).into_iter();
            let kept = kept.filter(|grant| *grant.pattern != *room.as_str() && in_use(&grant.pattern));
            let new = Grant { pattern: room.as_str().into(), open_end: false, rights };
            *grants = kept.chain([new]).collect();
        }
    }

    /// Nothing is granted in `room` any more, until the application says so again.
    pub fn revoke(&mut self, room: &RoomId) {
        if let (true, Rooms::Granted(grants)) = (self.unclaimed, &mut self.rooms) {
            let kept = std::mem::take(grants).into_iter();
            *grants = kept.filter(|grant| *grant.pattern != *room.as_str()).collect();
        }
    }

    /// Takes over what the application has granted to `before`, the same user's identity until now.
    pub fn keep_grants(&mut self, before: &mut Self) {
        if self.is_asking() && before.is_asking() {
            self.rooms = std::mem::replace(&mut before.rooms, Rooms::Granted(Box::default()));
        }
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
    #[error("the token's `alg` is not one that this server has a key for")]
    Algorithm,
    /// A `kid` that no key has, or none where there are several keys.
    #[error("the token's `kid` does not name a key that this server knows")]
    KeyId,
    /// A header that asks for what this server does not do, or names a key of the token's own.
    #[error("the token's header has {0}, which is not accepted")]
    Header(&'static str),
    /// Not signed with the key that it should be.
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
pub struct TokenVerifier {
    /// The key of `JWT_SECRET`, if there is one. Files come and go beside it.
    secret: KeySet,
    /// All keys: shards read them without waiting while another thread puts in new ones.
    keys: ArcSwap<KeySet>,
    issuer: Option<String>,
    audience: Option<String>,
    leeway_seconds: u64,
    default_rights: RoomRights,
    /// Whether the application says what users without a `rooms` claim may do.
    asks: bool,
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
    rate: Option<Value>,
    /// Here `null` is not the same as absent: absent means the default rights in every room.
    #[serde(default, deserialize_with = "even_null")]
    rooms: Option<Value>,
}

fn even_null<'de, D: serde::Deserializer<'de>>(value: D) -> Result<Option<Value>, D::Error> {
    Value::deserialize(value).map(Some)
}

impl TokenVerifier {
    /// A verifier as `settings` want it, with the key of `JWT_SECRET` and without those of files; `None` where
    /// `settings` name no key at all.
    pub fn new(settings: &Settings) -> Option<Self> {
        let keys = &settings.keys;
        let secret = settings.jwt_secret.as_ref();
        if secret.is_none() && keys.public_key_file.is_none() && keys.jwks_file.is_none() {
            return None;
        }
        let secret =
            secret.map(|secret| KeySet::of_secret(secret, keys.secret_algorithm)).unwrap_or_default();
        Some(Self {
            keys: ArcSwap::from_pointee(secret.clone()),
            secret,
            issuer: settings.jwt_issuer.clone(),
            audience: settings.jwt_audience.clone(),
            leeway_seconds: settings.token_leeway.as_secs(),
            default_rights: settings.default_room_permissions,
            asks: settings.authorization.is_some(),
        })
    }

    /// From now on tokens are verified with the secret's key and `from_files`, and no others.
    pub fn replace_keys(&self, from_files: &KeySet) {
        self.keys.store(Arc::new(self.secret.clone().and(from_files)));
    }

    /// Verifies `token` at the time `now` (seconds since 1970) and gives the identity that it proves.
    ///
    /// # Errors
    /// When the token is not to be trusted, has expired, or has a claim of a wrong form.
    pub fn verify(&self, token: &str, now: u64) -> Result<Identity, TokenError> {
        if token.len() > limits::TOKEN_BYTES {
            return Err(TokenError::TooLong);
        }
        let header = jsonwebtoken::decode_header(token).map_err(|error| refusal(error.kind()))?;
        check_header(&header)?;
        let keys = self.keys.load();
        let key = keys.choose(header.alg, header.kid.as_deref()).map_err(|none| match none {
            NoKey::Algorithm => TokenError::Algorithm,
            NoKey::Id => TokenError::KeyId,
        })?;
        let claims = jsonwebtoken::decode::<Claims>(token, &key.decoding, &key.signature_only)
            .map_err(|error| refusal(error.kind()))?
            .claims;
        let expires_at = self.check_times(&claims, now)?;
        self.check_parties(&claims)?;
        let unclaimed = claims.rooms.is_none();
        let rooms = match claims.rooms {
            None => Rooms::Everywhere(self.default_rights),
            Some(rooms) => Rooms::Granted(read_rooms(&rooms)?),
        };
        let identity = Identity {
            user: read_subject(claims.sub)?,
            name: read_name(claims.name)?,
            expires_at: Some(expires_at),
            rate: claims.rate.as_ref().map(read_rate).transpose()?,
            permissions: read_permissions(claims.permissions)?,
            unclaimed,
            rooms,
        };
        Ok(if self.asks { identity.asking() } else { identity })
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

/// `burst` may be left out: it is as many as go in two seconds then, as with the server's own defaults.
fn read_rate(rate: &Value) -> Result<MessageRate, TokenError> {
    const FORM: TokenError = TokenError::Claim(
        "rate",
        "an object with `perSecond` and perhaps `burst`, whole numbers from 1 to 65535",
    );
    let number = |value: &Value| {
        value.as_u64().and_then(|n| u16::try_from(n).ok()).and_then(NonZeroU16::new).ok_or(FORM)
    };
    let per_second = number(rate.get("perSecond").ok_or(FORM)?)?;
    let burst = match rate.get("burst") {
        Some(burst) => number(burst)?,
        None => per_second.saturating_mul(NonZeroU16::MIN.saturating_add(1)),
    };
    Ok(MessageRate { per_second, burst })
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
mod tests;
