"""One measurement: servers started, load put on them, figures read, everything ended."""

import contextlib
import itertools
import time
from dataclasses import dataclass
from pathlib import Path

from . import processes, redis
from .generator import LEAD_SECONDS, Generator
from .installation import Installation
from .summary import median

# The servers' core and the generator's. Redis shares the generator's.
SERVER_CORES = {0}
GENERATOR_CORES = {1}

# Bytes of a message's data, where the scenario does not set it.
PAYLOAD = 128
# Addresses from which many connections are opened: with one, the kernel's search for a free port takes the generator
# longer than all else.
SOURCE_ADDRESSES = 16
# Seconds to send before measuring; to two instances, which share a core: one in JavaScript may fall behind until it is
# compiled, and Redis's work is cheaper per message while it catches up.
WARMUP, CLUSTER_WARMUP = 1, 8
# Longest wait for the last deliveries; later ones count as lost.
SETTLE_SECONDS = 3
# New servers that are filled with connections for one figure of what accepting takes: half a second each, in which
# a shared machine may stand still for a large part.
FILLS = 5
# Seconds for which all but the last keep theirs.
BRIEFLY = 0.1
# Share of the expected deliveries that have to arrive within the measured time.
IN_TIME = 0.98
# Seconds that a run may take besides sending: connecting, settling, closing.
OVERHEAD_SECONDS = 60


@dataclass
class Bench:
    """What all measurements have in common."""

    installation: Installation
    # For the output of processes.
    directory: Path
    # Seconds that are measured.
    seconds: float
    # How far the search for a rate goes: the lowest rate not reached, as a multiple of the highest reached.
    precision: float
    # Overrides the scenarios' own pause between the generator's reads, in milliseconds.
    read_every_ms: int | None = None

    def __post_init__(self):
        self._numbers = itertools.count()

    @contextlib.contextmanager
    def servers(self, peer, instances=1, redis_port=None):
        """So many instances of a peer; gives (URL, process number) of each."""
        with contextlib.ExitStack() as running:
            started = []
            for _ in range(instances):
                port = processes.free_port()
                command, environment = peer.command(self.installation, port, redis_port)
                log = self.directory / f"{next(self._numbers)}-{peer.name}.log"
                cores = SERVER_CORES | peer.more_cores
                process = running.enter_context(processes.listening(command, port, cores, log, environment))
                started.append((peer.url(port), process.pid))
            yield started

    def generator(self, peer, servers, scenario, *flags, **options):
        """A generator at work on these servers."""
        arguments = [scenario, "--dialect", peer.dialect, "--connect-timeout", 30, *peer.options, *flags]
        for url, pid in servers:
            arguments += ["--url", url, "--pid", pid]
        for name, value in options.items():
            arguments += [f"--{name.replace('_', '-')}", value]
        name = f"{next(self._numbers)}-{peer.name}-load"
        return Generator(self.installation.own("loadtest"), self.directory, name, arguments, GENERATOR_CORES)

    def rooms(self, peer, servers, read_every_ms=0, seconds=None, **options):
        """A generator whose connections send to each other."""
        if self.read_every_ms is not None:
            read_every_ms = self.read_every_ms
        settings = {
            "payload": PAYLOAD,
            "warmup": WARMUP,
            "duration": seconds or self.seconds,
            "settle_ms": SETTLE_SECONDS * 1_000,
            "read_every_ms": read_every_ms,
        }
        return self.generator(peer, servers, "rooms", **{**settings, **options})

    def fan_out(self, peer, connections, room_size, rate, read_every_ms, payload=PAYLOAD):
        """One instance, `rate` messages per second over all rooms."""
        with self.servers(peer) as servers:
            load = {"connections": connections, "room_size": room_size, "rate": rate, "payload": payload}
            with self.rooms(peer, servers, read_every_ms, **load) as generator:
                return of_rooms(generator.result(self.seconds + OVERHEAD_SECONDS))

    def idle(self, peer, connections, room_size):
        """Silent connections: what accepting them costs, and what keeping them does."""
        holds = [BRIEFLY] * (FILLS - 1) + [self.seconds]
        fills = [self._fill(peer, connections, room_size, hold) for hold in holds]
        # Memory is told by the one that has kept them for as long as is measured.
        return {**median(fills), "bytes_per_connection": fills[-1]["bytes_per_connection"]}

    def _fill(self, peer, connections, room_size, hold):
        """One server's connections, held for so many seconds once they are there."""
        with self.servers(peer) as servers:
            pid = servers[0][1]
            before = processes.cpu_seconds(pid)
            load = {
                "connections": connections,
                "room_size": room_size,
                "hold": hold,
                "source_addresses": SOURCE_ADDRESSES,
            }
            # As the plain dialect does.
            flags = ["--join-by-url"] if peer.dialect == "tableforge" else []
            with self.generator(peer, servers, "idle", *flags, **load) as generator:
                generator.await_ready()
                used = processes.cpu_seconds(pid) - before
                result = generator.result(self.seconds + OVERHEAD_SECONDS)
        return {
            "bytes_per_connection": result["resident_bytes_per_connection"],
            "connections_per_second": result["connects_per_second"],
            "cpu_us_per_connection": used * 1e6 / result["connections_ready"],
            "problems": result["problems"],
        }

    def two_instances(self, peer, connections, room_size, rate, read_every_ms):
        """Two instances on one Redis, every room's members on both."""
        with (
            redis.running(GENERATOR_CORES, self.directory / f"{next(self._numbers)}-redis.log") as shared,
            self.servers(peer, 2, shared.port) as servers,
        ):
            load = {"connections": connections, "room_size": room_size, "rate": rate, "warmup": CLUSTER_WARMUP}
            with self.rooms(peer, servers, read_every_ms, **load) as generator:
                generator.await_ready()
                time.sleep(LEAD_SECONDS + CLUSTER_WARMUP)
                before = shared.read()
                time.sleep(self.seconds)
                used = shared.read().since(before)
                figures = of_rooms(generator.result(self.seconds + OVERHEAD_SECONDS))
        # What got through, not what was sent: a peer that falls behind has asked less of Redis.
        messages = max(figures["deliveries_per_second"] * self.seconds / (room_size - 1), 1)
        figures["redis_cpu_us_per_message"] = used.cpu_seconds * 1e6 / messages
        figures["redis_input_bytes_per_message"] = used.input_bytes / messages
        figures["redis_output_bytes_per_message"] = used.output_bytes / messages
        return figures

    def beside_a_huge_room(self, peer, huge, huge_rate, connections, room_size, rate, read_every_ms):
        """One huge room, and small ones whose latency is measured meanwhile."""
        longer = self.seconds + 6
        with self.servers(peer) as servers:
            load = {"connections": huge, "room_size": huge, "rate": huge_rate, "room_prefix": "huge"}
            with self.rooms(peer, servers, read_every_ms, longer, **load) as of_huge:
                of_huge.await_ready()
                load = {"connections": connections, "room_size": room_size, "rate": rate, "room_prefix": "small"}
                with self.rooms(peer, servers, **load) as of_small:
                    figures = of_rooms(of_small.result(self.seconds + OVERHEAD_SECONDS))
                beside = of_rooms(of_huge.result(longer + OVERHEAD_SECONDS))
        figures["problems"] += [f"huge room: {problem}" for problem in beside["problems"]]
        figures["kept_up"] = figures["kept_up"] and beside["kept_up"]
        figures["huge_room_p99_ms"] = beside.get("p99_ms")
        figures["huge_room_deliveries_per_second"] = beside["deliveries_per_second"]
        # Both generators count the server's CPU, each over its own time: no figure of either alone.
        figures.pop("cpu_us_per_delivery", None)
        return figures


def of_rooms(result):
    """The figures of a `rooms` run that are compared."""
    server, latency = result["server"], result["latency_ms"] or {}
    expected = result["rate"] * (result["room_size"] - 1)
    return {
        "kept_up": not result["problems"] and result["deliveries_per_second"] >= IN_TIME * expected,
        "deliveries_per_second": result["deliveries_per_second"],
        "cpu_percent": server["cpu_percent"],
        "cpu_us_per_delivery": server["cpu_us_per_delivery"],
        "p50_ms": latency.get("p50"),
        "p99_ms": latency.get("p99"),
        "lost": result["lost"],
        "bytes_per_delivery": result["bytes_per_delivery"],
        "generator_percent": result["generator"]["cpu_percent"],
        "problems": result["problems"],
    }
