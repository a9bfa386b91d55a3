"""The plot: bars in small panels, as SVG."""

from html import escape

# Scenario, figure, what the panel says, decimals, whether more is better.
PANELS = [
    ("fan-out-400k", "cpu_us_per_delivery", "CPU per delivery, 400,000 deliveries/s (µs)", 2, False),
    ("highest", "highest_rate", "Highest rate, p99 ≤ 50 ms (deliveries/s)", 0, True),
    ("fan-out-50k", "cpu_us_per_delivery", "CPU per delivery, 50,000 deliveries/s (µs)", 2, False),
    ("fan-out-50k", "p50_ms", "p50, 50,000 deliveries/s (ms)", 2, False),
    ("game-night-4k", "cpu_us_per_delivery", "CPU per delivery, rooms of 5, 4,000 messages/s (µs)", 1, False),
    ("game-night-10k", "cpu_us_per_delivery", "CPU per delivery, rooms of 5, 10,000 messages/s (µs)", 1, False),
    ("idle", "bytes_per_connection", "Resident memory per idle connection (bytes)", 0, False),
    ("idle", "connections_per_second", "Connections accepted and joined per second", 0, True),
    ("huge-room", "p99_ms", "p99 of small rooms beside a room of 10,000 (ms)", 1, False),
    ("deflate", "cpu_us_per_delivery", "CPU per delivery of 1 KiB, plain and compressed (µs)", 2, False),
    ("shards", "cpu_us_per_delivery", "CPU per delivery, 1 and 2 shards (µs)", 2, False),
    ("two-instances-3k", "redis_cpu_us_per_message", "Redis CPU per message, 3,000 messages/s (µs)", 1, False),
    ("two-instances-20k", "redis_cpu_us_per_message", "Redis CPU per message, 20,000 messages/s (µs)", 1, False),
]

PANEL_WIDTH, GAP, LABELS, VALUES = 460, 28, 176, 92
BAR, STEP, HEADING = 14, 21, 30
STYLE = """
  text { font: 12px system-ui, sans-serif; fill: #24292f }
  .title { font-weight: 600 } .note { fill: #57606a; font-size: 11px }
  .own { fill: #0b6bcb } .other { fill: #a8b3bf } .behind { fill-opacity: .4 }
  .page { fill: #fff }
"""


def _bars(panel, rows):
    """The bars of one panel, from its own origin."""
    _, _, title, decimals, more = panel
    better = "more is better" if more else "less is better"
    lines = [f'<text class="title" y="12">{escape(title)}</text>', f'<text class="note" y="25">{better}</text>']
    longest = max(value for _, value, _ in rows) or 1
    room = PANEL_WIDTH - LABELS - VALUES
    for place, (label, value, kept_up) in enumerate(rows):
        top = HEADING + place * STEP
        kind = "own" if label.startswith("TableForge") else "other"
        width = max(room * value / longest, 1)
        behind, note = ("", "") if kept_up else (" behind", " (behind)")
        lines += [
            f'<text x="{LABELS - 8}" y="{top + 11}" text-anchor="end">{escape(label)}</text>',
            f'<rect class="{kind}{behind}" x="{LABELS}" y="{top}" width="{width:.1f}" height="{BAR}" rx="2"/>',
            f'<text x="{LABELS + width + 6:.1f}" y="{top + 11}">{value:,.{decimals}f}{note}</text>',
        ]
    return lines


def _rows(panel, scenarios, figures):
    scenario = next(scenario for scenario in scenarios if scenario.name == panel[0])
    measured = figures.get(scenario.name, {})
    rows = [(peer.label, measured.get(peer.name, {})) for peer in scenario.peers]
    return [(label, of[panel[1]], of.get("kept_up", True)) for label, of in rows if of.get(panel[1]) is not None]


def svg(scenarios, figures):
    """The whole plot; `figures` are medians by scenario and peer."""
    panels = [(panel, rows) for panel in PANELS if (rows := _rows(panel, scenarios, figures))]
    tallest = max((len(rows) for _, rows in panels), default=0)
    height = HEADING + tallest * STEP + GAP
    lines = []
    for place, (panel, rows) in enumerate(panels):
        x, y = GAP + place % 2 * (PANEL_WIDTH + GAP), GAP + place // 2 * height
        lines += [f'<g transform="translate({x} {y})">', *_bars(panel, rows), "</g>"]
    size = 3 * GAP + 2 * PANEL_WIDTH, 2 * GAP + (len(panels) + 1) // 2 * height
    note = "behind: lost or late deliveries; its figures are those of what it could do"
    return "\n".join(
        [
            f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {size[0]} {size[1]}" width="{size[0]}">',
            f"<style>{STYLE}</style>",
            f'<rect class="page" width="{size[0]}" height="{size[1]}"/>',
            *lines,
            f'<text class="note" x="{GAP}" y="{size[1] - 12}">{note}</text>',
            "</svg>",
            "",
        ]
    )
