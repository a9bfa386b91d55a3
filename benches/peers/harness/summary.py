"""What the runs come to: medians, and whether they reach what TableForge has to reach."""

import statistics
from dataclasses import dataclass

UWEBSOCKETS = ("uwebsockets",)
AT_PAR = "≤ 1 of uWebSockets"
SOCKET_IO_ADAPTERS = ("socketio-redis", "socketio-sharded")


def median(rounds):
    """One set of figures out of those of several rounds: the median of each number, all problems, and whether
    every round kept up. Rounds that could not be made count only if there are no others."""
    made = [figures for figures in rounds if "failed" not in figures]
    if not made:
        return rounds[0]
    merged = {}
    for name in made[0]:
        values = [figures[name] for figures in made if figures.get(name) is not None]
        if name == "problems":
            merged[name] = list(dict.fromkeys(problem for problems in values for problem in problems))
        elif name == "kept_up":
            merged[name] = all(values)
        elif name == "generator_bound":
            merged[name] = any(values)
        else:
            merged[name] = statistics.median(values) if values else None
    return merged


@dataclass
class Target:
    """Something that TableForge has to reach."""

    scenario: str
    measure: str
    demand: str
    reached: float | None
    limit: float
    at_least: bool = False
    # TableForge's own name in the scenario.
    peer: str = "tableforge"
    # Whether TableForge kept up with the load and lost nothing; what it used is worth nothing otherwise.
    sound: bool = True

    @property
    def verdict(self):
        """`yes`, `no` and why, or that it was not measured."""
        if self.reached is None:
            return "not measured"
        if not self.sound:
            return "**no**: it did not keep up"
        return "yes" if (self.reached >= self.limit if self.at_least else self.reached <= self.limit) else "**no**"


class Comparison:
    """Ratios of TableForge's figures to those of others; None where one is missing."""

    def __init__(self, figures):
        self._figures = figures

    def of(self, scenario, peer):
        """All figures of one peer in one scenario."""
        return self._figures.get(scenario, {}).get(peer, {})

    def ratio(self, scenario, name, peers, peer="tableforge", highest=False, beside=None):
        """A figure of TableForge as a multiple of the best one among `peers`, theirs in the scenario `beside` if given."""
        own = self.of(scenario, peer).get(name)
        values = [self.of(beside or scenario, other).get(name) for other in peers]
        known = [value for value in values if value is not None]
        best = (max if highest else min)(known) if known else None
        return own / best if own is not None and best else None


def targets(figures):
    """All of them; `figures` are medians by scenario and peer."""
    compare = Comparison(figures)
    cpu, redis = "cpu_us_per_delivery", "redis_cpu_us_per_message"
    cluster = "tableforge-cluster"
    at_400k, at_50k = "fan-out, 400,000 deliveries/s", "fan-out, 50,000 deliveries/s"
    at_3k, at_20k = "two instances, 3,000 messages/s", "two instances, 20,000 messages/s"

    def to_uwebsockets(scenario, name, highest=False):
        return compare.ratio(scenario, name, UWEBSOCKETS, highest=highest)

    def game_night(name, rate):
        return Target(name, f"game night, {rate} messages/s: CPU per delivery", AT_PAR, to_uwebsockets(name, cpu), 1)

    def highest(demand, limit, peers):
        ratio = compare.ratio("highest", "highest_rate", peers, highest=True)
        return Target("highest", "highest rate", demand, ratio, limit, True)

    def on_redis(scenario, title, demand, limit, beside=None):
        ratio = compare.ratio(scenario, redis, SOCKET_IO_ADAPTERS, cluster, beside=beside)
        return Target(scenario, f"{title}: Redis CPU per message", demand, ratio, limit, peer=cluster)

    def own(scenario, measure, demand, name, limit, peer="tableforge"):
        return Target(scenario, measure, demand, compare.of(scenario, peer).get(name), limit, peer=peer)

    fan_out = to_uwebsockets("fan-out-400k", cpu)
    sparse, p50 = to_uwebsockets("fan-out-50k", cpu), to_uwebsockets("fan-out-50k", "p50_ms")
    accepts = to_uwebsockets("idle", "connections_per_second", True)
    deflate = compare.ratio("deflate", cpu, ["tableforge"], "tableforge-deflate")
    shards = compare.ratio("shards", cpu, ["tableforge"], "tableforge-2-shards")
    link = compare.of("two-instances-20k", cluster)
    in_json = None
    if link.get("bytes_per_delivery"):
        in_json = link["redis_input_bytes_per_message"] / link["bytes_per_delivery"]
    found = [
        Target("fan-out-400k", f"{at_400k}: CPU per delivery", "≤ 0.6 of uWebSockets", fan_out, 0.6),
        highest("≥ 2 of uWebSockets", 2, UWEBSOCKETS),
        highest("≥ 10 of ws", 10, ["ws"]),
        highest("≥ 10 of Socket.IO", 10, ["socketio"]),
        Target("fan-out-50k", f"{at_50k}: CPU per delivery", AT_PAR, sparse, 1),
        Target("fan-out-50k", f"{at_50k}: p50", "≤ 1.1 of uWebSockets", p50, 1.1),
        game_night("game-night-4k", "4,000"),
        game_night("game-night-10k", "10,000"),
        own("idle", "resident memory per idle connection", "≤ 1,024 bytes", "bytes_per_connection", 1_024),
        Target("idle", "connections accepted and joined per second", "≥ 1 of uWebSockets", accepts, 1, True),
        Target("deflate", "compressed to plain: CPU per delivery", "≤ 1.3", deflate, 1.3, peer="tableforge-deflate"),
        Target("shards", "2 shards to 1: CPU per delivery", "≤ 1.15", shards, 1.15, peer="tableforge-2-shards"),
        on_redis("two-instances-3k", at_3k, "≤ 0.2 of Socket.IO", 0.2),
        on_redis("two-instances-20k", at_20k, "≤ 0.05 of Socket.IO", 0.05),
        # At 20,000 messages per second Socket.IO falls behind and loses some, and what it sends late it sends together.
        on_redis("two-instances-20k", at_20k, "≤ 0.05 of Socket.IO at 3,000", 0.05, "two-instances-3k"),
        own("two-instances-20k", f"{at_20k}: p99", "≤ 20 ms", "p99_ms", 20, cluster),
        Target("two-instances-20k", f"{at_20k}: bytes to Redis", "≤ 0.33 of the JSON", in_json, 1 / 3, peer=cluster),
        own("huge-room", "small rooms beside one of 10,000: p99", "≤ 25 ms", "p99_ms", 25),
    ]
    for target in found:
        by = compare.of(target.scenario, target.peer)
        target.sound = by.get("kept_up", True) and not by.get("problems")
    return found
