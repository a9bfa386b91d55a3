"""Runs a server whose threads can be stopped one by one.

Usage: stalling.py PROGRAM ARGUMENT...    SIGUSR1 stops the thread of shard 0 of the program, SIGUSR2 lets it go on.
A debugger's means (ptrace) for it: a signal would stop the whole process."""

import ctypes
import os
import signal
import subprocess
import sys

PTRACE_CONT, PTRACE_DETACH, PTRACE_SEIZE, PTRACE_INTERRUPT, PTRACE_O_EXITKILL = 7, 17, 0x4206, 0x4207, 1 << 20
PR_SET_PDEATHSIG = 1
# Waits for threads that no one else has started, too.
WALL = 0x40000000

libc = ctypes.CDLL(None, use_errno=True)
libc.ptrace.argtypes = [ctypes.c_long, ctypes.c_long, ctypes.c_void_p, ctypes.c_void_p]


def ptrace(request, thread, data=0):
    if libc.ptrace(request, thread, None, data) != 0:
        raise OSError(ctypes.get_errno(), f"ptrace {request}")


def shard(process):
    """The id of the thread of shard 0."""
    # Those that it has started bear its name too.
    for thread in sorted(int(thread) for thread in os.listdir(f"/proc/{process}/task")):
        with open(f"/proc/{process}/task/{thread}/comm") as name:
            if name.read().startswith("tf-shard-0"):
                return thread
    raise LookupError("there is no thread tf-shard-0")


def main():
    # The server ends with this program, whatever ends this one.
    server = subprocess.Popen(sys.argv[1:], preexec_fn=lambda: libc.prctl(PR_SET_PDEATHSIG, signal.SIGKILL))
    wanted = {signal.SIGUSR1, signal.SIGUSR2, signal.SIGCHLD}
    stopped = None
    while server.poll() is None:
        # They are blocked, and so wait here for this thread, which alone may ask ptrace for anything.
        got = signal.sigtimedwait(wanted, 0.2)
        if got and got.si_signo == signal.SIGUSR1 and stopped is None:
            stopped = shard(server.pid)
            ptrace(PTRACE_SEIZE, stopped, PTRACE_O_EXITKILL)
            ptrace(PTRACE_INTERRUPT, stopped)
            os.waitpid(stopped, WALL)
            print("shard 0 stands still", flush=True)
        elif got and got.si_signo == signal.SIGUSR2 and stopped is not None:
            ptrace(PTRACE_DETACH, stopped)
            stopped = None
            print("shard 0 goes on", flush=True)
    sys.exit(server.returncode)


if __name__ == "__main__":
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGUSR1, signal.SIGUSR2, signal.SIGCHLD})
    main()
