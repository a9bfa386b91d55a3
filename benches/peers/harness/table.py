"""The table, in Markdown."""

from .summary import targets

# Figures as columns: name, heading, decimals.
COLUMNS = [
    ("deliveries_per_second", "deliveries/s", 0),
    ("cpu_percent", "CPU, % of a core", 0),
    ("cpu_us_per_delivery", "CPU µs per delivery", 2),
    ("p50_ms", "p50 ms", 1),
    ("p99_ms", "p99 ms", 1),
]

# Figures that only some scenarios have, as text: name, text around the number, decimals.
OTHERS = [
    ("bytes_per_connection", "{} bytes per connection", 0),
    ("connections_per_second", "{} connections/s", 0),
    ("cpu_us_per_connection", "{} µs of CPU per connection", 0),
    ("redis_cpu_us_per_message", "Redis: {} µs of CPU,", 1),
    ("redis_input_bytes_per_message", "{} bytes in,", 0),
    ("redis_output_bytes_per_message", "{} bytes out per message", 0),
    ("bytes_per_delivery", "{} bytes per delivery", 0),
    ("huge_room_p99_ms", "huge room's p99 {} ms", 1),
    ("highest_rate", "**{} deliveries/s**", 0),
]


def _number(value, decimals):
    return "" if value is None else f"{value:,.{decimals}f}"


def _also(figures):
    parts = [text.format(_number(figures[name], d)) for name, text, d in OTHERS if figures.get(name) is not None]
    text = " · ".join(parts).replace(", · ", ", ")
    if figures.get("generator_bound"):
        text += " or more: the generator was at its limit"
    problems = figures.get("problems", [])
    if problems:
        text += f"{' · ' if text else ''}{'; '.join(problems)}"
    elif figures.get("kept_up") is False:
        text += f"{' · ' if text else ''}did not keep up"
    return text


def head():
    """The lines above the rows."""
    headings = ["load", "server", *(heading for _, heading, _ in COLUMNS), "also"]
    return [f"| {' | '.join(headings)} |", "|---|---|" + "--:|" * len(COLUMNS) + "---|"]


def row(title, label, figures):
    """A line of the table: one server under one load."""
    if "failed" in figures:
        cells = [""] * len(COLUMNS) + [f"not measured: {figures['failed']}"]
    else:
        cells = [_number(figures.get(name), decimals) for name, _, decimals in COLUMNS] + [_also(figures)]
    escaped = (cell.replace("|", "\\|").replace("\n", " ") for cell in [title, label, *cells])
    return f"| {' | '.join(escaped)} |"


def _figures_table(scenarios, figures):
    lines = head()
    for scenario in scenarios:
        title = scenario.title
        for peer in scenario.peers:
            if peer.name in figures.get(scenario.name, {}):
                lines.append(row(title, peer.label, figures[scenario.name][peer.name]))
                title = ""
    return lines


def _targets_table(figures):
    lines = ["| measure | has to be | is | reached |", "|---|---|--:|---|"]
    for target in targets(figures):
        reached = _number(target.reached, 2 if target.limit <= 10 else 0)
        lines.append(f"| {target.measure} | {target.demand} | {reached} | {target.verdict} |")
    return lines


def markdown(scenarios, figures, notes):
    """The whole page; `figures` are medians by scenario and peer, `notes` say how they were made."""
    parts = [
        ["# Side by side"],
        [f"- {note}" for note in notes],
        _figures_table(scenarios, figures),
        ["## What TableForge has to reach"],
        _targets_table(figures),
    ]
    return "\n\n".join("\n".join(lines) for lines in parts) + "\n"
