"""One measurement: servers started, load put on them, CPU, memory, sends and Redis read before and after."""

import contextlib
import json
import time
import urllib.request
from dataclasses import dataclass

from harness import processes, redis
from harness.bench import GENERATOR_CORES, IN_TIME, OVERHEAD_SECONDS, SERVER_CORES, Bench
from harness.generator import LEAD_SECONDS
from harness.peers import Peer

# Seconds to send before measuring; in a cluster more, because presence of all members is still being written.
WARMUP, CLUSTER_WARMUP = 1, 3
# Beyond this many deliveries per second the generator reads every 5 ms, so as not to be the limit itself.
BUSY = 100_000
# Counters of /metrics that say what the server did; a version without one of them goes without its figures.
COUNTERS = {
    "sends": "websocket_sends_total",
    "flushes": "websocket_flushes_total",
    "messages_in": "websocket_messages_received_total",
    "messages_out": "websocket_messages_sent_total",
    "bytes_out": "websocket_sent_bytes_total",
    "batches": "redis_batches_sent_total",
    "batch_bytes": "redis_batch_sent_bytes_total",
    "received": "redis_batches_received_total",
    "published": "redis_published_total",
}


def tableforge(shards=1, cores=(), **settings):
    """The production form of the server: no history, no rate limit, anonymous users, in a cluster if Redis is there."""
    environment = {
        "WS_HOST": "127.0.0.1",
        "AUTH_REQUIRED": "false",
        "MESSAGE_RATE": "0",
        "LOG_LEVEL": "warn",
        "SHARDS": str(shards),
        **{name: str(value) for name, value in settings.items()},
    }

    def start(installation):
        return [installation.own("tableforge"), "serve"], environment

    return Peer("tableforge", "TableForge", start, "tableforge", "/ws", "WS_PORT", more_cores=frozenset(cores))


@dataclass
class Load:
    """Messages that members of rooms send to each other."""

    connections: int
    room: int
    messages: float
    payload: int = 128

    @property
    def deliveries(self):
        """How many a second there should be."""
        return self.messages * (self.room - 1)


class Machine(Bench):
    """The bench of the peers, with readings of what is inside the server."""

    def fan_out_costs(self, load, peer=None, seconds=None):
        """What the load costs one instance."""
        with self.servers(peer or tableforge()) as servers:
            return self._costs(servers, load, seconds or self.seconds, peer or tableforge())

    def cluster_costs(self, instances, load):
        """What the load costs so many instances on one Redis, each room's members on all of them."""
        name = f"{next(self._numbers)}-redis.log"
        peer = tableforge(REDIS_HOST="127.0.0.1")
        with (
            redis.running(GENERATOR_CORES, self.directory / name) as shared,
            self.servers(peer, instances, shared.port) as servers,
        ):
            _await_cluster(servers, instances)
            return {"instances": instances, **self._costs(servers, load, self.seconds, peer, shared)}

    def _costs(self, servers, load, seconds, peer, shared=None):
        options = {"connections": load.connections, "room_size": load.room, "rate": load.messages}
        read_every_ms = 5 if load.deliveries > BUSY else 0
        # A second longer than is looked at: the first look takes its time too.
        longer = seconds + 1
        warmup = CLUSTER_WARMUP if shared else WARMUP
        with self.rooms(
            peer, servers, read_every_ms, longer, payload=load.payload, warmup=warmup, **options
        ) as generator:
            generator.await_ready()
            time.sleep(LEAD_SECONDS + warmup)
            before = Reading.take(servers, shared)
            time.sleep(seconds)
            used = Reading.take(servers, shared).since(before)
            result = generator.result(longer + OVERHEAD_SECONDS)
        return {**_of_run(result, load), **used}

    def rooms(self, peer, servers, read_every_ms=0, seconds=None, payload=128, warmup=WARMUP, **options):
        """A generator whose connections send to each other."""
        settings = {
            "payload": payload,
            "warmup": warmup,
            "duration": seconds or self.seconds,
            "settle_ms": 3_000,
            "read_every_ms": read_every_ms,
        }
        return self.generator(peer, servers, "rooms", **settings, **options)

    def idle_costs(self, connections, room, join=True):
        """What silent connections cost: memory, and CPU for a ping each. Pings come every 2 s here, so that a short run
        has some."""
        ping_seconds = 2
        peer = tableforge(PING_INTERVAL=ping_seconds * 1_000)
        hold = max(2 * ping_seconds, self.seconds)
        with self.servers(peer) as servers:
            pid = servers[0][1]
            slab = _kernel_memory()
            before = processes.cpu_seconds(pid)
            options = {"connections": connections, "room_size": room, "hold": hold, "join": str(join).lower()}
            with self.generator(peer, servers, "idle", **options) as generator:
                generator.await_ready()
                accepting = processes.cpu_seconds(pid) - before
                # The joins are told to the other members after the last connection is ready.
                time.sleep(0.5)
                slab = _kernel_memory() - slab
                start, started = processes.cpu_seconds(pid), time.monotonic()
                time.sleep(hold - 1)
                idle = (processes.cpu_seconds(pid) - start) / (time.monotonic() - started)
                result = generator.result(hold + OVERHEAD_SECONDS)
        ready = max(result["connections_ready"], 1)
        return {
            "connections": connections,
            "ready": ready,
            "rooms": -(-connections // room) if join else 0,
            "room": room if join else 0,
            "memberships": ready if join else 0,
            "resident_before_bytes": result["resident_before_bytes"],
            "resident_bytes": result["resident_after_bytes"],
            "bytes_per_connection": result["resident_bytes_per_connection"],
            "kernel_bytes_per_connection": slab / ready,
            "cpu_us_per_ping": idle * 1e6 * ping_seconds / ready,
            "cpu_us_per_accept": accepting * 1e6 / ready,
            "connects_per_second": result["connects_per_second"],
            "problems": result["problems"],
        }


def _kernel_memory():
    """Bytes of the kernel's own objects, sockets among them."""
    with open("/proc/meminfo", encoding="ascii") as lines:
        return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("Slab:"))


def _of_run(result, load):
    server, latency = result["server"], result["latency_ms"] or {}
    return {
        "connections": load.connections,
        "room": load.room,
        "payload": load.payload,
        "messages_per_second": load.messages,
        "deliveries_per_second": result["deliveries_per_second"],
        "bytes_per_delivery": result["bytes_per_delivery"],
        "p50_ms": latency.get("p50"),
        "p99_ms": latency.get("p99"),
        "resident_bytes": server["resident_bytes"],
        "lost": result["lost"],
        "kept_up": not result["problems"] and result["deliveries_per_second"] >= IN_TIME * load.deliveries,
        "generator_percent": result["generator"]["cpu_percent"],
        "problems": result["problems"],
    }


def _get(url, path):
    address = url.replace("ws://", "http://").removesuffix("/ws")
    with urllib.request.urlopen(f"{address}{path}", timeout=10) as answer:
        return answer.read().decode()


def _await_cluster(servers, instances):
    """Waits until every instance knows all others; otherwise the first messages would find nobody."""
    deadline = time.monotonic() + 20
    for url, _ in servers:
        while time.monotonic() < deadline:
            with contextlib.suppress(OSError, ValueError, KeyError):
                if json.loads(_get(url, "/stats"))["totalInstances"] >= instances:
                    break
            time.sleep(0.1)


@dataclass
class Reading:
    """What servers and Redis had used and done at one moment."""

    at: float
    cpu_seconds: float
    counters: dict
    shared: redis.Reading | None

    @classmethod
    def take(cls, servers, shared):
        """Reads everything, the CPU last: reading the counters costs some itself."""
        counters = dict.fromkeys(COUNTERS, 0)
        for url, _ in servers:
            values = {}
            for line in _get(url, "/metrics").splitlines():
                name, _, rest = line.partition("{")
                if rest:
                    values[name.removeprefix("tableforge_")] = float(rest.rsplit(" ", 1)[-1])
            for name, metric in COUNTERS.items():
                known = counters[name] is not None and metric in values
                counters[name] = counters[name] + values[metric] if known else None
        cpu = sum(processes.cpu_seconds(pid) for _, pid in servers)
        return cls(time.monotonic(), cpu, counters, shared and shared.read())

    def since(self, before):
        """What was used and done since an earlier reading, per second."""
        seconds = self.at - before.at
        figures = {"cpu_seconds_per_second": (self.cpu_seconds - before.cpu_seconds) / seconds}
        for name, value in self.counters.items():
            known = value is not None and before.counters[name] is not None
            figures[f"{name}_per_second"] = (value - before.counters[name]) / seconds if known else None
        if self.shared:
            used = self.shared.since(before.shared)
            figures["redis_cpu_seconds_per_second"] = used.cpu_seconds / seconds
            figures["redis_input_bytes_per_second"] = used.input_bytes / seconds
            figures["redis_output_bytes_per_second"] = used.output_bytes / seconds
            figures["redis_commands_per_second"] = used.commands / seconds
        return figures
