"""A Redis of its own for each run, and what it used."""

import contextlib
import shutil
import socket
from dataclasses import dataclass

from . import processes


@dataclass
class Reading:
    """What Redis had used and transferred at one moment."""

    cpu_seconds: float
    input_bytes: int
    output_bytes: int
    commands: int

    def since(self, before):
        """The difference to an earlier reading."""
        return Reading(
            self.cpu_seconds - before.cpu_seconds,
            self.input_bytes - before.input_bytes,
            self.output_bytes - before.output_bytes,
            self.commands - before.commands,
        )


def program():
    """The path of redis-server, or None."""
    return shutil.which("redis-server")


class Redis:
    """A running Redis."""

    def __init__(self, process, port):
        self.port = port
        self._pid = process.pid
        self._connection = socket.create_connection(("127.0.0.1", port), timeout=5)

    def read(self):
        """What it has used so far."""
        self._connection.sendall(b"INFO stats\r\n")
        received = b""
        # A bulk string: $LENGTH, the text, each with a line end.
        while b"\r\n" not in received or len(received) < self._length(received):
            received += self._connection.recv(65_536)
        lines = (line.split(":", 1) for line in received.decode().splitlines() if ":" in line)
        stats = dict(lines)
        return Reading(
            processes.cpu_seconds(self._pid),
            int(stats["total_net_input_bytes"]),
            int(stats["total_net_output_bytes"]),
            int(stats["total_commands_processed"]),
        )

    @staticmethod
    def _length(received):
        header, _ = received.split(b"\r\n", 1)
        return len(header) + 2 + int(header[1:]) + 2

    def close(self):
        """Closes the connection that readings come over."""
        self._connection.close()


@contextlib.contextmanager
def running(cores, log):
    """A Redis without persistence; ended with the block."""
    port = processes.free_port()
    command = [program(), "--port", port, "--bind", "127.0.0.1", "--save", "", "--appendonly", "no"]
    with processes.listening(command, port, cores, log) as process:
        redis = Redis(process, port)
        with contextlib.closing(redis):
            yield redis
