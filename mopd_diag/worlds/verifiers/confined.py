"""The inside of the sandbox: limits that a Linux process puts on itself, and the harness that then runs a program.

Standard library only, and run as a script by `sandbox.py`: the child starts in a few milliseconds without site-packages.

Three layers, all of which a process without privileges may set and none may lift: resource limits (memory, processor time,
files), Landlock (what may be read), and a seccomp filter (which system calls exist at all: no sockets, no new processes or
threads, no signals to others, no file opened for writing). Numbers from the Linux headers asm/unistd_64.h,
asm-generic/unistd.h, linux/seccomp.h and linux/landlock.h.
"""

from __future__ import annotations

import ctypes
import json
import math
import os
import platform
import struct
import sys
from collections.abc import Iterable, Mapping
from typing import Any

# Name → number on x86-64 and on aarch64; -1 where the machine has no such call. Everything else is refused with EPERM.
CALLS: dict[str, tuple[int, int]] = {
    "read": (0, 63), "write": (1, 64), "readv": (19, 65), "writev": (20, 66), "pread64": (17, 67), "lseek": (8, 62),
    "close": (3, 57), "dup": (32, 23), "dup3": (292, 24), "fcntl": (72, 25), "ioctl": (16, 29),
    "poll": (7, -1), "ppoll": (271, 73), "select": (23, -1), "pselect6": (270, 72),
    "stat": (4, -1), "lstat": (6, -1), "fstat": (5, 80), "newfstatat": (262, 79), "statx": (332, 291),
    "access": (21, -1), "faccessat": (269, 48), "faccessat2": (439, 439), "readlink": (89, -1), "readlinkat": (267, 78),
    "getdents64": (217, 61), "getcwd": (79, 17),
    "mmap": (9, 222), "mprotect": (10, 226), "munmap": (11, 215), "mremap": (25, 216), "madvise": (28, 233), "brk": (12, 214),
    "rt_sigaction": (13, 134), "rt_sigprocmask": (14, 135), "rt_sigreturn": (15, 139), "sigaltstack": (131, 132),
    "sched_yield": (24, 124), "sched_getaffinity": (204, 123), "futex": (202, 98), "membarrier": (324, 283), "rseq": (334, 293),
    "set_tid_address": (218, 96), "set_robust_list": (273, 99), "arch_prctl": (158, -1), "restart_syscall": (219, 128),
    "nanosleep": (35, 101), "clock_nanosleep": (230, 115), "gettimeofday": (96, 169), "time": (201, -1),
    "clock_gettime": (228, 113), "clock_getres": (229, 114), "times": (100, 153), "getrusage": (98, 165),
    "getpid": (39, 172), "getppid": (110, 173), "gettid": (186, 178), "getuid": (102, 174), "geteuid": (107, 175),
    "getgid": (104, 176), "getegid": (108, 177), "sysinfo": (99, 179), "uname": (63, 160), "getrandom": (318, 278),
    "exit": (60, 93), "exit_group": (231, 94),
}  # fmt: skip
OPENS = {"open": ((2, -1), 1), "openat": ((257, 56), 2)}
"""Calls that open a file, and which argument holds the flags."""
WRITING = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_APPEND

MACHINES = {"x86_64": (0, 0xC000003E, 317), "aarch64": (1, 0xC00000B7, 277)}
"""Machine → column of the tables above, its AUDIT_ARCH, the number of the seccomp call itself."""
LANDLOCK_CREATE, LANDLOCK_ADD, LANDLOCK_RESTRICT = 444, 445, 446
READ_FILE, READ_DIR, ALL_RIGHTS = 1 << 2, 1 << 3, (1 << 13) - 1  # the rights of Landlock's first version
NO_NEW_PRIVILEGES, PARENT_DEATH_SIGNAL = 38, 1
ALLOW, REFUSE, KILL = 0x7FFF0000, 0x00050001, 0x80000000  # REFUSE is SECCOMP_RET_ERRNO with EPERM
FILTER_MODE, ON_ALL_THREADS, ACTION_AVAILABLE = 1, 1, 2


def unsupported() -> str:
    """Why the limits cannot be set on this machine, in a few words; empty when they can."""
    if sys.platform != "linux" or platform.machine() not in MACHINES:
        return f"it needs Linux on {' or '.join(MACHINES)}, this is {sys.platform} on {platform.machine()}"
    libc, (_, _, seccomp) = ctypes.CDLL(None, use_errno=True), MACHINES[platform.machine()]
    if libc.syscall(LANDLOCK_CREATE, None, ctypes.c_size_t(0), 1) < 1:
        return "this kernel or container has no Landlock (Linux 5.13 and newer)"
    if libc.syscall(seccomp, ACTION_AVAILABLE, 0, ctypes.byref(ctypes.c_uint32(REFUSE & 0x7FFF0000))):
        return "this kernel or container has no seccomp filters"
    return ""


def limit(*, memory: int, cpu: int | None = None, files: int | None = None) -> None:
    """Resource limits: bytes of address space, seconds of processor time, open files; nothing on disk, no core files."""
    import resource  # not on every system

    table = {resource.RLIMIT_AS: memory, resource.RLIMIT_FSIZE: 0, resource.RLIMIT_CORE: 0, resource.RLIMIT_NPROC: 0}
    table |= {} if cpu is None else {resource.RLIMIT_CPU: cpu}
    table |= {} if files is None else {resource.RLIMIT_NOFILE: files}
    for which, most in table.items():
        resource.setrlimit(which, (most, most))


def restrict(readable: Iterable[str]) -> None:
    """From here on this process reads below `readable` only, writes no file, opens no socket, starts no process or thread."""
    libc = ctypes.CDLL(None, use_errno=True)
    _checked(libc.prctl(NO_NEW_PRIVILEGES, 1, 0, 0, 0), "no_new_privs")
    _read_only(libc, readable)
    column, architecture, seccomp = MACHINES[platform.machine()]
    program = _filter(column, architecture)
    code = ctypes.create_string_buffer(program, len(program))
    prog = struct.pack("HxxxxxxP", len(program) // 8, ctypes.addressof(code))
    _checked(libc.syscall(seccomp, FILTER_MODE, ON_ALL_THREADS, prog), "seccomp")


def _read_only(libc: Any, readable: Iterable[str]) -> None:
    rights = struct.pack("Q", ALL_RIGHTS)
    ruleset = _checked(libc.syscall(LANDLOCK_CREATE, rights, ctypes.c_size_t(len(rights)), 0), "landlock")
    for path in readable:
        folder = os.open(path, os.O_PATH | os.O_CLOEXEC)
        allowed = READ_FILE | (READ_DIR if os.path.isdir(path) else 0)  # noqa: PTH112 (pathlib is slow to import)
        _checked(libc.syscall(LANDLOCK_ADD, ruleset, 1, struct.pack("=Qi", allowed, folder), 0), "landlock rule")
        os.close(folder)
    _checked(libc.syscall(LANDLOCK_RESTRICT, ruleset, 0), "landlock restrict")
    os.close(ruleset)


def _filter(column: int, architecture: int) -> bytes:
    """The seccomp program: classic BPF, 8 bytes an instruction (operation, jump if true, jump if false, constant)."""
    load, equal, any_bit, give = 0x20, 0x15, 0x45, 0x06
    lines = [(load, 0, 0, 4), (equal, 1, 0, architecture), (give, 0, 0, KILL), (load, 0, 0, 0)]
    for numbers in CALLS.values():
        if numbers[column] >= 0:
            lines += [(equal, 0, 1, numbers[column]), (give, 0, 0, ALLOW)]
    for numbers, flags in OPENS.values():
        if numbers[column] >= 0:
            at = 16 + 8 * flags  # the low half of that argument
            lines += [(equal, 0, 4, numbers[column]), (load, 0, 0, at), (any_bit, 0, 1, WRITING), (give, 0, 0, REFUSE)]
            lines += [(give, 0, 0, ALLOW)]
    lines.append((give, 0, 0, REFUSE))
    return b"".join(struct.pack("HBBI", *line) for line in lines)


def _checked(result: int, what: str) -> int:
    if result < 0:
        raise OSError(ctypes.get_errno(), f"{what}: {os.strerror(ctypes.get_errno())}")
    return result


def _run(job: Mapping[str, Any]) -> None:
    """Run the program and then its tests in one namespace; write the token only when both came to their end."""
    said = os.dup(1)
    quiet = os.open(os.devnull, os.O_RDWR)
    for stream in (0, 1, 2):
        os.dup2(quiet, stream)
    ctypes.CDLL(None).prctl(PARENT_DEATH_SIGNAL, 9, 0, 0, 0)
    limit(memory=job["memory"], cpu=math.ceil(job["seconds"]) + 1, files=16)
    restrict(job["readable"])
    namespace = {"__name__": "__main__"}
    for part in ("program", "tests"):
        exec(compile(job[part], f"<{part}>", "exec"), namespace)  # the one place where a model's text is run
    os.write(said, job["token"].encode())
    os._exit(0)


if __name__ == "__main__":
    _run(json.loads(sys.stdin.buffer.read()))
