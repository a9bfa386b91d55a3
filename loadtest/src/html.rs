//! A report as one HTML page with its plots inside: opens anywhere, without a network and without scripts.

use std::fmt::Write;

use serde_json::Value;

use crate::chart::{Chart, Line, Scale, escaped};
use crate::report::{Report, grouped};

/// Size of a plot, in pixels.
const SIZE: (f64, f64) = (720.0, 320.0);

const STYLE: &str = ":root{color-scheme:light dark}body{font:15px/1.5 system-ui,-apple-system,'Segoe UI',sans-serif;\
    max-width:1500px;margin:2rem auto;padding:0 1.5rem}h1{font-size:1.5rem;margin:0}.origin{color:#7d8590;margin:.2rem 0 1.2rem;\
    overflow-wrap:anywhere}.verdict{font-weight:600;padding:.1rem .6rem;border-radius:1rem;color:#fff;font-size:1rem;\
    vertical-align:.15rem}.passed{background:#2da44e}.failed{background:#cf222e}.plots{display:grid;gap:1.2rem;\
    grid-template-columns:repeat(auto-fit,minmax(min(100%,520px),1fr));margin:1.5rem 0}.plots svg{width:100%;height:auto}\
    table{border-collapse:collapse;font-variant-numeric:tabular-nums}td,th{padding:.2rem 1.2rem .2rem 0;text-align:left;\
    vertical-align:top;border-bottom:1px solid #80808040;white-space:pre-wrap}li.problem{color:#cf222e}.columns td{font:13px ui-monospace,monospace}\
    code,pre{font:13px ui-monospace,monospace}pre{white-space:pre-wrap}";

/// The page of a report.
pub fn page(report: &Report) -> String {
    let json = &report.json;
    let name = text(json, "/scenario");
    let (class, verdict) =
        if report.problems.is_empty() { ("passed", "passed") } else { ("failed", "failed") };
    let mut page = format!(
        "<!doctype html>\n<html lang=\"en\"><head><meta charset=\"utf-8\">\
         <meta name=\"viewport\" content=\"width=device-width,initial-scale=1\"><title>loadtest {name}</title>\
         <style>{STYLE}</style></head>\n<body><h1>loadtest {name} <span class=\"verdict {class}\">{verdict}</span></h1>\n"
    );
    for (label, origin) in [("", "/origin"), ("before: ", "/before/origin"), ("after: ", "/after/origin")] {
        if let Some(origin) = json.pointer(origin) {
            let part = |name: &str| escaped(origin[name].as_str().unwrap_or("?"));
            let (command, time, machine) = (part("command"), part("finished_at"), part("machine"));
            add(
                &mut page,
                format_args!("<p class=\"origin\">{label}<code>{command}</code><br>{time} · {machine}</p>\n"),
            );
        }
    }
    for (class, texts) in [("problem", &report.problems), ("warning", &report.warnings)] {
        if !texts.is_empty() {
            let items: Vec<_> =
                texts.iter().map(|t| format!("<li class=\"{class}\">{class}: {}</li>", escaped(t))).collect();
            add(&mut page, format_args!("<ul>{}</ul>\n", items.concat()));
        }
    }
    let figures = if json["scenario"] == "compare" { " class=\"columns\"" } else { "" };
    add(&mut page, format_args!("<table{figures}>"));
    for (label, value) in &report.table.rows {
        add(&mut page, format_args!("<tr><th>{}</th><td>{}</td></tr>\n", escaped(label), escaped(value)));
    }
    page.push_str("</table>\n<div class=\"plots\">\n");
    for chart in charts(json) {
        add(&mut page, format_args!("<div>{}</div>\n", chart.svg(SIZE.0, SIZE.1)));
    }
    let figures = serde_json::to_string_pretty(&without_series(json)).expect("a JSON value can be written");
    add(
        &mut page,
        format_args!(
            "</div>\n<details><summary>All settings and figures</summary><pre>{}</pre></details>\n</body></html>\n",
            escaped(&figures)
        ),
    );
    page
}

/// The main plot of a report, alone.
pub fn main_plot(report: &Report) -> String {
    charts(&report.json).first().map_or_else(String::new, |chart| chart.svg(SIZE.0, SIZE.1))
}

fn add(page: &mut String, text: std::fmt::Arguments<'_>) {
    page.write_fmt(text).expect("writing to a String cannot fail");
}

fn text(json: &Value, pointer: &str) -> String {
    escaped(json.pointer(pointer).and_then(Value::as_str).unwrap_or("result"))
}

fn without_series(json: &Value) -> Value {
    let mut json = json.clone();
    for pointer in ["", "/before", "/after"] {
        if let Some(Value::Object(object)) = json.pointer_mut(pointer) {
            object.remove("series");
        }
    }
    json
}

/// The plots for a result, the main one first; those without data are left out.
fn charts(json: &Value) -> Vec<Chart> {
    let charts = match json["scenario"].as_str() {
        Some("compare") => of_two(json),
        Some("sweep") => of_sweep(json),
        Some("storm") => of_storm(json),
        Some("soak") => of_soak(json),
        _ => of_run(json),
    };
    charts.into_iter().filter(|chart| chart.lines.iter().any(|line| !line.points.is_empty())).collect()
}

/// One figure of every point of a series, at the end of its time; per second where it is a count.
fn over_time(json: &Value, name: &str, per_second: bool, factor: f64) -> Vec<(f64, f64)> {
    let interval = json["interval_seconds"].as_f64().unwrap_or(1.0);
    let divisor = if per_second { interval } else { 1.0 };
    let points = json["series"].as_array().map_or(&[][..], Vec::as_slice).iter();
    points
        .filter_map(|point| {
            Some((point["second"].as_f64()? + interval, point[name].as_f64()? * factor / divisor))
        })
        .collect()
}

fn percentile_points(json: &Value, kind: &str) -> Vec<(f64, f64)> {
    let points = json["percentiles_ms"][kind].as_array().map_or(&[][..], Vec::as_slice).iter();
    points.filter_map(|point| Some((point[0].as_f64()?, point[1].as_f64()?))).collect()
}

fn timed(title: &str, label: &'static str, scale: Scale, lines: Vec<Line>) -> Chart {
    let labels = ("time since the first message was due (s)", label);
    Chart { title: title.to_owned(), labels, scales: (Scale::Linear, scale), lines, marks: Vec::new() }
}

fn latencies(title: &str, lines: Vec<Line>) -> Chart {
    Chart {
        title: title.to_owned(),
        labels: ("percentile of deliveries", "latency (ms)"),
        scales: (Scale::Percentile, Scale::Log),
        lines,
        marks: Vec::new(),
    }
}

fn of_run(json: &Value) -> Vec<Chart> {
    let kinds =
        [("all", "deliveries"), ("local", "within one server"), ("cross", "across servers"), ("ack", "acks")];
    let by_kind = kinds.iter().map(|(kind, name)| Line::new(name, percentile_points(json, kind))).collect();
    let line = |name: &str, field: &str, per_second| Line::new(name, over_time(json, field, per_second, 1.0));
    let mut title = "Latency from the intended send time".to_owned();
    if let Some(rate) = json["deliveries_per_second"].as_f64() {
        let rate = grouped(rate.round() as u64);
        title.push_str(&format!(", {rate} deliveries/s"));
    }
    let mut charts = vec![
        latencies(&title, by_kind),
        timed(
            "Latency over time",
            "latency of deliveries (ms)",
            Scale::Log,
            vec![
                line("p50", "p50_ms", false),
                line("p99", "p99_ms", false),
                line("slowest", "max_ms", false),
            ],
        ),
        timed(
            "Throughput",
            "per second",
            Scale::Linear,
            vec![line("deliveries", "delivered", true), line("messages sent", "sent", true)],
        ),
    ];
    charts.extend(of_servers(json));
    charts
}

fn of_servers(json: &Value) -> [Chart; 2] {
    let cpu = over_time(json, "server_cpu_percent", false, 1.0);
    let memory = over_time(json, "server_resident_bytes", false, 1e-6);
    [
        timed("Server CPU", "CPU (% of one core)", Scale::Linear, vec![Line::new("CPU", cpu)]),
        timed("Server memory", "resident memory (MB)", Scale::Linear, vec![Line::new("resident", memory)]),
    ]
}

fn of_storm(json: &Value) -> Vec<Chart> {
    let line = |name: &str, field: &str, per_second| Line::new(name, over_time(json, field, per_second, 1.0));
    let connections = vec![line("open", "open", false)];
    let coming = vec![line("ready", "ready", true), line("refused or lost", "refused", true)];
    let mut charts = vec![
        timed("Connections open", "connections", Scale::Linear, connections),
        timed("Connections made", "per second", Scale::Linear, coming),
        Chart {
            labels: ("percentile of clients", "until back in its room (ms)"),
            ..latencies("Time until back", vec![Line::new("clients", percentile_points(json, "all"))])
        },
    ];
    charts.extend(of_servers(json));
    let marks = [("dropped_at_second", "all drop"), ("back_from_second", "all come back")];
    for chart in charts.iter_mut().filter(|chart| chart.scales.0 == Scale::Linear) {
        chart.labels.0 = "time since the first connection (s)";
        chart.marks.extend(
            marks.iter().filter_map(|(field, text)| Some((json[*field].as_f64()?, (*text).to_owned()))),
        );
    }
    charts
}

fn of_soak(json: &Value) -> Vec<Chart> {
    let line = |name: &str, field: &str, per_second| Line::new(name, over_time(json, field, per_second, 1.0));
    let recoveries = json["recoveries"].as_array().map_or(&[][..], Vec::as_slice).iter();
    // A log scale has no place for what took less than a millisecond.
    let recoveries = recoveries.filter_map(|point| Some((point[0].as_f64()?, point[1].as_f64()?.max(1.0))));
    let messages = vec![
        line("deliveries", "delivered", true),
        line("acknowledged", "acked", true),
        line("sent", "sent", true),
    ];
    let mut charts = vec![
        timed("Throughput", "per second", Scale::Linear, messages),
        timed(
            "From the end of each fault until all members were current",
            "latency (ms)",
            Scale::Log,
            vec![Line::new("until current", recoveries.collect())],
        ),
        timed("Clients with a connection", "connections", Scale::Linear, vec![line("open", "open", false)]),
    ];
    charts.iter_mut().for_each(|chart| chart.labels.0 = "time since the run began (s)");
    charts
}

fn of_sweep(json: &Value) -> Vec<Chart> {
    let mut steps: Vec<&Value> =
        json["steps"].as_array().map_or_else(Vec::new, |steps| steps.iter().collect());
    // What an overloaded server delivers says nothing about where on the axis it belongs: only what was asked does.
    steps.sort_by(|one, other| {
        one["rate"].as_f64().unwrap_or(0.0).total_cmp(&other["rate"].as_f64().unwrap_or(0.0))
    });
    let against_rate = |pointer: &str, reached_only: bool| -> Vec<(f64, f64)> {
        let chosen = steps.iter().filter(|step| !reached_only || step["reached"] == true);
        chosen.filter_map(|step| Some((step["rate"].as_f64()?, step.pointer(pointer)?.as_f64()?))).collect()
    };
    let goal = json["p99_goal_ms"].as_f64();
    let ends =
        steps.first().zip(steps.last()).and_then(|(a, b)| Some((a["rate"].as_f64()?, b["rate"].as_f64()?)));
    let goal = goal.zip(ends).map_or_else(Vec::new, |(goal, (from, to))| vec![(from, goal), (to, goal)]);
    let highest = json["highest_rate"].as_f64();
    let delivered = json["highest_deliveries_per_second"].as_f64().map(|rate| grouped(rate.round() as u64));
    let mark = highest.zip(delivered);
    let mark = mark.map(|(rate, delivered)| (rate, format!("highest: {delivered} deliveries/s")));
    let marks: Vec<_> = mark.into_iter().collect();
    let chart = |title: &str, label, scale, lines| Chart {
        title: title.to_owned(),
        labels: ("messages per second", label),
        scales: (Scale::Log, scale),
        lines,
        marks: marks.clone(),
    };
    vec![
        chart(
            "Latency by rate",
            "latency (ms)",
            Scale::Log,
            vec![
                Line::new("p50", against_rate("/latency_ms/p50", false)),
                Line::new("p99", against_rate("/latency_ms/p99", false)),
                Line::new("goal for the p99", goal),
            ],
        ),
        chart(
            "Deliveries by rate",
            "deliveries per second",
            Scale::Log,
            vec![Line::new("deliveries", against_rate("/deliveries_per_second", false))],
        ),
        chart(
            "CPU by rate",
            "CPU (% of one core)",
            Scale::Linear,
            vec![
                Line::new("server", against_rate("/server/cpu_percent", false)),
                Line::new("generator", against_rate("/generator/cpu_percent", false)),
            ],
        ),
        chart(
            "CPU per delivery, of the rates reached",
            "server CPU per delivery (µs)",
            Scale::Log,
            vec![Line::new("CPU per delivery", against_rate("/server/cpu_us_per_delivery", true))],
        ),
    ]
}

fn of_two(json: &Value) -> Vec<Chart> {
    let both = |points: &dyn Fn(&Value) -> Vec<(f64, f64)>| {
        ["before", "after"].iter().map(|side| Line::new(side, points(&json[*side]))).collect::<Vec<_>>()
    };
    let series = |name: &'static str, per_second| move |side: &Value| over_time(side, name, per_second, 1.0);
    vec![
        latencies("Latency from the intended send time", both(&|side| percentile_points(side, "all"))),
        timed("p99 over time", "p99 of deliveries (ms)", Scale::Log, both(&series("p99_ms", false))),
        timed("Throughput", "deliveries per second", Scale::Linear, both(&series("delivered", true))),
        timed("Server CPU", "CPU (% of one core)", Scale::Linear, both(&series("server_cpu_percent", false))),
        timed(
            "Server memory",
            "resident memory (MB)",
            Scale::Linear,
            both(&|side| over_time(side, "server_resident_bytes", false, 1e-6)),
        ),
    ]
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::report::Table;
    use serde_json::json;

    fn report() -> Report {
        let point = |second: f64| json!({"second": second, "sent": 10, "delivered": 90, "p50_ms": 0.2, "p99_ms": 1.0, "max_ms": 3.0});
        let json = json!({
            "scenario": "rooms",
            "origin": {"command": "loadtest rooms <x>", "finished_at": "t", "machine": "m"},
            "percentiles_ms": {"all": [[0.0, 0.1], [99.0, 1.0]]},
            "interval_seconds": 1.0,
            "series": [point(0.0), point(1.0)],
        });
        let mut table = Table::default();
        table.row("lost", "0 <all>");
        Report { json, table, problems: vec!["a & b".to_owned()], warnings: Vec::new() }
    }

    #[test]
    fn a_page_needs_nothing_from_elsewhere_and_escapes_what_it_shows() {
        let page = page(&report());
        for outside in ["<script", "<link", "src=", "href=", "url(", "@import"] {
            assert!(!page.contains(outside), "{outside}");
        }
        assert!(page.contains("0 &lt;all&gt;") && page.contains("a &amp; b") && page.contains("failed"));
        // Without process numbers there are no plots of the servers.
        assert_eq!(page.matches("<svg").count(), 3);
    }

    #[test]
    fn a_soak_shows_its_messages_and_how_soon_all_were_current_after_each_fault() {
        let point =
            |second: f64| json!({"second": second, "sent": 5, "acked": 4, "delivered": 90, "open": 30});
        let json = json!({
            "scenario": "soak",
            "interval_seconds": 1.0,
            "series": [point(0.0), point(1.0)],
            "recoveries": [[0.5, 0], [1.5, 320]],
        });
        let report = Report { json, table: Table::default(), problems: Vec::new(), warnings: Vec::new() };
        let page = page(&report);
        assert_eq!(page.matches("<svg").count(), 3);
        for shown in ["loadtest soak", "Throughput", "until current", "Clients with a connection"] {
            assert!(page.contains(shown), "{shown}");
        }
    }

    #[test]
    fn the_main_plot_is_that_of_latencies() {
        assert!(main_plot(&report()).contains("Latency from the intended send time"));
    }
}
