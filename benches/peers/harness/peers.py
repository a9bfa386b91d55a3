"""The servers that are compared: how each is started and spoken to."""

from dataclasses import dataclass, field
from typing import Callable

from .installation import SERVERS


@dataclass(frozen=True)
class Peer:
    """One server program with its settings."""

    name: str
    label: str
    # Given the installation: the command without the port, and its environment.
    start: Callable
    dialect: str = "plain"
    path: str = "/"
    # The port goes into this variable instead of behind the command.
    port_variable: str = ""
    environment: dict = field(default_factory=dict)
    # Cores that the server may use besides the first.
    more_cores: frozenset = frozenset()
    # More arguments of the load generator.
    options: tuple = ()

    def command(self, installation, port, redis_port=None):
        """The command and its environment, to listen on `port`."""
        command, environment = self.start(installation)
        environment = {**environment, **self.environment}
        if redis_port:
            environment["REDIS_PORT"] = str(redis_port)
        if self.port_variable:
            environment[self.port_variable] = str(port)
        else:
            command = [*command, port]
        return command, environment

    def url(self, port):
        """Where a client connects to."""
        return f"ws://127.0.0.1:{port}{self.path}"


def _node(script):
    def start(installation):
        node, environment = installation.node
        return [node, SERVERS / script], environment

    return start


def _tungstenite(installation):
    return [installation.tokio_tungstenite], {}


def _tableforge(command):
    return lambda installation: ([installation.own("tableforge"), command], {})


# Without a limit per client, and on one core.
ON_ONE_CORE = {"MESSAGE_RATE": "0", "SHARDS": "1"}
_IN_CLUSTER = {**ON_ONE_CORE, "WS_HOST": "127.0.0.1", "AUTH_REQUIRED": "false", "REDIS_HOST": "127.0.0.1"}


def of_tableforge(name, label, command, environment, **more):
    """TableForge with these settings."""
    start = _tableforge(command)
    return Peer(name, label, start, "tableforge", "/ws", "WS_PORT", environment, **more)


TABLEFORGE = of_tableforge("tableforge", "TableForge", "dev", ON_ONE_CORE)

# One instance.
SINGLE = [
    TABLEFORGE,
    Peer("uwebsockets", "uWebSockets", _node("uwebsockets.js")),
    Peer("tokio-tungstenite", "tokio-tungstenite", _tungstenite),
    Peer("ws", "ws", _node("ws.js")),
    Peer("socketio", "Socket.IO", _node("socketio.js"), "socketio", "/socket.io/"),
]

# As others do, TableForge in rooms whose members do not hear who joins.
WITHOUT_PRESENCE = of_tableforge(
    "tableforge-sizes", "TableForge, rooms tell their size only", "dev", {**ON_ONE_CORE, "PRESENCE_MAX_MEMBERS": "1"}
)
ACCEPTING = [SINGLE[0], WITHOUT_PRESENCE, *SINGLE[1:]]

# TableForge with clients that do not offer compression, and with those that do.
DEFLATE = [
    TABLEFORGE,
    of_tableforge("tableforge-deflate", "TableForge, compressed", "dev", ON_ONE_CORE, options=("--deflate",)),
]

# TableForge with one shard and with two, the second on the generator's core.
SHARDS = [
    TABLEFORGE,
    of_tableforge(
        "tableforge-2-shards",
        "TableForge, 2 shards",
        "dev",
        {**ON_ONE_CORE, "SHARDS": "2"},
        more_cores=frozenset({1}),
    ),
]

# Two instances on one Redis.
CLUSTER = [
    of_tableforge("tableforge-cluster", "TableForge", "serve", _IN_CLUSTER),
    Peer("ws-ioredis", "ws with ioredis", _node("ws.js")),
    Peer(
        "socketio-redis",
        "Socket.IO, Redis adapter",
        _node("socketio.js"),
        "socketio",
        "/socket.io/",
        environment={"ADAPTER": "redis"},
    ),
    Peer(
        "socketio-sharded",
        "Socket.IO, sharded adapter",
        _node("socketio.js"),
        "socketio",
        "/socket.io/",
        environment={"ADAPTER": "sharded"},
    ),
]

NAMES = list(dict.fromkeys(peer.name for peer in ACCEPTING + DEFLATE + SHARDS + CLUSTER))
