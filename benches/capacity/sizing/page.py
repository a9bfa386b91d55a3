"""What the measurements come to: tables, plots, the model and its predictions, as the generated part of
docs/capacity.md."""

from .charts import Chart, Line
from .model import UTILISATION, core_deliveries, cpu_model, instances_of_a_room, machine, memory_model
from .model import redis_limit, redis_model, steps
from .series import GOAL_MS

BEGIN, END = "<!-- measured: begin -->", "<!-- measured: end -->"

# The machine and the cluster that are predicted.
CORES, MEMORY_BYTES, CLUSTER = 32, 64 * 2**30, 20
# The most that WS_MAX_CONNECTIONS takes.
MOST_CONNECTIONS = 10_000_000
# A step between neighbours that has to be explained: so many times as much.
STEP = 1.6


def fitted(found):
    """All models that the measurements suffice for."""
    fan_out = [run for name in ("senders", "rooms", "payloads", "rates") for run in _made(found, name)]
    models = {}
    for name, runs, model, least in (
        ("cpu", fan_out, cpu_model, 5),
        ("memory", _made(found, "connections"), memory_model, 5),
        ("redis", _made(found, "instances"), redis_model, 4),
    ):
        if len(runs) >= least:
            fit = model(runs)
            if fit["runs"] >= least:
                models[name] = fit
    return models


def _made(found, name):
    return [run for run in found.get(name, []) if "failed" not in run]


def _number(value, decimals=0):
    return "" if value is None else f"{value:,.{decimals}f}"


def _table(headings, rows):
    lines = [f"| {' | '.join(headings)} |", "|" + "--:|" * len(headings)]
    return lines + [f"| {' | '.join(row)} |" for row in rows]


def _cost(run, per="deliveries_per_second", of="cpu_seconds_per_second"):
    return run[of] * 1e6 / run[per] if run.get(per) and run.get(of) is not None else None


def _sends(run):
    sends = run.get("sends_per_second")
    return sends / run["deliveries_per_second"] if sends is not None and run["deliveries_per_second"] else None


def _note(run):
    if run.get("problems"):
        return "; ".join(run["problems"])
    return "" if run.get("kept_up", True) else "did not keep up"


def _failures(found, name):
    return [f"Not measured: {run['failed'].splitlines()[0]}" for run in found.get(name, []) if "failed" in run]


def _connections(found):
    runs = _made(found, "connections")
    if not runs:
        return []
    rows = [
        [
            _number(run["connections"]),
            "in none" if not run["room"] else f"of {run['room']:,}",
            _number(run["bytes_per_connection"]),
            _number(run["kernel_bytes_per_connection"]),
            _number(run["cpu_us_per_ping"], 1),
            _number(run["cpu_us_per_accept"], 1),
            _number(run["connects_per_second"]),
            _note(run),
        ]
        for run in runs
    ]
    headings = [
        "idle connections",
        "rooms",
        "resident bytes each",
        "kernel bytes each, both ends",
        "CPU µs per ping",
        "CPU µs to accept and join",
        "accepted and joined per second",
        "",
    ]
    return ["### Connections", "![memory](capacity/memory.svg)", "\n".join(_table(headings, rows))]


def _fan_out(found, name, title, picture, column, value):
    runs = _made(found, name)
    if not runs:
        return []
    rows = [
        [
            value(run),
            _number(run["messages_per_second"]),
            _number(run["deliveries_per_second"]),
            _number(run["bytes_per_delivery"]),
            _number(run["cpu_seconds_per_second"] * 100, 1),
            _number(_cost(run), 2),
            _number(_cost(run, "messages_per_second"), 1),
            _number(_sends(run), 3),
            _number(run["p50_ms"], 2),
            _number(run["p99_ms"], 2),
            _number(run["resident_bytes"] / 1e6, 1),
            _note(run),
        ]
        for run in runs
    ]
    headings = [
        column,
        "messages/s",
        "deliveries/s",
        "bytes each",
        "CPU, % of a core",
        "CPU µs per delivery",
        "CPU µs per message",
        "sends per delivery",
        "p50 ms",
        "p99 ms",
        "resident MB",
        "",
    ]
    return [f"### {title}", f"![{name}](capacity/{picture}.svg)", "\n".join(_table(headings, rows))]


def _instances(found):
    runs = _made(found, "instances")
    if not runs:
        return []
    rows = []
    for run in runs:
        messages = run["messages_per_second"]
        per = lambda name: (run[name] / messages) if run.get(name) is not None else None  # noqa: E731
        cpu = run.get("redis_cpu_seconds_per_second")
        rows.append(
            [
                str(run["instances"]),
                _number(messages),
                _number(run["payload"]),
                _number(_cost(run), 2),
                _number(cpu and cpu * 100, 1),
                _number(cpu and cpu * 1e6 / messages, 1),
                _number(per("batches_per_second"), 2),
                _number(per("redis_commands_per_second"), 2),
                _number(per("redis_input_bytes_per_second")),
                _number(per("redis_output_bytes_per_second")),
                _number(run["p50_ms"], 2),
                _number(run["p99_ms"], 2),
                _note(run),
            ]
        )
    headings = [
        "instances",
        "messages/s",
        "data bytes",
        "CPU µs per delivery",
        "Redis CPU, % of a core",
        "Redis CPU µs per message",
        "batches per message",
        "Redis commands per message",
        "bytes in",
        "bytes out",
        "p50 ms",
        "p99 ms",
        "",
    ]
    return ["### Instances on one Redis", "![Redis](capacity/redis.svg)", "\n".join(_table(headings, rows))]


def _overload(found):
    runs = _made(found, "overload")
    if not runs:
        return []
    columns = [_overload_cells(run) for run in runs]
    rows = [[label, *(column[label] for column in columns)] for label in columns[0]]
    headings = ["", *(f"rooms of {run['room']}" for run in runs)]
    plots = [f"![overload, rooms of {run['room']}](capacity/overload-{run['room']}.svg)" for run in runs]
    return ["### Overload", "\n".join(plots), "\n".join(_table(headings, rows))]


def _overload_cells(run):
    surge, steady = run["surge"], run["steady"]
    recovered = run["recovered_after_seconds"]
    when = "not within the run" if recovered is None else f"in the second that began {recovered:.1f} s after the surge"
    grown = (run["resident_bytes_most"] or 0) - (run["resident_bytes_before"] or 0)
    refused = [sum(side["refused"].values()) for side in (steady, surge)]
    return {
        "highest rate within the goal, deliveries/s": _number(run["highest_deliveries_per_second"]),
        "offered in the surge, deliveries/s": _number(2 * run["highest_deliveries_per_second"]),
        "messages refused (`unavailable`): steady, surging": " · ".join(_number(number) for number in refused),
        "deliveries lost: steady, surging": f"{_number(steady['lost'])} · {_number(surge['lost'])}",
        "steady rooms: p50, p99, slowest": f"{steady['p50_ms']} ms, {steady['p99_ms']} ms, {steady['max_ms']} ms",
        "surging rooms: p50, p99, slowest": f"{surge['p50_ms']} ms, {surge['p99_ms']} ms, {surge['max_ms']} ms",
        "connections closed: steady, surging": f"{_closed(steady)} · {_closed(surge)}",
        "surging messages held back by full sockets": _number(surge["unsent"]),
        "resident memory grew by": f"{grown / 1e6:.1f} MB",
        "p99 of the steady rooms within the goal again": when,
        "generators' CPU": f"{steady['generator_percent']:.0f} % and {surge['generator_percent']:.0f} % of a core",
    }


def _closed(side):
    return ", ".join(f"{number:,} × {reason}" for reason, number in side["connections_lost"].items()) or "none"


def _coefficients(models):
    lines = ["| model | coefficient | value |", "|---|---|--:|"]
    units = {
        ("cpu", "base"): ("an idle shard", 1e2, "% of a core"),
        ("cpu", "message"): ("each message received", 1e6, "µs"),
        ("cpu", "delivery"): ("each delivery", 1e6, "µs"),
        ("cpu", "byte"): ("each KiB delivered", 1024e6, "µs"),
        ("cpu", "send"): ("each send to a socket", 1e6, "µs"),
        ("memory", "base"): ("an empty server", 1e-6, "MB"),
        ("memory", "connection"): ("each connection", 1, "bytes"),
        ("memory", "membership"): ("each membership in a room", 1, "bytes"),
        ("memory", "room"): ("each room", 1, "bytes"),
        ("redis", "base"): ("Redis with its instances idle", 1e2, "% of a core"),
        ("redis", "batch"): ("each batch published", 1e6, "µs"),
        ("redis", "copy"): ("each batch received by an instance", 1e6, "µs"),
        ("redis", "byte"): ("each KiB in or out", 1024e6, "µs"),
    }
    names = {"cpu": "CPU of a shard", "memory": "resident memory", "redis": "CPU of Redis"}
    for (model, coefficient), (what, factor, unit) in units.items():
        if model in models:
            value = models[model]["coefficients"][coefficient] * factor
            lines.append(
                f"| {names[model]} | {what} | {value:,.3g} {unit} |"
                if value < 1e3
                else f"| {names[model]} | {what} | {value:,.0f} {unit} |"
            )
    errors = [
        f"{names[name]}: {fit['runs']} runs, off by {fit['mean_error_percent']:.0f} % on average and "
        f"{fit['worst_error_percent']:.0f} % at worst"
        for name, fit in models.items()
    ]
    return ["### Model", "\n".join(lines), "How well it fits: " + "; ".join(errors) + "."]


def _efficiency(found, models, room):
    """What a shard among several does of what one does alone, in rooms of a size, at most 1: beyond what the model says
    of its more and smaller sends, the rest is hand-over. The least of all numbers of shards."""
    beyond = {}
    for run in _made(found, "shards"):
        if run["room"] == room and run["kept_up"] and run.get("sends_per_second") is not None:
            more = models["cpu"]["coefficients"]["base"] * (run["shards"] - 1) * 1e6 / run["deliveries_per_second"]
            beyond[run["shards"]] = _cost(run) / (_predicted(run, models) + more)
    if 1 not in beyond or len(beyond) < 2:
        return None
    return min([beyond[1] / value for shards, value in beyond.items() if shards > 1] + [1.0])


def _mean(values):
    known = [value for value in values if value is not None]
    return sum(known) / len(known) if known else None


def _machine(found, models):
    if "cpu" not in models or "memory" not in models:
        return []
    efficiency = {room: _efficiency(found, models, room) for room in (5, 50)}
    kernel = _mean(run["kernel_bytes_per_connection"] / 2 for run in _made(found, "connections")) or 0
    kernel = max(kernel, 0)
    rates = [run for run in _made(found, "rates") if run["kept_up"] and _sends(run)]
    busy = min((_sends(run) for run in rates), default=1.0)
    rows = []
    for title, room, data, sends in (
        ("game night: rooms of 5, 200 bytes, every delivery sent alone", 5, 360, 1.0),
        ("groups: rooms of 50, 128 bytes, every delivery sent alone", 50, 288, 1.0),
        (f"groups, busy: the same with {busy:.2f} sends per delivery", 50, 288, busy),
        ("crowd: a room of 10,000, 128 bytes, every delivery sent alone", 10_000, 288, 1.0),
    ):
        one = core_deliveries(models["cpu"], room, data, sends)
        share = efficiency[5 if room < 50 else 50] or 1.0
        all_cores = machine(models["cpu"], models["memory"], kernel, CORES, MEMORY_BYTES, share, room, data, sends)
        rows.append(
            [
                title,
                _number(one),
                _number(all_cores["deliveries_per_second"]),
                _number(all_cores["messages_per_second"]),
                _number(min(all_cores["connections_by_memory"], MOST_CONNECTIONS)),
            ]
        )
    headings = [
        "load",
        "one core: deliveries/s",
        f"{CORES} cores: deliveries/s",
        "messages/s",
        "idle connections in 64 GiB",
    ]
    lines = _table(headings, rows)
    lines[1] = "|---|" + "--:|" * (len(headings) - 1)
    share = "what it does beside others was not measured and is taken as what it does alone"
    if None not in efficiency.values():
        share = (
            f"a core among several does {efficiency[5]:.2f} (rooms of 5) and {efficiency[50]:.2f} (others) of what it does "
            "alone, the least that was measured with 2 to 8 shards; with more shards than were measured a message of a small room "
            "is handed over for nearly every delivery, which may cost more"
        )
    return [
        f"### A machine of {CORES} cores",
        "\n".join(lines),
        f"Assumed: cores like the measured one, {UTILISATION:.0%} of each used, and {share}; the network card's interrupts "
        f"are served by these cores and cost what loopback costs; memory filled to 80 %, {kernel:,.0f} bytes of kernel memory "
        "for each socket beside the resident ones (measured, both ends of loopback halved), and no more connections than "
        f"`WS_MAX_CONNECTIONS` takes ({MOST_CONNECTIONS:,}); each is a descriptor, and a process gets more than 1,048,576 of them only "
        "when fs.nr_open is raised. CPU of kept connections (pings) is small beside it and left out.",
    ]


def _cluster(found, models):
    runs = [
        run
        for run in _made(found, "instances")
        if run["instances"] > 1 and run["kept_up"] and run.get("batches_per_second")
    ]
    if "redis" not in models or not runs:
        return []
    alike = [run for run in runs if run["payload"] == 128]
    # Without lanes, each message that meets no other of its room is a batch.
    alone = max(alike, key=lambda r: r["batches_per_second"] / r["messages_per_second"])
    shared = max(alike, key=lambda r: r["messages_per_second"])
    rows = []
    for title, members in (("rooms of 5", 5), ("rooms of 50", 50), ("rooms of 1,000", 1_000)):
        copies = instances_of_a_room(CLUSTER, members) - 1
        for name, run in (
            ("a message in each batch", alone),
            (f"lanes (`PUBLISH_LANE_PEERS` of {CLUSTER - 1} or more), batches as full as measured", shared),
        ):
            messages = run["messages_per_second"]
            bytes_in = run["redis_input_bytes_per_second"] / messages
            copy = run["redis_output_bytes_per_second"] / messages / (run["instances"] - 1)
            batches = run["batches_per_second"] / messages
            received = (run["received_per_second"] or 0) / messages / (run["instances"] - 1)
            limit = redis_limit(models["redis"], batches, received, bytes_in, copy, copies)
            rows.append(
                [title, name, _number(copies, 1), _number(batches, 2), _number(limit), _number(limit / CLUSTER)]
            )
    headings = [
        "rooms",
        "batching",
        "other instances with members",
        "batches per message",
        "messages/s at Redis's limit",
        "per instance",
    ]
    lines = _table(headings, rows)
    lines[1] = "|---|---|" + "--:|" * (len(headings) - 2)
    return [
        f"### A cluster of {CLUSTER} instances on one Redis",
        "\n".join(lines),
        f"Assumed: members are on instances by chance, so that a room of m members is on 20·(1 − (19/20)^m) of them; every one "
        f"of those gets each message; Redis has one core for itself and uses {UTILISATION:.0%} of it; batches carry as many "
        "messages, and Redis as many bytes per copy, as in the measured runs named. With more than "
        "`PUBLISH_LANE_PEERS` (16) other instances lanes are not used unless that is raised: the first line of each pair, in which "
        "no messages share a batch, is then the nearer one. Rooms kept together on one instance (sticky by room) need no "
        "Redis per message at all.",
    ]


def _stepped(found):
    """Where a cost jumps between neighbours of a series."""
    redis = lambda r: _cost(r, "messages_per_second", "redis_cpu_seconds_per_second")  # noqa: E731
    silent = [run for run in _made(found, "connections") if run["room"] == 50]
    series = [
        ("CPU per delivery, by connections that send", _made(found, "senders"), "connections", _cost),
        ("CPU per delivery, by room size", _made(found, "rooms"), "room", _cost),
        ("CPU per delivery, by bytes of data", _made(found, "payloads"), "payload", _cost),
        ("CPU per delivery, by rate", _made(found, "rates"), "deliveries_per_second", _cost),
        ("resident bytes of a connection, by connections", silent, "connections", lambda r: r["bytes_per_connection"]),
    ]
    for room in sorted({run["room"] for run in _made(found, "shards")}):
        runs = [run for run in _made(found, "shards") if run["room"] == room]
        series.append((f"CPU per delivery in rooms of {room}, by shards", runs, "shards", _cost))
    clusters = [run for run in _made(found, "instances") if run["payload"] == 128]
    for rate in sorted({run["messages_per_second"] for run in clusters}):
        runs = [run for run in clusters if run["messages_per_second"] == rate]
        series.append((f"CPU per delivery at {rate:,.0f} messages/s, by instances", runs, "instances", _cost))
        series.append((f"Redis's CPU per message at {rate:,.0f} messages/s, by instances", runs, "instances", redis))
    lines = [
        f"- {what}: × {factor:.2f} from {start:,.0f} to {end:,.0f}"
        for what, runs, x, y in series
        for start, end, factor in steps([(run[x], y(run)) for run in runs], STEP)
    ]
    return [
        "### Steps",
        f"Costs that grew by more than a factor of {STEP} from one point to the next, or fell by it; the text above says why:",
        "\n".join(lines) or "none.",
    ]


def _repeated(found):
    """How far figures of the same load are apart, where several series have it."""
    loads = {}
    for name in ("senders", "rooms", "payloads", "rates"):
        for run in _made(found, name):
            load = (run["connections"], run["room"], run["payload"], round(run["messages_per_second"]))
            loads.setdefault(load, []).append(_cost(run))
    again = [(load, costs) for load, costs in loads.items() if len(costs) > 1]
    return [
        f"How much one figure says: {connections:,} connections in rooms of {room}, {payload} bytes, {messages:,} messages/s, "
        f"measured in several series, took {' and '.join(f'{cost:.2f}' for cost in costs)} µs of CPU per delivery."
        for (connections, room, payload, messages), costs in again
    ]


def section(found, models, notes):
    """The generated part of the page."""
    delivered = lambda run: _number(run["deliveries_per_second"])  # noqa: E731
    parts = [
        ["## Measured", "\n".join(f"- {note}" for note in notes)],
        _connections(found),
        _fan_out(found, "senders", "Connections that send", "senders", "connections", lambda run: _number(run["connections"])),
        _fan_out(found, "rooms", "Rooms", "rooms", "members", lambda run: _number(run["room"])),
        _fan_out(found, "payloads", "Bytes", "payloads", "data bytes", lambda run: _number(run["payload"])),
        _fan_out(found, "rates", "Rates", "rates", "deliveries/s", delivered),
        _fan_out(found, "shards", "Shards", "shards", "shards", lambda run: f"{run['shards']}, rooms of {run['room']}"),
        _instances(found),
        _overload(found),
        _stepped(found),
        _repeated(found),
        _coefficients(models) if models else [],
        _machine(found, models),
        _cluster(found, models),
        sorted({line for name in found for line in _failures(found, name)}),
    ]
    return "\n\n".join(text for part in parts for text in part)


def replaced(page, text):
    """The page with its generated part replaced."""
    before, rest = page.split(BEGIN, 1)
    _, after = rest.split(END, 1)
    return f"{before}{BEGIN}\n\n{text}\n\n{END}{after}"


def _predicted(run, models):
    of = models["cpu"]["coefficients"]
    deliveries = run["deliveries_per_second"]
    seconds = of["base"] + of["message"] * run["messages_per_second"] + of["delivery"] * deliveries
    seconds += of["byte"] * deliveries * run["bytes_per_delivery"] + of["send"] * run["sends_per_second"]
    return seconds * 1e6 / deliveries


def _by(found, models, name, x, title, across):
    runs = [run for run in _made(found, name) if run["kept_up"]]
    lines = [Line("measured", [(x(run), _cost(run)) for run in runs])]
    if "cpu" in models:
        told = [run for run in runs if run.get("sends_per_second") is not None and run["deliveries_per_second"]]
        lines.append(Line("model", [(x(run), _predicted(run, models)) for run in told], True))
    return Chart(title, across, "server CPU per delivery (µs)", lines, True, True)


def charts(found, models):
    """All plots, by file name."""
    silent = [run for run in _made(found, "connections") if run["room"] == 50]
    plots = {
        "memory": Chart(
            "Memory of idle connections in rooms of 50",
            "connections",
            "bytes per connection",
            [
                Line("resident", [(run["connections"], run["bytes_per_connection"]) for run in silent]),
                Line("kernel, both ends", [(run["connections"], run["kernel_bytes_per_connection"]) for run in silent]),
            ],
            True,
        ),
        "rooms": _by(
            found, models, "rooms", lambda r: r["room"], "CPU per delivery by room size", "members of each room"
        ),
        "payloads": _by(found, models, "payloads", lambda r: r["payload"], "CPU per delivery by size", "bytes of data"),
        "rates": _by(
            found,
            models,
            "rates",
            lambda r: r["deliveries_per_second"],
            "CPU per delivery by rate",
            "deliveries per second",
        ),
        "senders": _by(
            found, models, "senders", lambda r: r["connections"], "CPU per delivery by connections", "connections that send"
        ),
        "shards": Chart(
            "CPU per delivery by shards",
            "shards",
            "server CPU per delivery (µs)",
            [
                Line(
                    f"rooms of {room}",
                    [(r["shards"], _cost(r)) for r in _made(found, "shards") if r["room"] == room and r["kept_up"]],
                )
                for room in (5, 50)
            ],
            True,
            True,
        ),
    }
    clusters = [run for run in _made(found, "instances") if run["payload"] == 128 and run["kept_up"]]
    numbers = sorted({run["instances"] for run in clusters})
    cost = lambda run: _cost(run, "messages_per_second", "redis_cpu_seconds_per_second")  # noqa: E731
    plots["redis"] = Chart(
        "Redis CPU per message",
        "messages per second",
        "Redis CPU per message (µs)",
        [
            Line(f"{n} instances", [(r["messages_per_second"], cost(r)) for r in clusters if r["instances"] == n])
            for n in numbers
            if n > 1
        ],
        True,
        True,
    )
    for run in _made(found, "overload"):
        series = run["series"]
        line = lambda name: [(point["second"] + 0.5, point[name]) for point in series]  # noqa: E731
        plots[f"overload-{run['room']}"] = Chart(
            f"Twice the highest rate for ten seconds, rooms of {run['room']}: latency of other rooms",
            "time (s)",
            "latency (ms)",
            [
                Line("p50", line("p50_ms")),
                Line("p99", line("p99_ms")),
                Line("goal", [(0.5, GOAL_MS), (series[-1]["second"] + 0.5, GOAL_MS)] if series else [], True),
            ],
            False,
            True,
            [(run["surge_from"], "surge"), (run["surge_until"], "over")],
        )
    return {name: chart for name, chart in plots.items() if any(line.points for line in chart.lines)}
