"""A linear model fitted to the measurements, and what it says about machines that nobody has measured."""

import math

# Share of a core's time to plan with: beyond it latency grows with every burst.
UTILISATION = 0.7


def fit(rows, targets, names):
    """Coefficients, none below zero, that make the sum of their products with each row come near its target; errors
    count in proportion to the target. By coordinate descent, which needs no library. Also gives the worst and the mean
    error in percent."""
    weighted = [[value / target for value in row] for row, target in zip(rows, targets)]
    scale = [max(math.sqrt(sum(row[i] ** 2 for row in weighted)), 1e-300) for i in range(len(names))]
    scaled = [[row[i] / scale[i] for i in range(len(names))] for row in weighted]
    found = [0.0] * len(names)
    rest = [1.0] * len(rows)
    for _ in range(20_000):
        moved = 0.0
        for i in range(len(names)):
            step = sum(row[i] * r for row, r in zip(scaled, rest))
            value = max(found[i] + step, 0.0)
            change = value - found[i]
            if change:
                found[i] = value
                rest = [r - change * row[i] for row, r in zip(scaled, rest)]
            moved = max(moved, abs(change))
        if moved < 1e-12:
            break
    errors = [abs(r) * 100 for r in rest]
    coefficients = {name: value / factor for name, value, factor in zip(names, found, scale)}
    return {
        "coefficients": coefficients,
        "runs": len(rows),
        "worst_error_percent": max(errors, default=0.0),
        "mean_error_percent": sum(errors) / len(errors) if errors else 0.0,
    }


def cpu_model(runs):
    """CPU seconds per second of one shard = base + per message + per delivery + per byte + per send."""
    usable = [run for run in runs if run["kept_up"] and run.get("sends_per_second") is not None]
    rows = [
        [
            1.0,
            run["messages_per_second"],
            run["deliveries_per_second"],
            run["deliveries_per_second"] * run["bytes_per_delivery"],
            run["sends_per_second"],
        ]
        for run in usable
    ]
    names = ["base", "message", "delivery", "byte", "send"]
    return fit(rows, [run["cpu_seconds_per_second"] for run in usable], names)


def memory_model(runs):
    """Resident bytes = base + per connection + per membership + per room."""
    usable = [run for run in runs if not run["problems"]]
    rows = [[1.0, run["ready"], run["memberships"], run["rooms"]] for run in usable]
    names = ["base", "connection", "membership", "room"]
    return fit(rows, [run["resident_bytes"] for run in usable], names)


def redis_model(runs):
    """Redis's CPU seconds per second = base + per batch published + per batch received + per byte, in and out."""
    usable = [run for run in runs if run["instances"] > 1 and run["kept_up"] and run.get("batches_per_second")]
    rows = [
        [
            1.0,
            run["batches_per_second"],
            run["received_per_second"] or 0.0,
            run["redis_input_bytes_per_second"] + run["redis_output_bytes_per_second"],
        ]
        for run in usable
    ]
    return fit(rows, [run["redis_cpu_seconds_per_second"] for run in usable], ["base", "batch", "copy", "byte"])


def core_deliveries(cpu, room, bytes_each, sends_per_delivery):
    """Deliveries per second of one core at [`UTILISATION`] in rooms of a size."""
    of = cpu["coefficients"]
    per_delivery = (
        of["delivery"] + of["byte"] * bytes_each + of["send"] * sends_per_delivery + of["message"] / (room - 1)
    )
    return max(UTILISATION - of["base"], 0) / per_delivery if per_delivery else 0.0


def machine(cpu, memory, kernel_bytes, cores, memory_bytes, efficiency, room, bytes_each, sends_per_delivery):
    """What a machine carries: deliveries by its cores, idle connections by four fifths of its memory."""
    each = core_deliveries(cpu, room, bytes_each, sends_per_delivery)
    of = memory["coefficients"]
    per_connection = of["connection"] + of["membership"] + of["room"] / room + kernel_bytes
    return {
        "deliveries_per_second": each * cores * efficiency,
        "messages_per_second": each * cores * efficiency / (room - 1),
        "connections_by_memory": (memory_bytes * 0.8 - of["base"]) / per_connection if per_connection else 0.0,
        "bytes_per_connection": per_connection,
    }


def redis_limit(model, batches_per_message, batches_per_copy, bytes_in_per_message, bytes_out_per_copy, copies):
    """Messages per second of a whole cluster at which Redis has used [`UTILISATION`] of its one core, when each message
    goes to `copies` other instances."""
    of = model["coefficients"]
    per_message = of["batch"] * batches_per_message + of["copy"] * batches_per_copy * copies
    per_message += of["byte"] * (bytes_in_per_message + bytes_out_per_copy * copies)
    return max(UTILISATION - of["base"], 0) / per_message if per_message else 0.0


def instances_of_a_room(instances, members):
    """How many of the instances a room's members are on, when each member is on any of them by chance."""
    return instances * (1 - (1 - 1 / instances) ** members)


def steps(points, factor):
    """Pairs of neighbouring points (in order of x) between which y grows or falls by more than `factor`."""
    found = []
    for (x, y), (next_x, next_y) in zip(points, points[1:]):
        if y and next_y and not 1 / factor <= next_y / y <= factor:
            found.append((x, next_x, next_y / y))
    return found
