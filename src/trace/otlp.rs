//! Spans as OTLP's JSON (opentelemetry-proto, ExportTraceServiceRequest).

use serde_json::{Value as Json, json};

use super::{Span, Value};

/// One request that brings all of `spans`, which were recorded by the instance of that name.
pub fn request(spans: &[Span], instance: &str) -> Json {
    let version = env!("CARGO_PKG_VERSION");
    let resource = [
        attribute("service.name", &"tableforge".into()),
        attribute("service.version", &version.into()),
        attribute("service.instance.id", &instance.into()),
    ];
    let spans: Vec<_> = spans.iter().map(span).collect();
    json!({ "resourceSpans": [{
        "resource": { "attributes": resource },
        "scopeSpans": [{ "scope": { "name": "tableforge", "version": version }, "spans": spans }],
    }] })
}

fn span(span: &Span) -> Json {
    let attributes: Vec<_> = span.attributes.iter().map(|(key, value)| attribute(key, value)).collect();
    // Times are 64-bit numbers, which JSON carries as text (protobuf's mapping).
    let mut json = json!({
        "traceId": span.context.trace.to_string(),
        "spanId": span.context.span.to_string(),
        "name": span.name,
        "kind": span.kind as u8,
        "startTimeUnixNano": span.start_ns.to_string(),
        "endTimeUnixNano": span.end_ns.to_string(),
        "attributes": attributes,
    });
    if let Some(parent) = span.parent {
        json["parentSpanId"] = parent.to_string().into();
    }
    if let Some(error) = span.error {
        json["status"] = json!({ "code": 2, "message": error });
    }
    json
}

fn attribute(key: &str, value: &Value) -> Json {
    let value = match value {
        Value::Text(text) => json!({ "stringValue": &**text }),
        Value::Number(number) => json!({ "intValue": number.to_string() }),
    };
    json!({ "key": key, "value": value })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::trace::{SpanContext, SpanId, SpanKind, TraceId};

    #[test]
    fn a_span_has_the_form_that_collectors_read() {
        let span = Span {
            context: SpanContext { trace: TraceId::new(1, 2), span: SpanId::new(3) },
            parent: Some(SpanId::new(4)),
            name: "publish",
            kind: SpanKind::Producer,
            start_ns: 5,
            end_ns: 6,
            attributes: vec![("room", "table-1".into()), ("bytes", 7u64.into())],
            error: Some("queue full"),
        };
        let expected = json!({
            "traceId": "00000000000000010000000000000002",
            "spanId": "0000000000000003",
            "parentSpanId": "0000000000000004",
            "name": "publish",
            "kind": 4,
            "startTimeUnixNano": "5",
            "endTimeUnixNano": "6",
            "attributes": [
                { "key": "room", "value": { "stringValue": "table-1" } },
                { "key": "bytes", "value": { "intValue": "7" } },
            ],
            "status": { "code": 2, "message": "queue full" },
        });
        let request = request(&[span], "north-1");
        assert_eq!(request["resourceSpans"][0]["scopeSpans"][0]["spans"], json!([expected]));
        let resource = &request["resourceSpans"][0]["resource"]["attributes"];
        assert_eq!(resource[2]["value"]["stringValue"], "north-1");
    }
}
