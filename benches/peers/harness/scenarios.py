"""What is measured of each peer."""

from dataclasses import dataclass
from typing import Callable

from .generator import RunFailed
from .peers import ACCEPTING, CLUSTER, DEFLATE, SHARDS, SINGLE

# Members of a room and connections of the fan-out scenarios.
ROOM, CONNECTIONS = 50, 500

# The search for the highest rate: where it begins and where it gives up, in deliveries per second.
FIRST_RATE, LOWEST_RATE, LAST_RATE = 50_000, 3_000, 6_400_000
# Share of a core from which a rate that is not reached is the generator's limit, in percent.
GENERATOR_LIMIT_PERCENT = 95
# The most that latency may be for a rate to count as reached, in milliseconds.
LATENCY_LIMIT_MS = 50


@dataclass(frozen=True)
class Scenario:
    """One kind of load."""

    name: str
    title: str
    peers: list
    # Given a bench and a peer: figures by name.
    measure: Callable


def _fan_out(deliveries, read_every_ms):
    rate = deliveries / (ROOM - 1)
    return lambda bench, peer: bench.fan_out(peer, CONNECTIONS, ROOM, rate, read_every_ms)


def _deflate(deliveries, payload):
    rate = deliveries / (ROOM - 1)
    return lambda bench, peer: bench.fan_out(peer, CONNECTIONS, ROOM, rate, 5, payload)


def _game_night(messages):
    return lambda bench, peer: bench.fan_out(peer, 2_000, 5, messages, 0)


def _two_instances(messages):
    return lambda bench, peer: bench.two_instances(peer, 500, 10, messages, 0)


def _reached(figures):
    return figures["kept_up"] and figures["p99_ms"] is not None and figures["p99_ms"] <= LATENCY_LIMIT_MS


def _at_rate(bench, peer, rate):
    """The figures at a rate, of a second attempt where the first does not reach it."""
    figures = {}
    for _ in range(2):
        try:
            figures = _fan_out(rate, 5)(bench, peer)
        except RunFailed:
            # A server that breaks under a rate has not reached it.
            figures = {"kept_up": False, "generator_percent": 0}
        if _reached(figures):
            break
    return figures


def highest_rate(bench, peer):
    """The highest rate with nothing lost and a p99 within the limit: doubled until one is not reached in two attempts,
    then halved in between as far as the bench's precision goes."""
    best, low, high, bound = None, None, None, False
    rate = FIRST_RATE
    while LOWEST_RATE <= rate <= LAST_RATE and (low is None or high is None or high / low > bench.precision):
        figures = _at_rate(bench, peer, rate)
        if _reached(figures):
            low, best = rate, figures
        else:
            high, bound = rate, figures["generator_percent"] >= GENERATOR_LIMIT_PERCENT
        if low is None:
            rate /= 2
        else:
            rate = low * 2 if high is None else (low * high) ** 0.5
    if best is None:
        return {"highest_rate": 0, "problems": [f"not even {LOWEST_RATE:,} deliveries per second"]}
    return {**best, "highest_rate": low, "generator_bound": bound or high is None}


def _huge_room(bench, peer):
    return bench.beside_a_huge_room(peer, 10_000, 20, 500, 10, 200, 5)


SCENARIOS = [
    Scenario("fan-out-400k", "fan-out, 400,000 deliveries/s", SINGLE, _fan_out(400_000, 5)),
    Scenario("fan-out-50k", "fan-out, 50,000 deliveries/s", SINGLE, _fan_out(50_000, 0)),
    Scenario("highest", f"fan-out, highest rate with p99 ≤ {LATENCY_LIMIT_MS} ms", SINGLE, highest_rate),
    Scenario("game-night-4k", "game night, 4,000 messages/s", SINGLE, _game_night(4_000)),
    Scenario("game-night-10k", "game night, 10,000 messages/s", SINGLE, _game_night(10_000)),
    Scenario("idle", "15,000 idle connections", ACCEPTING, lambda bench, peer: bench.idle(peer, 15_000, ROOM)),
    Scenario("huge-room", "500 in small rooms beside a room of 10,000", SINGLE, _huge_room),
    Scenario("deflate", "fan-out of 1 KiB, 100,000 deliveries/s, plain and compressed", DEFLATE, _deflate(100_000, 1_024)),
    Scenario("shards", "fan-out, 400,000 deliveries/s, 1 and 2 shards", SHARDS, _fan_out(400_000, 5)),
    Scenario("two-instances-3k", "two instances, 3,000 messages/s", CLUSTER, _two_instances(3_000)),
    Scenario("two-instances-20k", "two instances, 20,000 messages/s", CLUSTER, _two_instances(20_000)),
]
