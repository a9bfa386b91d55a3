"""The series of measurements: what is varied, and with how much load."""

import contextlib
import math
import os
import subprocess
import sys
import time

from harness import processes
from harness.bench import SERVER_CORES
from harness.generator import RunFailed
from harness.processes import DidNotStart

from .load import Load, tableforge

# What is varied.
CONNECTIONS = [1, 10, 100, 1_000, 2_000, 5_000, 10_000, 18_000]
SENDERS = [10, 100, 1_000, 5_000, 18_000]
ROOMS = [2, 5, 10, 50, 200, 1_000, 10_000]
# In bytes, up to 60 KiB; the least is what the generator needs to tell its messages apart.
PAYLOADS = [27, 128, 1_024, 8_192, 61_440]
SHARDS = [1, 2, 4, 8]
INSTANCES = [1, 2, 3, 4]
# Deliveries per second in rooms of 50, as far as one core goes.
RATES = [5_000, 25_000, 100_000, 300_000, 600_000, 1_000_000]
# Messages per second over all instances, in rooms of 4, so that Redis and not the fan-out is what works.
CLUSTER_RATES = [500, 3_000, 10_000, 20_000]
CLUSTER_ROOM = 4
CLUSTER_PAYLOADS = [1_024, 8_192]

# The load where something else is varied: deliveries per second, and the most that is sent of anything.
DELIVERIES = 40_000
MOST_MESSAGES, MOST_BYTES = 8_000, 100e6

# The goal of the search for the highest rate, in milliseconds, and how far the search goes.
GOAL_MS, PRECISION = 50, 1.25
# The overloads: members of a room, connections, messages per second where the search for the highest rate begins, programs
# that take the server's core away from it, so that it and not the generator is at its limit. In rooms of 50 sending is
# the work, in rooms of 2 it is handling messages, which costs the generator nearly as much.
OVERLOADS = [(50, 500, 500, 2), (2, 100, 10_000, 4)]
# The highest rate that is tried, in messages per second.
LAST_RATE = 1_000_000


def _load(room, payload=128, deliveries=DELIVERIES, connections=500, most=MOST_MESSAGES, most_bytes=MOST_BYTES):
    """A load of about so many deliveries, within what both sides can do; all rooms are full."""
    deliveries = min(deliveries, most_bytes / (payload + 100))
    messages = max(min(deliveries / (room - 1), most), 1)
    return Load(math.ceil(connections / room) * room, room, messages, payload)


def connections(machine, scale):
    """Silent connections in rooms of 50, and without any room, and in rooms of other sizes."""
    counts = sorted({max(count // scale, 1) for count in CONNECTIONS})
    runs = [lambda c=count: machine.idle_costs(c, 50) for count in counts]
    middle = counts[-2]
    runs.append(lambda: machine.idle_costs(middle, 50, join=False))
    runs += [lambda r=room: machine.idle_costs(middle, r) for room in (1, 5, middle)]
    return runs


def senders(machine, scale):
    """The same number of deliveries in rooms of 10, to ever more connections."""
    counts = sorted({max(count // scale, 10) for count in SENDERS})
    return [lambda c=count: machine.fan_out_costs(_load(10, connections=c)) for count in counts]


def rooms(machine, scale):
    """The same number of deliveries in rooms of all sizes."""
    return [
        lambda r=max(room // scale, 2): machine.fan_out_costs(_load(r))
        for room in ROOMS
        if room // scale >= 2 or room == ROOMS[0]
    ]


def payloads(machine, _):
    """Rooms of 50, data of all sizes."""
    return [lambda p=payload: machine.fan_out_costs(_load(50, p)) for payload in PAYLOADS]


def rates(machine, scale):
    """Rooms of 50, ever more messages."""
    loads = [_load(50, deliveries=rate / scale, most=rate, most_bytes=math.inf) for rate in RATES]
    return [lambda load=load: machine.fan_out_costs(load) for load in loads]


def shards(machine, scale):
    """The same load on more and more shards, in large rooms and in small ones; beyond one core they have both, the
    generator's too."""

    def run(number, load):
        peer = tableforge(number, () if number == 1 else range(os.cpu_count()))
        return {"shards": number, **machine.fan_out_costs(load, peer)}

    loads = [_load(50, deliveries=200_000 / scale), _load(5, deliveries=DELIVERIES / scale)]
    return [lambda n=number, load=load: run(n, load) for load in loads for number in SHARDS]


def instances(machine, scale):
    """Small rooms with members on all of one to four instances."""
    loads = [(n, Load(480, CLUSTER_ROOM, rate / scale)) for n in INSTANCES for rate in CLUSTER_RATES]
    loads += [(2, Load(480, CLUSTER_ROOM, 2_000 / scale, payload)) for payload in CLUSTER_PAYLOADS]
    return [lambda n=n, load=load: machine.cluster_costs(n, load) for n, load in loads]


def overload(machine, scale):
    """What happens at twice the highest rate, and afterwards."""
    return [
        lambda r=room, c=connections, f=first / scale, n=competitors: _overload(machine, r, c, f, n)
        for room, connections, first, competitors in OVERLOADS
    ]


SERIES = {
    "connections": connections,
    "senders": senders,
    "rooms": rooms,
    "payloads": payloads,
    "rates": rates,
    "shards": shards,
    "instances": instances,
    "overload": overload,
}


def measure(machine, name, scale):
    """All runs of a series; one that cannot be made says why."""
    found = []
    for run in SERIES[name](machine, scale):
        try:
            found.append(run())
        except (DidNotStart, RunFailed, OSError) as reason:
            found.append({"failed": str(reason)})
        shown = {k: v for k, v in found[-1].items() if k != "series" and v not in (None, [])}
        print(f"{name}: {shown}", flush=True)
    return found


@contextlib.contextmanager
def _competitors(machine, number):
    command = [sys.executable, "-c", "while True: pass"]
    running = []
    try:
        for place in range(number):
            log = machine.directory / f"competitor-{place}.log"
            running.append(processes.spawn(command, SERVER_CORES, log))
        yield
    finally:
        for process in running:
            processes.end(process)


def _highest(machine, servers, peer, room, connections, rate):
    """The highest rate within the goal, in messages per second, searched from `rate` on; None if none was reached."""
    low = high = None
    while (low is None or high is None or high / low > PRECISION) and 1 <= rate <= LAST_RATE:
        load = {"connections": connections, "room_size": room, "rate": rate, "room_prefix": f"search-{rate:.0f}"}
        with machine.rooms(peer, servers, 5, 2, **load) as generator:
            result = generator.result(60)
        p99 = (result["latency_ms"] or {}).get("p99")
        kept_up = not result["problems"] and result["deliveries_per_second"] >= 0.98 * rate * (room - 1)
        if kept_up and p99 is not None and p99 <= GOAL_MS:
            low = rate
        else:
            high = rate
        if low is None:
            rate /= 2
        else:
            rate = low * 2 if high is None else (low * high) ** 0.5
    return low


def _overload(machine, room, connections, first, competitors):
    """Half of the highest rate all the time from one generator; from another, for ten seconds in between, so much that
    both together are twice the highest rate."""
    peer = tableforge()
    lead, surge_seconds, after = 4, 10, 8
    with _competitors(machine, competitors), machine.servers(peer) as servers:
        highest = _highest(machine, servers, peer, room, connections, first)
        if highest is None:
            raise RunFailed("not even one message per second was within the goal")
        steady = {"connections": connections, "room_size": room, "rate": highest / 2, "room_prefix": "steady"}
        surge = {"connections": connections, "room_size": room, "rate": highest * 1.5, "room_prefix": "surge"}
        with machine.rooms(peer, servers, 5, lead + surge_seconds + after, **steady) as calm:
            calm.await_ready()
            begun = time.monotonic()
            time.sleep(lead)
            with machine.rooms(peer, servers, 5, surge_seconds - 1, **surge) as wild:
                wild.await_ready()
                surge_from = time.monotonic() - begun
                surging = wild.result(90)
            steady_result = calm.result(120)
    series = steady_result.get("series", [])
    surge_until = surge_from + surge_seconds + 0.1
    return {
        "room": room,
        "highest_messages_per_second": highest,
        "highest_deliveries_per_second": highest * (room - 1),
        "surge_from": surge_from,
        "surge_until": surge_until,
        "recovered_after_seconds": _recovery(series, surge_until),
        "steady": _brief(steady_result),
        "surge": _brief(surging),
        "resident_bytes_before": _memory(series, lambda second: second < surge_from - 1),
        "resident_bytes_most": _memory(series, lambda _: True),
        "series": series,
        "problems": [],
    }


def _recovery(series, surge_until):
    """Seconds from the surge's end to the first whole second whose p99 is within the goal; None if there is none."""
    well = [p["second"] for p in series if p["second"] >= surge_until and p["p99_ms"] and p["p99_ms"] <= GOAL_MS]
    return well[0] - surge_until if well else None


def _memory(series, chosen):
    values = [p["server_resident_bytes"] for p in series if chosen(p["second"]) and p["server_resident_bytes"]]
    return max(values) if values else None


def _brief(result):
    latency = result["latency_ms"] or {}
    return {
        "messages_per_second": result["rate"],
        "deliveries_per_second": result["deliveries_per_second"],
        "p50_ms": latency.get("p50"),
        "p99_ms": latency.get("p99"),
        "max_ms": latency.get("max"),
        "lost": result["lost"],
        "unsent": result["messages_unsent"],
        "connections_lost": result["connections_lost"],
        "refused": result["messages_refused"],
        "notices": result["notices"],
        "generator_percent": result["generator"]["cpu_percent"],
    }


def programs(given):
    """What was measured, for the notes."""
    return subprocess.run([given, "--version"], capture_output=True, text=True, check=False).stdout.strip()
