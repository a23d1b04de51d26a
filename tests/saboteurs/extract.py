"""A stage that behaves as each order says: `order["do"]` names one of the functions below."""

from __future__ import annotations

import ctypes
import json
import mmap
import os
import resource
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any, NoReturn

from engine.ports import Place, StageFailed
from engine.processes import start_time
from engine.reasons import Reason

Result = Mapping[str, Any]
_kept: list[bytearray | mmap.mmap] = []


def open_stage(options: Mapping[str, Any]) -> Saboteur:
    """No options."""
    return Saboteur()


class Saboteur:
    """Does as it is told."""

    def run(self, order: Mapping[str, Any], place: Place) -> Result:
        """Order: {"do": name of the deed, ...}."""
        return DEEDS[order["do"]](order, place)


# --- honest deeds ---


def write(order: Mapping[str, Any], place: Place) -> Result:
    """Writes `text` into the outbox."""
    (place.outbox / order["name"]).write_text(order["text"])
    return {"file": order["name"]}


def copy(order: Mapping[str, Any], place: Place) -> Result:
    """Copies a file of the inbox into the outbox."""
    (place.outbox / order["name"]).write_bytes((place.inbox / order["name"]).read_bytes())
    return {"file": order["name"]}


def measure(order: Mapping[str, Any], place: Place) -> Result:
    """Says how large its own order is."""
    return {"chars": len(order["text"])}


def work(order: Mapping[str, Any], place: Place) -> Result:
    """Uses so many CPU seconds."""
    until = time.process_time() + order["seconds"]
    while time.process_time() < until:
        pass
    return {}


# --- failures that a stage states or raises ---


def fail(order: Mapping[str, Any], place: Place) -> NoReturn:
    """A failure that the stage understands."""
    raise StageFailed(Reason.DAMAGED, "page 3 is\x1b[31m torn")


def error(order: Mapping[str, Any], place: Place) -> NoReturn:
    """A failure that it does not."""
    raise KeyError("half a \ud800 character")


def allocate(order: Mapping[str, Any], place: Place) -> Result:
    """Asks for so much memory, and gives it back."""
    return {"bytes": len(bytearray(order["bytes"]))}


def look(order: Mapping[str, Any], place: Place) -> Result:
    """Says how much memory it may still take, and how much the process has."""
    resident_pages = int(Path("/proc/self/statm").read_text().split()[1])
    return {"left": place.memory_left(), "resident": resident_pages * resource.getpagesize()}


def keep(order: Mapping[str, Any], place: Place) -> Result:
    """Leaks so much memory, all of it in use."""
    _kept.append(_take(order["bytes"]))
    return {}


def hoard(order: Mapping[str, Any], place: Place) -> NoReturn:
    """Runs out of memory, and keeps what it had, as some libraries do."""
    keep(order, place)
    raise MemoryError


def leave_open(order: Mapping[str, Any], place: Place) -> Result:
    """Opens files until there may be no more, and leaves them open, as some libraries do with damaged ones."""
    resource.setrlimit(resource.RLIMIT_NOFILE, (256, 256))
    with suppress(OSError):
        while True:
            os.open(os.devnull, os.O_RDONLY)
    return {}


def grow(order: Mapping[str, Any], place: Place) -> NoReturn:
    """Takes more and more memory, until it is stopped."""
    while True:
        _kept.append(_take(8 << 20))
        time.sleep(0.02)


def stay(order: Mapping[str, Any], place: Place) -> NoReturn:
    """Takes so much memory, and stays so."""
    _kept.append(_take(order["bytes"]))
    sleep(order, place)


def burst(order: Mapping[str, Any], place: Place) -> Result:
    """Takes so much memory, and gives it back at once: nobody who looks now and then sees it."""
    _take(order["bytes"]).close()
    return {}


def _take(size: int) -> mmap.mmap:
    """So much memory, private and in use. (A bytearray takes it twice for a moment, or not at all.)"""
    memory = mmap.mmap(-1, size, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    for page in range(0, size, mmap.PAGESIZE):
        memory[page] = 1
    return memory


def fill_late(order: Mapping[str, Any], place: Place) -> Result:
    """Has so much memory mapped, and uses it, and as much again, as soon as a file in the inbox allows it."""
    memory = mmap.mmap(-1, order["bytes"], flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    _began(place)
    while not (place.inbox / "go").exists():
        time.sleep(0.005)
    for page in range(0, len(memory), mmap.PAGESIZE):
        memory[page] = 1
    return {"bytes": len(_take(order["bytes"]))}


def ask_first(order: Mapping[str, Any], place: Place) -> Result:
    """Takes so much memory as soon as a file in the inbox allows it."""
    _began(place)
    while not (place.inbox / "go").exists():
        time.sleep(0.005)
    return {"bytes": len(_take(order["bytes"]))}


def endless_list(order: Mapping[str, Any], place: Place) -> Result:
    """A result so deep that it cannot be sent."""
    deep: list[Any] = []
    for _ in range(100_000):
        deep = [deep]
    return {"deep": deep}


# --- ends ---


def read_null(order: Mapping[str, Any], place: Place) -> Result:
    """A segmentation fault in native code."""
    ctypes.string_at(0)
    return {}


def signal_itself(order: Mapping[str, Any], place: Place) -> Result:
    """Ends by a signal."""
    os.kill(os.getpid(), order["signal"])
    return {}


def abort(order: Mapping[str, Any], place: Place) -> NoReturn:
    """As an assertion of a C library does."""
    os.abort()


def exit_now(order: Mapping[str, Any], place: Place) -> NoReturn:
    """Ends without a word, or with last words."""
    os.write(2, order.get("words", "").encode())
    os._exit(order["code"])


def exit_politely(order: Mapping[str, Any], place: Place) -> NoReturn:
    """As a library that believes it is a program."""
    sys.exit(order["code"])


def smear_slate(order: Mapping[str, Any], place: Place) -> NoReturn:
    """Ends after it has written something else on its slate, or put a pipe in its place."""
    slate = place.inbox.parent / "slate"
    if order["text"] == "fifo":
        slate.unlink()
        os.mkfifo(slate)
    else:
        slate.write_text(order["text"])
    os._exit(order.get("code", 1))


# --- standing still ---


def _began(place: Place, told: str = "now") -> None:
    """Tells the test, at once and whole, that the deed has begun."""
    (place.outbox / "began.new").write_text(told)
    (place.outbox / "began.new").rename(place.outbox / "began")


def sleep(order: Mapping[str, Any], place: Place) -> NoReturn:
    """For ever."""
    _began(place)
    while True:
        signal.pause()


def spin(order: Mapping[str, Any], place: Place) -> NoReturn:
    """An endless loop."""
    while True:
        pass


def hold(order: Mapping[str, Any], place: Place) -> Result:
    """A loop in native code that lets no other thread and no signal handler run."""
    return {"sum": sum(range(10**15))}


def chatter(order: Mapping[str, Any], place: Place) -> NoReturn:
    """For ever, and says all the time that it gets on."""
    while True:
        place.progress(1, 2)
        time.sleep(0.05)


def shout(order: Mapping[str, Any], place: Place) -> Result:
    """Writes so much to its standard error."""
    line = b"x" * (1 << 20)
    for _ in range(order["mib"]):
        rest = memoryview(line)
        while rest:
            rest = rest[os.write(2, rest) :]
    return {}


def many_threads(order: Mapping[str, Any], place: Place) -> NoReturn:
    """Threads that do nothing, as many as there may be."""
    while True:
        threading.Thread(target=signal.pause, daemon=True).start()


def many_processes(order: Mapping[str, Any], place: Place) -> NoReturn:
    """Programs that do nothing and take next to no memory, so many."""
    for _ in range(order["count"]):
        subprocess.Popen(["sleep", "600"])
    sleep(order, place)


def later(order: Mapping[str, Any], place: Place) -> Result:
    """Takes so much memory when the unit is over: its worker has nothing to do then, and nobody weighs it."""

    def go_on() -> None:
        while (place.inbox / "go").exists():
            time.sleep(0.005)
        _kept.append(_take(order["bytes"]))

    threading.Thread(target=go_on, daemon=True).start()
    return {}


# --- helpers left behind ---


def have_child(order: Mapping[str, Any], place: Place) -> Result:
    """Starts a process; then ends as `then` says."""
    child = subprocess.Popen(["sleep", "600"])
    return _with_helper(child.pid, order, place)


def have_orphan(order: Mapping[str, Any], place: Place) -> Result:
    """Starts a process whose own parent is gone."""
    found = subprocess.run(["sh", "-c", "sleep 600 >&- & echo $!"], stdout=subprocess.PIPE, check=True)
    return _with_helper(int(found.stdout), order, place)


def have_glutton(order: Mapping[str, Any], place: Place) -> NoReturn:
    """Starts a process that takes so much memory, and takes none itself."""
    subprocess.Popen([sys.executable, "-c", f"x = b'x' * {order['bytes']}; import signal; signal.pause()"])
    sleep(order, place)


def have_daemons(order: Mapping[str, Any], place: Place) -> Result:
    """Starts processes that leave the group, the session and the parent, all of them; `bare`: the environment too."""
    environment = {} if order["bare"] else dict(os.environ)
    for number in range(order["count"]):
        if os.fork() == 0:
            os.setsid()
            if os.fork() == 0:
                _sign(order["register"], f"daemon {number}")
                os.execve("/bin/sleep", ["sleep", "600"], environment)
            os._exit(0)
    return _then(order, place)


def multiply(order: Mapping[str, Any], place: Place) -> Result:
    """A fork bomb of so many generations: each starts two more, one of them in a session of its own."""
    if os.fork() == 0:
        _multiply(order["generations"], order["register"])
    return _then(order, place)


def _multiply(generations: int, register: str) -> NoReturn:
    _sign(register, f"{generations} {os.getpid()}")
    for own_session in (False, True) if generations else ():
        if os.fork() == 0:
            if own_session:
                os.setsid()
            _multiply(generations - 1, register)
    while True:
        signal.pause()


def _sign(register: str, name: str) -> None:
    """Leaves word of a process that somebody else has to find."""
    (Path(register) / f"{name}.new").write_text(json.dumps([os.getpid(), start_time(os.getpid())]))
    (Path(register) / f"{name}.new").rename(Path(register) / f"{name}.json")


def _then(order: Mapping[str, Any], place: Place) -> Result:
    match order["then"]:
        case "sleep":
            sleep(order, place)
        case "crash":
            while len(list(Path(order["register"]).glob("*.json"))) < order["expected"]:
                time.sleep(0.005)
            os._exit(1)
    return {}


def _with_helper(pid: int, order: Mapping[str, Any], place: Place) -> Result:
    result = {"helper": pid, "started": start_time(pid)}
    match order["then"]:
        case "sleep":
            _began(place, json.dumps(result))
            signal.pause()
        case "crash":
            _began(place, json.dumps(result))
            os._exit(1)
    return result


def swap_outbox(order: Mapping[str, Any], place: Place) -> Result:
    """Puts a link to somewhere else in the place of the outbox."""
    place.outbox.rmdir()
    place.outbox.symlink_to(Path(order["target"]))
    return {"file": order["name"]}


DEEDS: dict[str, Callable[[Mapping[str, Any], Place], Result]] = {
    "write": write,
    "copy": copy,
    "measure": measure,
    "work": work,
    "fail": fail,
    "raise": error,
    "allocate": allocate,
    "look": look,
    "keep": keep,
    "hoard": hoard,
    "leave open": leave_open,
    "grow": grow,
    "stay": stay,
    "burst": burst,
    "ask first": ask_first,
    "fill late": fill_late,
    "return bytes": lambda order, place: {"bytes": b"no JSON"},
    "return NaN": lambda order, place: {"number": float("nan")},
    "return half a character": lambda order, place: {"name": "a\ud800b"},
    "return too much": lambda order, place: {"text": "x" * (2 << 20)},
    "return something deep": endless_list,
    "read null": read_null,
    "signal": signal_itself,
    "abort": abort,
    "exit now": exit_now,
    "exit politely": exit_politely,
    "smear slate": smear_slate,
    "sleep": sleep,
    "spin": spin,
    "hold": hold,
    "chatter": chatter,
    "shout": shout,
    "many threads": many_threads,
    "many processes": many_processes,
    "later": later,
    "child": have_child,
    "orphan": have_orphan,
    "glutton": have_glutton,
    "daemons": have_daemons,
    "multiply": multiply,
    "swap outbox": swap_outbox,
}
