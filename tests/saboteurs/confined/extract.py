"""A stage that tries what no stage should: each order names one deed, and the answer says how it went.

Each deed is possible for a process of this account that is not confined; a test makes sure of that first.
"""

from __future__ import annotations

import ctypes
import errno
import fcntl
import mmap
import os
import resource
import signal
import socket
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from engine.ports import Place
from engine.workers import child

Deed = Callable[[Mapping[str, Any], Place], object]


def open_stage(options: Mapping[str, Any]) -> Confined:
    """No options."""
    return Confined()


class Confined:
    """Does as it is told, and says what the kernel answered."""

    def run(self, order: Mapping[str, Any], place: Place) -> Mapping[str, Any]:
        """Order: {"do": name of the deed, ...}. Returns {"refused": name of the error, "" for none, "said": ...}."""
        try:
            said = DEEDS[order["do"]](order, place)
        except OSError as error:
            if order.get("raise"):
                raise
            return {"refused": errno.errorcode.get(error.errno or 0, "?"), "said": str(error)}
        return {"refused": "", "said": str(said)}


def _fork(order: Mapping[str, Any], place: Place) -> object:
    pid = os.fork()
    if pid == 0:
        os._exit(0)
    return os.waitpid(pid, 0)[1]


def _connect(order: Mapping[str, Any], place: Place) -> object:
    with socket.socket(socket.AF_UNIX) as line:
        line.connect(order["line"])
    return "connected"


def _dial(order: Mapping[str, Any], place: Place) -> object:
    with socket.socket(socket.AF_INET) as line:
        line.connect(("127.0.0.1", order["tcp"]))
    return "connected"


def _send(order: Mapping[str, Any], place: Place) -> object:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as line:
        return line.sendto(b"leak", ("127.0.0.1", order["udp"]))


def _pass(order: Mapping[str, Any], place: Place) -> object:
    # The pipe to the coordinator is a socket, which could carry descriptors; nothing is sent through it here.
    with socket.socket(fileno=os.dup(int(sys.argv[1]))) as line:
        return line.getsockname()


def _call(name: str, *words: object) -> int:
    found = int(getattr(ctypes.CDLL(None, use_errno=True), name)(*words))
    if found < 0:
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))
    return found


def _grow(order: Mapping[str, Any], place: Place) -> object:
    with (place.outbox / "huge").open("wb") as file:
        return file.truncate(order["bytes"])


def _thread(order: Mapping[str, Any], place: Place) -> object:
    done = threading.Event()
    thread = threading.Thread(target=done.set)
    thread.start()
    thread.join()
    return done.is_set()


def _write(order: Mapping[str, Any], place: Place) -> object:
    (place.outbox / "draft").write_text((place.inbox / order["name"]).read_text())
    os.replace(place.outbox / "draft", place.outbox / "result")
    with (place.outbox / "result").open("r+") as file:
        file.truncate(2)
    return (place.outbox / "result").read_text()


def _leave_outbox(order: Mapping[str, Any], place: Place) -> object:
    os.rename(place.outbox, place.outbox.with_name("elsewhere"))
    os.rename(place.outbox.with_name("elsewhere"), place.outbox)
    return "moved"


def _own_signal(order: Mapping[str, Any], place: Place) -> object:
    heard = list[int]()
    before = signal.signal(signal.SIGUSR1, lambda number, frame: heard.append(number))
    os.kill(os.getpid(), signal.SIGUSR1)
    signal.raise_signal(signal.SIGUSR1)
    signal.signal(signal.SIGUSR1, before)
    return len(heard)


def _own_limit(order: Mapping[str, Any], place: Place) -> object:
    return resource.prlimit(os.getpid(), resource.RLIMIT_DATA, resource.getrlimit(resource.RLIMIT_DATA))


def _other_limit(order: Mapping[str, Any], place: Place) -> object:
    pid = order["parent"]
    return resource.prlimit(pid, resource.RLIMIT_CORE, resource.prlimit(pid, resource.RLIMIT_CORE))


def _rights(order: Mapping[str, Any], place: Place) -> object:
    lines = Path("/proc/self/status").read_text().splitlines()
    return [int(line.split()[1], 16) for line in lines if line.startswith(("CapPrm", "CapEff", "CapInh"))]


def _lease(order: Mapping[str, Any], place: Place) -> object:
    with (place.outbox / "leased").open("wb") as file:
        fcntl.fcntl(file, fcntl.F_SETLEASE, fcntl.F_WRLCK)
        return fcntl.fcntl(file, fcntl.F_SETLEASE, fcntl.F_UNLCK)


def _fill_pipe(order: Mapping[str, Any], place: Place) -> object:
    out, into = os.pipe()
    data = ctypes.create_string_buffer(4096)
    vector = (ctypes.c_void_p * 2)(ctypes.addressof(data), len(data))
    try:
        return _call("vmsplice", into, ctypes.byref(vector), 1, 0)
    finally:
        os.close(out)
        os.close(into)


def _make_timers(order: Mapping[str, Any], place: Place) -> object:
    timers = [ctypes.c_void_p() for _ in range(1000)]
    made = list[ctypes.c_void_p]()
    try:
        for timer in timers:
            _call("timer_create", 0, None, ctypes.byref(timer))
            made.append(timer)
    finally:
        for timer in made:
            _call("timer_delete", timer)
    return len(made)


def _measure(order: Mapping[str, Any], place: Place) -> object:
    """As the worker does before each item: 64 MiB that have been given back are not in the new measurement."""
    len(bytearray(b"x" * (64 << 20)))
    before = child._peak_bytes()
    child._reset_peak()
    return before - child._peak_bytes() > 32 << 20


DEEDS: dict[str, Deed] = {
    # What it may.
    "write a result": _write,
    "start a thread": _thread,
    "signal itself": _own_signal,
    "set its own limit": _own_limit,
    "measure its peak anew": _measure,
    "say its rights": _rights,
    "read beside a closed folder": lambda order, place: Path(order["open"]).read_text(),
    "make a temporary file": lambda order, place: os.close(tempfile.mkstemp()[0]),
    # What it may not: files.
    "read another's file": lambda order, place: Path(order["path"]).read_text(),
    "read in the working folder": lambda order, place: Path(order["beside"]).read_text(),
    "list another's folder": lambda order, place: os.listdir(order["folder"]),
    "list its own home": lambda order, place: os.listdir(place.inbox.parent),
    "read another's through /proc": lambda order, place: os.open(f"/proc/{order['parent']}/environ", os.O_RDONLY),
    "write another's file": lambda order, place: Path(order["path"]).open("r+").close(),
    "write beside its outbox": lambda order, place: (place.inbox.parent / "beside").write_text("x"),
    "write into its inbox": lambda order, place: (place.inbox / "mine").write_text("x"),
    "write in the temporary folder": lambda order, place: (Path(order["folder"]) / "mine").write_text("x"),
    "remove another's file": lambda order, place: os.unlink(order["spare"]),
    "shorten another's file": lambda order, place: os.truncate(order["path"], 3),
    "chmod another's file": lambda order, place: os.chmod(order["path"], 0o600),
    "chown another's file": lambda order, place: os.chown(order["path"], os.getuid(), os.getgid()),
    "date another's file": lambda order, place: os.utime(order["path"]),
    "mark another's file": lambda order, place: os.setxattr(order["path"], "user.mine", b"x"),
    "watch another's folder": lambda order, place: os.close(_call("inotify_init1", 0)),
    # What it may not: its outbox.
    "make a symbolic link": lambda order, place: os.symlink(order["path"], place.outbox / "link"),
    "make a hard link": lambda order, place: os.link(place.inbox / order["name"], place.outbox / "hard"),
    "make a folder": lambda order, place: os.mkdir(place.outbox / "folder"),
    "make a FIFO": lambda order, place: os.mkfifo(place.outbox / "fifo"),
    "move its outbox": _leave_outbox,
    "make a huge file": _grow,
    # What it may not: others and the network.
    "open a TCP connection": _dial,
    "send by UDP": _send,
    "connect to a Unix socket": _connect,
    "make a pair of sockets": lambda order, place: socket.socketpair(),
    "use its pipe as a socket": _pass,
    "signal its parent": lambda order, place: os.kill(order["parent"], 0),
    "signal its own group": lambda order, place: os.killpg(os.getpid(), 0),
    "hold its parent": lambda order, place: os.close(os.pidfd_open(order["parent"])),
    "limit its parent": _other_limit,
    "leave its group": lambda order, place: subprocess.run(["setsid", "true"], check=True),
    "outlive its parent": lambda order, place: _call("prctl", 1, 0, 0, 0, 0),
    "run a program": lambda order, place: subprocess.run(["true"], check=True),
    "fork": _fork,
    "ask for network cards": lambda order, place: fcntl.ioctl(int(sys.argv[1]), 0x8912, bytes(16)),
    "run before others": lambda order, place: os.sched_setscheduler(0, os.SCHED_BATCH, os.sched_param(0)),
    "hide from the coordinator": lambda order, place: _call("prctl", 4, 0, 0, 0, 0) or _call("prctl", 4, 1, 0, 0, 0),
    "hold up who opens its file": _lease,
    # What it may not: memory that nobody counts.
    "make a file in memory": lambda order, place: os.close(os.memfd_create("mine")),
    "share memory that is no file's": lambda order, place: mmap.mmap(-1, mmap.PAGESIZE).close(),
    "keep memory in a pipe": _fill_pipe,
    "make all the timers there are": _make_timers,
    "enlarge a pipe": lambda order, place: fcntl.fcntl(2, fcntl.F_SETPIPE_SZ, 1 << 17),
    "have more addresses": lambda order, place: mmap.mmap(
        -1, 1 << 38, mmap.MAP_PRIVATE | 0x4000, mmap.PROT_READ
    ).close(),
}
