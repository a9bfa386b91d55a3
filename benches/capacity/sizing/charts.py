"""Line charts as SVG, legible on light and on dark ground."""

import math
from dataclasses import dataclass, field
from html import escape

COLOURS = ["#2f81f7", "#e36209", "#8957e5", "#2da44e", "#bf3989"]
WIDTH, HEIGHT = 720, 320
TOP, BOTTOM, LEFT, RIGHT = 52, 44, 70, 26
STYLE = (
    "text{font:12px system-ui,-apple-system,'Segoe UI',sans-serif;fill:#7d8590}"
    ".title{font-size:14px;font-weight:600}.axis{font-size:11px}"
    ".grid{stroke:#808080;stroke-opacity:.22}.frame{stroke:#808080;stroke-opacity:.6;fill:none}"
    ".line{fill:none;stroke-width:2;stroke-linejoin:round}.dashed{stroke-dasharray:5 4}"
)


@dataclass
class Line:
    """One line; `points` are pairs from left to right."""

    name: str
    points: list
    dashed: bool = False


@dataclass
class Chart:
    """A chart; `across` and `up` say what the axes show, with units."""

    title: str
    across: str
    up: str
    lines: list
    log_across: bool = False
    log_up: bool = False
    marks: list = field(default_factory=list)

    def svg(self):
        """The chart as a file of its own."""
        lines = [Line(l.name, [p for p in l.points if _placed(p, self)], l.dashed) for l in self.lines]
        lines = [line for line in lines if line.points]
        points = [point for line in lines for point in line.points] or [(1, 1)]
        across = _Axis([x for x, _ in points], self.log_across, LEFT, WIDTH - LEFT - RIGHT)
        up = _Axis([y for _, y in points], self.log_up, HEIGHT - BOTTOM, TOP + BOTTOM - HEIGHT)
        parts = [
            f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}" width="{WIDTH}" role="img">',
            f"<style>{STYLE}</style><title>{escape(self.title)}</title>",
            f'<text class="title" x="{LEFT}" y="18">{escape(self.title)}</text>',
            *self._grid(across, up),
        ]
        x = LEFT
        for place, line in enumerate(lines):
            colour = COLOURS[place % len(COLOURS)]
            dashed = " dashed" if line.dashed else ""
            path = "L".join(f"{across.pixel(a):.1f} {up.pixel(b):.1f}" for a, b in line.points)
            parts.append(f'<path class="line{dashed}" stroke="{colour}" d="M{path}"/>')
            if not line.dashed and len(line.points) <= 40:
                parts += [
                    f'<circle cx="{across.pixel(a):.1f}" cy="{up.pixel(b):.1f}" r="3" fill="{colour}"/>'
                    for a, b in line.points
                ]
            parts.append(f'<rect x="{x}" y="31" width="14" height="4" rx="2" fill="{colour}"/>')
            parts.append(f'<text x="{x + 19}" y="38">{escape(line.name)}</text>')
            x += 36 + 6.6 * len(line.name)
        return "\n".join([*parts, "</svg>", ""])

    def _grid(self, across, up):
        right, bottom = WIDTH - RIGHT, HEIGHT - BOTTOM
        for tick in across.ticks:
            x = across.pixel(tick)
            yield f'<line class="grid" x1="{x:.1f}" x2="{x:.1f}" y1="{TOP}" y2="{bottom}"/>'
            yield f'<text class="axis" x="{x:.1f}" y="{bottom + 15}" text-anchor="middle">{_label(tick)}</text>'
        for tick in up.ticks:
            y = up.pixel(tick)
            yield f'<line class="grid" x1="{LEFT}" x2="{right}" y1="{y:.1f}" y2="{y:.1f}"/>'
            yield f'<text class="axis" x="{LEFT - 7}" y="{y + 4:.1f}" text-anchor="end">{_label(tick)}</text>'
        for mark, text in self.marks:
            x = across.pixel(mark)
            yield f'<line class="frame dashed" x1="{x:.1f}" x2="{x:.1f}" y1="{TOP}" y2="{bottom}"/>'
            yield f'<text class="axis" x="{x + 5:.1f}" y="{TOP + 12}">{escape(text)}</text>'
        middle = (TOP + bottom) / 2
        yield f'<path class="frame" d="M{LEFT} {TOP}V{bottom}H{right}"/>'
        yield f'<text class="axis" x="{(LEFT + right) / 2}" y="{HEIGHT - 9}" text-anchor="middle">{escape(self.across)}</text>'
        yield (
            f'<text class="axis" transform="translate(15 {middle}) rotate(-90)" text-anchor="middle">'
            f"{escape(self.up)}</text>"
        )


def _placed(point, chart):
    x, y = point
    known = x is not None and y is not None
    return known and (x > 0 or not chart.log_across) and (y > 0 or not chart.log_up)


class _Axis:
    """From numbers to pixels."""

    def __init__(self, numbers, log, start, pixels):
        self._log, self._start, self._pixels = log, start, pixels
        if log:
            first = math.floor(math.log10(min(numbers)) + 1e-9)
            last = max(math.ceil(math.log10(max(numbers)) - 1e-9), first + 1)
            within = (1, 2, 5) if last - first <= 2 else (1,)
            self.ticks = [n * 10.0**d for d in range(first, last + 1) for n in within if n * 10.0**d <= 10.0**last]
            self._from, self._to = first, last
        else:
            step = _step(max(max(numbers), 1e-9) / 5)
            count = max(math.ceil(max(numbers) / step - 1e-9), 1)
            self.ticks = [step * tick for tick in range(count + 1)]
            self._from, self._to = 0, step * count

    def pixel(self, number):
        """The place of a number."""
        place = math.log10(number) if self._log else number
        return self._start + self._pixels * min(max((place - self._from) / (self._to - self._from), 0), 1)


def _step(wanted):
    power = 10.0 ** math.floor(math.log10(wanted))
    return next(factor * power for factor in (1, 2, 5, 10) if factor * power >= wanted * 0.999)


def _label(number):
    for limit, divisor, unit in ((1e9, 1e9, "G"), (1e6, 1e6, "M"), (1e4, 1e3, "k")):
        if abs(number) >= limit:
            return f"{number / divisor:g}{unit}"
    return f"{number:.6g}"
