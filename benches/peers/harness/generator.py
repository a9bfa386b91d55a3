"""One run of the load generator."""

import json
import subprocess
import time
from pathlib import Path

from . import processes

# Seconds between the line that says that all connections are ready and the first message.
LEAD_SECONDS = 0.1
# Seconds for all connections to become ready.
CONNECT_SECONDS = 60
# What the generator says on standard error when they are.
READY = " connections ready in "


class RunFailed(Exception):
    """The generator could not make the run; the text says why."""


class Generator:
    """A load generator at work; use it as a context, it ends with that."""

    def __init__(self, program, directory, name, arguments, cores):
        self._output, self._log = Path(directory, f"{name}.json"), Path(directory, f"{name}.log")
        command = [program, *arguments, "--json"]
        with open(self._output, "wb") as output:
            self._process = processes.spawn(command, cores, self._log, stdout=output)

    def __enter__(self):
        return self

    def __exit__(self, *_):
        processes.end(self._process)

    def await_ready(self):
        """Waits until all connections are ready."""
        deadline = time.monotonic() + CONNECT_SECONDS
        while READY not in self._log.read_text(errors="replace"):
            if self._process.poll() is not None or time.monotonic() > deadline:
                raise RunFailed(self._log.read_text(errors="replace").strip()[-500:] or "not ready in time")
            time.sleep(0.005)

    def result(self, seconds):
        """Waits for the end, `seconds` at most, and returns the figures."""
        try:
            self._process.wait(seconds)
        except subprocess.TimeoutExpired:
            raise RunFailed(f"the generator did not end within {seconds:.0f} s") from None
        text = self._output.read_text()
        if not text:
            raise RunFailed(self._log.read_text(errors="replace").strip()[-500:])
        return json.loads(text)
