"""Server processes: started on given cores, awaited, measured, and ended whatever happens."""

import contextlib
import ctypes
import os
import random
import resource
import signal
import socket
import subprocess
import time
from pathlib import Path

# Seconds for a server to accept connections.
START_SECONDS = 15
# Seconds for a process to end by itself once asked to.
END_SECONDS = 2
# What a child inherits of the environment; a stray setting in it would make another comparison.
INHERITED = ("PATH", "HOME", "LANG", "LD_LIBRARY_PATH")
# prctl(2): the signal that a child gets when its parent dies.
PR_SET_PDEATHSIG = 1
# Ports to choose from: below those from which the kernel serves outgoing connections.
PORTS = range(20_000, 30_000)

_libc = ctypes.CDLL(None, use_errno=True)


class DidNotStart(Exception):
    """A process ended, or did not listen in time; the text has the end of its output."""


def _become_child(cores):
    # Killed with this script, even if that is killed itself.
    _libc.prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    os.sched_setaffinity(0, cores)
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))


def spawn(command, cores, log, environment=None, stdout=None):
    """Starts a command on `cores`; its output goes to the file `log` (`stdout` apart if given)."""
    inherited = {name: os.environ[name] for name in INHERITED if name in os.environ}
    with open(log, "wb") as output:
        return subprocess.Popen(
            [str(part) for part in command],
            env={**inherited, **(environment or {})},
            stdin=subprocess.DEVNULL,
            stdout=stdout or output,
            stderr=output,
            start_new_session=True,
            preexec_fn=lambda: _become_child(cores),
        )


def end(process):
    """Asks a process to end, and kills it if it does not."""
    if process.poll() is None:
        process.terminate()
        try:
            process.wait(END_SECONDS)
        except subprocess.TimeoutExpired:
            process.kill()
    process.wait()


def free_port():
    """A port that nothing listens on."""
    while True:
        port = random.choice(PORTS)
        with socket.socket() as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            with contextlib.suppress(OSError):
                probe.bind(("127.0.0.1", port))
                return port


def _await_port(process, port, log):
    deadline = time.monotonic() + START_SECONDS
    while time.monotonic() < deadline:
        if process.poll() is not None:
            break
        with contextlib.suppress(OSError):
            socket.create_connection(("127.0.0.1", port), timeout=1).close()
            return
        time.sleep(0.02)
    output = Path(log).read_text(errors="replace")[-2_000:]
    raise DidNotStart(f"{process.args[0]} does not listen on port {port}: {output}")


@contextlib.contextmanager
def listening(command, port, cores, log, environment=None):
    """A process that accepts connections on `port`; ended with the block."""
    process = spawn(command, cores, log, environment)
    try:
        _await_port(process, port, log)
        yield process
    finally:
        end(process)


def cpu_seconds(pid):
    """CPU time that the threads of a process have used, to the nanosecond (/proc/PID/task/*/schedstat)."""
    nanoseconds = 0
    for thread in Path(f"/proc/{pid}/task").iterdir():
        with contextlib.suppress(FileNotFoundError, ProcessLookupError):
            nanoseconds += int((thread / "schedstat").read_text().split()[0])
    return nanoseconds / 1e9
