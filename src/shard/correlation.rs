//! Which request a connection or a message came with: its correlation id, and its place in a trace.

use std::borrow::Cow;

use hashbrown::HashMap;

use super::Shard;
use super::envelope::{Order, Publication, Target, TracedEvent};
use crate::accept::http;
use crate::accept::request::Request;
use crate::identity::ConnectionId;
use crate::trace::context::{Parent, is_request_id};
use crate::trace::{OpenSpan, SpanContext, SpanKind};

/// What is known of the requests that connections began with. Only those have an entry that brought something, and
/// those that have no answer yet.
#[derive(Default)]
pub(super) struct Correlations(HashMap<u32, Correlation>);

#[derive(Default)]
struct Correlation {
    /// The id that the request gave; without one it is the connection's own.
    request: Option<Box<str>>,
    /// The trace that the request gave: it holds for all that the connection does.
    parent: Option<Parent>,
    /// The request itself, until it is answered.
    span: Option<Box<OpenSpan>>,
    /// The span of the call that is carried out, for what it causes.
    context: Option<SpanContext>,
}

impl Correlations {
    /// The connection in `slot` has gone.
    pub(super) fn remove(&mut self, slot: u32) {
        if !self.0.is_empty() {
            self.0.remove(&slot);
        }
    }
}

/// The correlation id that a request gives, if it is one that may be taken over.
pub fn given_id<'a>(request: &Request<'a>) -> Option<&'a str> {
    request.one("x-request-id").ok().flatten().filter(|id| is_request_id(id))
}

/// The trace that a request belongs to, if it says so.
pub fn given_parent(request: &Request<'_>) -> Option<Parent> {
    request.one("traceparent").ok().flatten().and_then(Parent::parse)
}

/// Characters of a path in a span.
const PATH_CHARACTERS: usize = 256;

/// Says in its span what a request asks for.
pub fn describe(span: &mut OpenSpan, request: &Request<'_>) {
    span.set("http.request.method", request.method);
    span.set("url.path", &*request.path.chars().take(PATH_CHARACTERS).collect::<String>());
}

impl Shard {
    /// A request for a WebSocket, or to `/api/`, whose answer will carry its correlation id.
    pub(super) fn correlate(&mut self, slot: u32, request: &Request<'_>, name: &'static str) {
        let parent = given_parent(request);
        let tracer = self.instance.tracer.as_ref();
        let mut span = tracer.and_then(|tracer| tracer.begin(parent, name, SpanKind::Server));
        if let Some(span) = &mut span {
            describe(span, request);
        }
        let context = span.as_ref().map(|span| span.context());
        let request = given_id(request).map(Into::into);
        self.correlations.0.insert(slot, Correlation { request, parent, span, context });
    }

    /// The correlation id of a connection: the one that was given, or its `socketId`.
    pub(super) fn request_id(&self, id: ConnectionId) -> Cow<'_, str> {
        let given = self.correlations.0.get(&id.slot).and_then(|known| known.request.as_deref());
        given.map_or_else(|| Cow::Owned(self.socket_id(id).to_string()), Cow::Borrowed)
    }

    /// An answer with the correlation id, if the request has one.
    pub(super) fn identified(&self, id: ConnectionId, response: String) -> String {
        if !self.correlations.0.contains_key(&id.slot) {
            return response;
        }
        http::with_header(&response, "X-Request-Id", &self.request_id(id))
    }

    /// The request of the connection was answered with this status.
    pub(super) fn conclude_request(&mut self, id: ConnectionId, status: &str) {
        let Some(known) = self.correlations.0.get_mut(&id.slot) else { return };
        let span = known.span.take();
        if let Some(mut span) = span {
            span.set("tableforge.request_id", &*self.request_id(id));
            span.set("tableforge.connection", self.socket_id(id).text().as_str());
            span.set("http.response.status_code", status.parse::<u64>().unwrap_or_default());
            span.finish(status.starts_with('5').then_some("the server could not do it"));
        }
    }

    /// The connection is open: only what its messages need is kept.
    pub(super) fn settle_request(&mut self, id: ConnectionId) {
        self.conclude_request(id, "101");
        tracing::debug!(
            connection = self.socket_id(id).text().as_str(),
            request = &*self.request_id(id),
            "a connection is open"
        );
        if let Some(known) = self.correlations.0.get(&id.slot)
            && known.request.is_none()
            && known.parent.is_none()
        {
            self.correlations.0.remove(&id.slot);
        }
    }

    /// Begins the span of something that the connection asks for, if it is followed.
    #[inline]
    pub(super) fn follow(
        &mut self,
        id: ConnectionId,
        name: &'static str,
        kind: SpanKind,
    ) -> Option<Box<OpenSpan>> {
        let tracer = self.instance.tracer.as_ref()?;
        let parent = self.correlations.0.get(&id.slot).and_then(|known| known.parent);
        let mut span = tracer.begin(parent, name, kind)?;
        span.set("tableforge.request_id", &*self.request_id(id));
        span.set("tableforge.connection", self.socket_id(id).text().as_str());
        Some(span)
    }

    /// As [`Shard::follow`], for what is about a room.
    #[inline]
    pub(super) fn follow_in(
        &mut self,
        id: ConnectionId,
        name: &'static str,
        kind: SpanKind,
        room: &str,
    ) -> Option<Box<OpenSpan>> {
        let mut span = self.follow(id, name, kind)?;
        span.set("tableforge.room", room);
        Some(span)
    }

    /// The span and the id of the call that the connection in `slot` has made, for what it causes.
    pub(super) fn cause(&self, id: ConnectionId) -> Cause {
        let known = self.correlations.0.get(&id.slot);
        Cause { context: known.and_then(|known| known.context), request: self.request_id(id).into() }
    }

    /// Begins the span of a message that a call of `/api/` publishes, if the call is followed.
    pub(super) fn follow_call(&self, room: Option<&str>) -> Option<Box<OpenSpan>> {
        let cause = self.api.cause.as_ref()?;
        let tracer = self.instance.tracer.as_ref()?;
        let mut span = tracer.begin_in(Some(cause.context?), "publish", SpanKind::Producer);
        span.set("tableforge.request_id", &*cause.request);
        if let Some(room) = room {
            span.set("tableforge.room", room);
        }
        Some(span)
    }

    /// The correlation id of the call that is carried out.
    pub(super) fn caused_by(&self) -> Box<str> {
        self.api.cause.as_ref().map(|cause| cause.request.clone()).unwrap_or_default()
    }

    /// Notes for those who search the log that an administrator has something changed.
    pub(super) fn note_order(&self, order: &Order) {
        if order.changes_something() {
            tracing::info!(request = &*self.caused_by(), ?order, "an administrator's order");
        }
    }
}

/// The call that causes something.
#[derive(Clone, Debug)]
pub struct Cause {
    /// Its span, if it is followed.
    pub context: Option<SpanContext>,
    /// Its correlation id.
    pub request: Box<str>,
}

/// What goes to the publisher: an event, and its span where it is followed.
pub(super) fn publication(span: Option<Box<OpenSpan>>, target: Target, event: bytes::Bytes) -> Publication {
    match span {
        None => Publication::Event { target, event },
        Some(span) => {
            let request = span.text("tableforge.request_id").unwrap_or_default().into();
            Publication::Traced(Box::new(TracedEvent { span, request, target, event }))
        }
    }
}
