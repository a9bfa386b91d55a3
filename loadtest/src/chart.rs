//! Line charts as SVG: no script, no network, legible on light and on dark ground.

use std::fmt::Write;

/// Colours of lines, told apart on white and on black, with red and green not side by side.
const COLOURS: [&str; 5] = ["#2f81f7", "#e36209", "#8957e5", "#2da44e", "#bf3989"];

/// Space around the plot, in pixels: for the title and the legend, the labels of the axes, the last tick's label.
const TOP: f64 = 52.0;
const BOTTOM: f64 = 44.0;
const LEFT: f64 = 70.0;
const RIGHT: f64 = 26.0;

/// Width of a letter of the legend, at most, in pixels.
const LETTER: f64 = 6.6;

const STYLE: &str = "text{font:12px system-ui,-apple-system,'Segoe UI',sans-serif;fill:#7d8590}\
    .title{font-size:14px;font-weight:600}.axis{font-size:11px}\
    .grid{stroke:#808080;stroke-opacity:.22;stroke-width:1}.frame{stroke:#808080;stroke-opacity:.6;fill:none}\
    .line{fill:none;stroke-width:2;stroke-linejoin:round}.mark{stroke:#7d8590;stroke-dasharray:4 3}";

/// How numbers become places along an axis.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Scale {
    /// Evenly, from 0.
    Linear,
    /// Each factor alike; numbers must be above 0.
    Log,
    /// Percentiles from 0 up to below 100: each further nine takes the same room.
    Percentile,
}

/// One line.
pub struct Line {
    /// What the legend says.
    pub name: String,
    /// The points, from left to right.
    pub points: Vec<(f64, f64)>,
}

impl Line {
    /// A line with a name.
    pub fn new(name: &str, points: Vec<(f64, f64)>) -> Self {
        Self { name: name.to_owned(), points }
    }
}

/// A chart.
pub struct Chart {
    /// What it shows.
    pub title: String,
    /// What the axes show, with units: across and up.
    pub labels: (&'static str, &'static str),
    /// The axes' scales: across and up.
    pub scales: (Scale, Scale),
    /// The lines; empty ones are left out.
    pub lines: Vec<Line>,
    /// Vertical marks: where, and what they say.
    pub marks: Vec<(f64, String)>,
}

impl Scale {
    /// The place of a number, before it is fitted to the axis; `None` if it has none.
    fn place(self, number: f64) -> Option<f64> {
        let place = match self {
            Self::Linear => number,
            Self::Log => number.log10(),
            Self::Percentile => -(1.0 - number / 100.0).log10(),
        };
        place.is_finite().then_some(place)
    }

    /// The numbers to label between two, and the ends of the axis.
    fn ticks(self, low: f64, high: f64) -> (Vec<f64>, f64, f64) {
        match self {
            Self::Linear => {
                let step = step_of(high.max(f64::MIN_POSITIVE) / 5.0);
                let count = (high / step - 1e-9).ceil().max(1.0);
                ((0..=count as u32).map(|tick| f64::from(tick) * step).collect(), 0.0, count * step)
            }
            Self::Log => {
                let (first, last) = (low.log10().floor() as i32, high.log10().ceil() as i32);
                let last = last.max(first + 1);
                let within: &[f64] = if last - first <= 2 { &[1.0, 2.0, 5.0] } else { &[1.0] };
                let all =
                    (first..=last).flat_map(|decade| within.iter().map(move |n| n * 10_f64.powi(decade)));
                let all: Vec<f64> = all.collect();
                // The ticks from the last one below the numbers to the first one above.
                let from = all.iter().rposition(|tick| *tick <= low * 1.001).unwrap_or(0);
                let to = all.iter().position(|tick| *tick >= high * 0.999).unwrap_or(all.len() - 1);
                let to = to.max(from + 1).min(all.len() - 1);
                (all[from..=to].to_vec(), all[from], all[to])
            }
            Self::Percentile => {
                let all = [0.0, 50.0, 90.0, 99.0, 99.9, 99.99, 99.999, 99.9999];
                let end = high.max(90.0);
                (all.into_iter().filter(|tick| *tick <= end + 1e-9).collect(), 0.0, end)
            }
        }
    }
}

/// The step of 1, 2 or 5 times a power of ten that is at least `wanted`.
fn step_of(wanted: f64) -> f64 {
    let power = 10_f64.powf(wanted.log10().floor());
    [1.0, 2.0, 5.0, 10.0]
        .into_iter()
        .map(|factor| factor * power)
        .find(|step| *step >= wanted * 0.999)
        .unwrap_or(power)
}

/// A number as a tick's label: no more digits than it needs.
fn tick_label(number: f64, scale: Scale) -> String {
    if scale == Scale::Percentile {
        return format!("{number} %");
    }
    let (value, unit) = match number.abs() {
        large if large >= 1e9 => (number / 1e9, "G"),
        large if large >= 1e6 => (number / 1e6, "M"),
        large if large >= 1e4 => (number / 1e3, "k"),
        _ => (number, ""),
    };
    // Steps of 0.1 add up to numbers with many digits that mean nothing.
    format!("{}{unit}", (value * 1e6).round() / 1e6)
}

/// Text inside SVG or HTML.
pub fn escaped(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;").replace('"', "&quot;")
}

/// An axis: from numbers to pixels.
struct Axis {
    scale: Scale,
    ticks: Vec<f64>,
    from: f64,
    span: f64,
    start: f64,
    pixels: f64,
}

impl Axis {
    fn new(scale: Scale, numbers: impl Iterator<Item = f64>, start: f64, pixels: f64) -> Self {
        let (low, high) = numbers
            .filter(|number| scale.place(*number).is_some())
            .fold((f64::INFINITY, f64::NEG_INFINITY), |(low, high), number| {
                (low.min(number), high.max(number))
            });
        let (low, high) = if low.is_finite() { (low, high) } else { (1.0, 10.0) };
        let (ticks, low, high) = scale.ticks(low, high);
        let (from, to) = (scale.place(low).unwrap_or(0.0), scale.place(high).unwrap_or(1.0));
        let span = if to > from { to - from } else { 1.0 };
        Self { scale, ticks, from, span, start, pixels }
    }

    fn pixel(&self, number: f64) -> Option<f64> {
        let place = (self.scale.place(number)? - self.from) / self.span;
        Some(self.start + self.pixels * place.clamp(0.0, 1.0))
    }
}

impl Chart {
    /// The chart as an SVG element.
    pub fn svg(&self, width: f64, height: f64) -> String {
        let lines: Vec<&Line> = self.lines.iter().filter(|line| !line.points.is_empty()).collect();
        let points = || lines.iter().flat_map(|line| line.points.iter());
        let across = Axis::new(self.scales.0, points().map(|point| point.0), LEFT, width - LEFT - RIGHT);
        let bottom = height - BOTTOM;
        let up = Axis::new(self.scales.1, points().map(|point| point.1), bottom, TOP - bottom);
        let mut svg = format!(
            r#"<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" width="{width}" height="{height}" role="img"><style>{STYLE}</style><title>{}</title><text class="title" x="{LEFT}" y="18">{}</text>"#,
            escaped(&self.title),
            escaped(&self.title)
        );
        self.write_grid(&mut svg, &across, &up, width, height);
        for (mark, text) in &self.marks {
            let Some(x) = across.pixel(*mark) else { continue };
            let (end, anchor) = if x > width * 0.55 { (x - 5.0, "end") } else { (x + 5.0, "start") };
            write_to(
                &mut svg,
                format_args!(
                    r#"<line class="mark" x1="{x:.1}" x2="{x:.1}" y1="{TOP}" y2="{bottom}"/><text class="axis" x="{end:.1}" y="{}" text-anchor="{anchor}">{}</text>"#,
                    TOP + 12.0,
                    escaped(text)
                ),
            );
        }
        for (place, line) in lines.iter().enumerate() {
            write_line(&mut svg, line, COLOURS[place % COLOURS.len()], &across, &up);
        }
        write_legend(&mut svg, &lines, width);
        svg.push_str("</svg>\n");
        svg
    }

    fn write_grid(&self, svg: &mut String, across: &Axis, up: &Axis, width: f64, height: f64) {
        let (right, bottom) = (width - RIGHT, height - BOTTOM);
        for tick in &across.ticks {
            let Some(x) = across.pixel(*tick) else { continue };
            write_to(
                svg,
                format_args!(
                    r#"<line class="grid" x1="{x:.1}" x2="{x:.1}" y1="{TOP}" y2="{bottom}"/><text class="axis" x="{x:.1}" y="{}" text-anchor="middle">{}</text>"#,
                    bottom + 15.0,
                    tick_label(*tick, across.scale)
                ),
            );
        }
        for tick in &up.ticks {
            let Some(y) = up.pixel(*tick) else { continue };
            write_to(
                svg,
                format_args!(
                    r#"<line class="grid" x1="{LEFT}" x2="{right}" y1="{y:.1}" y2="{y:.1}"/><text class="axis" x="{}" y="{:.1}" text-anchor="end">{}</text>"#,
                    LEFT - 7.0,
                    y + 4.0,
                    tick_label(*tick, up.scale)
                ),
            );
        }
        let middle = (TOP + bottom) / 2.0;
        write_to(
            svg,
            format_args!(
                r#"<path class="frame" d="M{LEFT} {TOP}V{bottom}H{right}"/><text class="axis" x="{}" y="{}" text-anchor="middle">{}</text><text class="axis" transform="translate(15 {middle}) rotate(-90)" text-anchor="middle">{}</text>"#,
                (LEFT + right) / 2.0,
                height - 9.0,
                escaped(self.labels.0),
                escaped(self.labels.1)
            ),
        );
    }
}

fn write_to(svg: &mut String, text: std::fmt::Arguments<'_>) {
    svg.write_fmt(text).expect("writing to a String cannot fail");
}

fn write_line(svg: &mut String, line: &Line, colour: &str, across: &Axis, up: &Axis) {
    let places = line.points.iter().filter_map(|(x, y)| Some((across.pixel(*x)?, up.pixel(*y)?)));
    let mut path = String::new();
    for (place, (x, y)) in places.clone().enumerate() {
        let command = if place == 0 { 'M' } else { 'L' };
        write_to(&mut path, format_args!("{command}{x:.1} {y:.1}"));
    }
    write_to(svg, format_args!(r#"<path class="line" stroke="{colour}" d="{path}"/>"#));
    // A line of one point is none, and few points are worth seeing.
    if line.points.len() <= 40 {
        for (x, y) in places {
            write_to(svg, format_args!(r#"<circle cx="{x:.1}" cy="{y:.1}" r="3" fill="{colour}"/>"#));
        }
    }
}

fn write_legend(svg: &mut String, lines: &[&Line], width: f64) {
    let mut x = LEFT;
    for (place, line) in lines.iter().enumerate() {
        let colour = COLOURS[place % COLOURS.len()];
        write_to(
            svg,
            format_args!(
                r#"<rect x="{x:.1}" y="31" width="14" height="4" rx="2" fill="{colour}"/><text x="{:.1}" y="38">{}</text>"#,
                x + 19.0,
                escaped(&line.name)
            ),
        );
        x += 36.0 + line.name.chars().count() as f64 * LETTER;
        if x > width {
            break;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_nine_takes_the_same_room() {
        let places: Vec<f64> =
            [0.0, 90.0, 99.0, 99.9].iter().map(|p| Scale::Percentile.place(*p).unwrap()).collect();
        for (found, right) in places.iter().zip([0.0, 1.0, 2.0, 3.0]) {
            assert!((found - right).abs() < 1e-9, "{places:?}");
        }
        assert_eq!(Scale::Percentile.place(100.0), None);
    }

    #[test]
    fn ticks_enclose_the_numbers_in_round_steps() {
        assert_eq!(Scale::Linear.ticks(3.0, 47.0), (vec![0.0, 10.0, 20.0, 30.0, 40.0, 50.0], 0.0, 50.0));
        assert_eq!(Scale::Log.ticks(0.3, 700.0).1, 0.1);
        assert_eq!(Scale::Log.ticks(0.3, 700.0).0, [0.1, 1.0, 10.0, 100.0, 1_000.0]);
        assert_eq!(tick_label(1_250_000.0, Scale::Linear), "1.25M");
        assert_eq!(tick_label(0.1 + 0.2, Scale::Linear), "0.3");
    }

    #[test]
    fn a_chart_is_well_formed_and_stays_inside_its_frame() {
        let chart = Chart {
            title: "a < b & c".to_owned(),
            labels: ("x (s)", "y (ms)"),
            scales: (Scale::Linear, Scale::Log),
            lines: vec![
                Line::new("\"p50\"", vec![(0.0, 0.5), (1.0, 20.0), (2.0, 0.0)]),
                Line::new("none", vec![]),
            ],
            marks: vec![(1.0, "here".to_owned())],
        };
        let svg = chart.svg(600.0, 300.0);
        assert!(svg.contains("a &lt; b &amp; c") && svg.contains("&quot;p50&quot;"));
        assert!(!svg.contains("none<") && !svg.contains("NaN") && !svg.contains("inf"));
        assert_eq!(svg.matches("<text").count(), svg.matches("</text>").count());
        assert!(svg.starts_with("<svg") && svg.trim_end().ends_with("</svg>"));
    }
}
