"""Runs a program for which io_uring is forbidden, as a container's seccomp profile does it.

Usage: without_io_uring.py PROGRAM ARGUMENT..."""

import ctypes
import errno
import os
import struct
import sys

PR_SET_NO_NEW_PRIVS, PR_SET_SECCOMP, SECCOMP_MODE_FILTER = 38, 22, 2
SECCOMP_RET_ALLOW, SECCOMP_RET_ERRNO = 0x7FFF0000, 0x00050000
BPF_LOAD_WORD, BPF_JUMP_IF_EQUAL, BPF_RETURN = 0x20, 0x15, 0x06
# The same on all architectures.
IO_URING_SETUP = 425


class Program(ctypes.Structure):
    """struct sock_fprog."""

    _fields_ = [("length", ctypes.c_ushort), ("instructions", ctypes.c_char_p)]


def instruction(code, then, otherwise, value):
    """struct sock_filter."""
    return struct.pack("HBBI", code, then, otherwise, value)


def main():
    instructions = [
        instruction(BPF_LOAD_WORD, 0, 0, 0),
        instruction(BPF_JUMP_IF_EQUAL, 0, 1, IO_URING_SETUP),
        instruction(BPF_RETURN, 0, 0, SECCOMP_RET_ERRNO | errno.EPERM),
        instruction(BPF_RETURN, 0, 0, SECCOMP_RET_ALLOW),
    ]
    program = Program(len(instructions), b"".join(instructions))
    libc = ctypes.CDLL(None, use_errno=True)
    libc.prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0)
    if libc.prctl(PR_SET_SECCOMP, SECCOMP_MODE_FILTER, ctypes.byref(program), 0, 0) != 0:
        sys.exit(f"seccomp: {os.strerror(ctypes.get_errno())}")
    os.execv(sys.argv[1], sys.argv[1:])


if __name__ == "__main__":
    main()
