"""What a worker gives up before it reads the first byte of anybody's file: all but its own two folders.

Rule: done once in a process's life, before native libraries load and before there are threads. Files are closed by
Landlock, everything else by seccomp; neither can be undone. Imports nothing that is not Python's own.

    confine -> limits (cores, file size, descriptors, addresses), root's rights -> Landlock -> seccomp

What stays readable is the system and Python's own trees, never the data directory, wherever it lies. What can still be
known of other files is whether a path exists, and its size and times: Landlock does not hide those.
"""

from __future__ import annotations

import ctypes
import importlib
import os
import resource
import shutil
import struct
import sys
from collections.abc import Iterable, Iterator, Mapping
from contextlib import nullcontext, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from engine.errors import CannotRunError
from engine.workers import landlock, seccomp
from engine.workers.landlock import EXECUTE, IOCTL_DEV, MAKE_REG, READ, REMOVE_FILE, TRUNCATE, WRITE_FILE, Grant

#: Bytes of one file that a worker writes. The largest honest one is a FAISS file: this holds 2.7 million vectors of
#: 384 numbers.
MAX_FILE_BYTES: Final = 4 << 30
#: Open files of a worker. Some 20 are used with every library loaded; a part of the budget goes to pinned rules.
MAX_DESCRIPTORS: Final = 256
#: Timers and waiting signals of a worker. They are counted for its whole account: one process alone can take all that
#: the others of the account might want.
MAX_PENDING_SIGNALS: Final = 64
#: Addresses of a worker: a hundred times what any library maps. Two megabytes that are only read take a page of 4 KB to
#: keep track of, which no process is seen to hold: here these are 256 MB at most.
MAX_ADDRESS_BYTES: Final = 128 << 30
#: linux/capability.h: version 3; the one right of root that is kept, to read what root may read (CAP_DAC_READ_SEARCH).
_CAPABILITIES, _KEPT_CAPABILITIES = 0x20080522, 1 << 2
#: Where programs and libraries are kept that everybody on the machine may read.
_SYSTEM_TREES: Final = ("/usr", "/bin", "/lib", "/lib32", "/lib64", "/libx32", "/nix/store", "/gnu/store", "/etc/fonts")
#: The linker's list of libraries, the time zone, OpenSSL's rules (hashlib), the known media types.
_SYSTEM_FILES: Final = ("/etc/ld.so.cache", "/etc/localtime", "/etc/ssl/openssl.cnf", "/etc/mime.types")
#: Memory and cores, as libraries look at them; our own memory, as we do.
_READINGS: Final = (
    *("/proc/cpuinfo", "/proc/meminfo", "/proc/stat", "/sys/devices/system/cpu"),
    *("/proc/self/status", "/proc/self/statm", "/proc/self/stat", "/proc/self/maps"),
)
#: Writing to it begins a new measurement of the peak.
_PEAK_RESET: Final = "/proc/self/clear_refs"


@dataclass(frozen=True, slots=True, kw_only=True)
class Needs:
    """What a stage wants beside its folders: trees and files to read, and whether it runs other programs."""

    reads: tuple[Path, ...] = ()
    programs: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Rules:
    """What one worker may do.

    inbox, outbox  read the files in one; read, write, make and remove plain files in the other
    packages       names of Python packages that it loads code from
    private        folders that stay closed even where they lie beneath something that may be read
    needs          of its stage
    strict         no work without Landlock and seccomp; else what this machine lacks is done without
    """

    inbox: Path
    outbox: Path
    packages: tuple[str, ...]
    private: tuple[Path, ...] = ()
    needs: Needs = field(default_factory=Needs)
    strict: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Protections:
    """What this machine offers, or what holds in a worker.

    landlock  the version of Landlock (its ABI), 0: none
    seccomp   whether system calls are filtered
    lacking   what is not there ("Landlock", "seccomp") -> why, in words for people
    """

    landlock: int
    seccomp: bool
    lacking: Mapping[str, str] = field(default_factory=dict)

    def describe(self) -> str:
        """What workers are confined by, as part of a line: "Landlock (ABI 7), seccomp"; and why something is not."""
        found = [f"Landlock (ABI {self.landlock})"] if self.landlock else []
        words = ", ".join([*found, *(["seccomp"] if self.seccomp else [])]) or "nothing"
        return f"{words} ({'; '.join(self.lacking.values())})" if self.lacking else words


def find_protections() -> Protections:
    """What this machine offers. Changes nothing, takes microseconds, raises nothing."""
    lacking = dict[str, str]()
    abi = 0
    try:
        abi = landlock.version()
    except OSError as error:
        lacking["Landlock"] = str(error.strerror)
    obstacle = seccomp.find_obstacle()
    if obstacle is not None:
        lacking["seccomp"] = obstacle
    return Protections(landlock=abi, seccomp=obstacle is None, lacking=lacking)


def needs_of(stage: str, options: Mapping[str, Any]) -> Needs:
    """What the stage in module `stage` wants: only text recognition reads data of its own, or runs a program."""
    if stage.rpartition(".")[2] != "ocr":
        return Needs()
    from importlib.util import find_spec

    from engine.workers.tessdata import data_file, tessdata_folders

    reads, languages = list[Path](), [str(language) for language in options.get("languages") or ()]
    folders, found = tessdata_folders(), set[str]()
    for folder in folders:
        files = {language: data_file(folder, language) for language in languages}
        found.update(language for language, file in files.items() if file.is_file())
        # A folder may hold links to where the languages really are.
        reads += [folder, *(file for file in files.values() if file.is_symlink())]
    backend = options.get("backend") or "auto"
    lacking = find_spec("tesserocr") is None or not found.issuperset(languages)
    programs = backend == "pytesseract" or (backend == "auto" and lacking)
    program = shutil.which("tesseract") if programs else None
    if program is not None:
        real = Path(os.path.realpath(program))
        reads += [real, real.parent.parent / "lib", real.parent.parent / "share" / "tessdata"]
    return Needs(reads=tuple(reads), programs=programs)


def confine(rules: Rules) -> Protections:
    """Give up all that the rules do not name, for this process's life, and say what holds from now on: all that
    `find_protections` finds, so that what it says of this machine is true of each worker.

    Also loads `rules.packages` (themselves, not what is in them), and puts temporary files into the outbox. Raises
    CannotRunError when the rules are strict and something is lacking, or when something that is there refuses.
    """
    there = find_protections()
    if rules.strict and there.lacking:
        raise CannotRunError(cannot_be_strict(there.lacking))
    for package in rules.packages:
        # Now, since the folder that holds the package is closed afterwards: finding it means listing that.
        importlib.import_module(package)
    grants = list(_grants(rules))
    os.environ["TMPDIR"] = str(rules.outbox)
    _limit_resources()
    try:
        # Some containers forbid to speak of rights; what they leave of them is little.
        with nullcontext() if rules.strict else suppress(OSError):
            _drop_capabilities()
        landlock.forbid_new_rights()
        if there.landlock:
            landlock.restrict(grants)
        if there.seccomp:
            seccomp.install(programs=rules.needs.programs)
    except OSError as error:
        raise CannotRunError(f"workers cannot be confined: {error}; NIGHTMILL_SANDBOX=off does without") from error
    return there


def cannot_be_strict(lacking: Mapping[str, str]) -> str:
    """The sentence for who asked for a sandbox, or nothing, and gets nothing."""
    reasons = "; ".join(lacking.values())
    return f"NIGHTMILL_SANDBOX = strict, and workers cannot be confined: {reasons}; set it to auto, or mend it"


def _limit_resources() -> None:
    """Limits that hold without Landlock and seccomp too. What lowered them already stays."""
    limits = [
        (resource.RLIMIT_CORE, 0),
        (resource.RLIMIT_FSIZE, MAX_FILE_BYTES),
        (resource.RLIMIT_NOFILE, MAX_DESCRIPTORS),
        (resource.RLIMIT_AS, MAX_ADDRESS_BYTES),
    ]
    if sys.platform == "linux":
        limits.append((resource.RLIMIT_SIGPENDING, MAX_PENDING_SIGNALS))
    for what, most in limits:
        _, hard = resource.getrlimit(what)
        least = most if hard == resource.RLIM_INFINITY else min(most, hard)
        resource.setrlimit(what, (least, least))


def _drop_capabilities() -> None:
    """Who is root may raise limits, go before all others, and change the network: no worker has to."""
    libc = ctypes.CDLL(None, use_errno=True)
    head = struct.pack("=Ii", _CAPABILITIES, 0)
    # Twice effective, permitted, inheritable: the lower half of the rights, then the upper half.
    data = ctypes.create_string_buffer(24)
    if libc.capget(head, data):
        raise OSError(ctypes.get_errno(), "capabilities cannot be read")
    kept = struct.unpack_from("=I", data, 4)[0] & _KEPT_CAPABILITIES
    if libc.capset(head, struct.pack("=6I", kept, kept, 0, 0, 0, 0)):
        raise OSError(ctypes.get_errno(), "capabilities cannot be given up")


def _grants(rules: Rules) -> Iterator[Grant]:
    private = [_real(folder) for folder in rules.private]
    reading = READ | (EXECUTE if rules.needs.programs else 0)
    wanted: tuple[str | Path, ...]
    wanted = (*_SYSTEM_TREES, *_SYSTEM_FILES, *_python_trees(), *rules.needs.reads, *_package_folders(rules.packages))
    trees = (part for path in wanted for part in landlock.open_trees(_real(path), private))
    for tree in _outermost(trees):
        yield Grant(path=tree, rights=reading)
    for reading_file in _READINGS:
        yield Grant(path=Path(reading_file), rights=READ, pin=True)
    yield Grant(path=Path(_PEAK_RESET), rights=WRITE_FILE | TRUNCATE, pin=True)
    yield Grant(path=Path("/dev/urandom"), rights=READ)
    yield Grant(path=Path(os.devnull), rights=READ | WRITE_FILE | IOCTL_DEV)
    yield Grant(path=rules.inbox, rights=READ)
    yield Grant(path=rules.outbox, rights=READ | WRITE_FILE | TRUNCATE | MAKE_REG | REMOVE_FILE)


def _python_trees() -> Iterator[str]:
    """The standard library, and what was installed beside it or for this account: folders on `sys.path` that hold
    installed packages. Not the others, which may be anybody's working folder."""
    yield os.path.dirname(os.__file__)
    for prefix in dict.fromkeys((sys.prefix, sys.exec_prefix, sys.base_prefix, sys.base_exec_prefix)):
        # Not all of it: some make a virtual environment of their home.
        yield from (os.path.join(prefix, "lib"), os.path.join(prefix, "lib64"))
    for place in sys.path:
        if os.path.isfile(place) or _holds(place, ".dist-info"):
            yield place
    # Colons and semicolons part them, and an empty or relative one is of the working folder (ld.so(8)): anybody's.
    for place in os.environ.get("LD_LIBRARY_PATH", "").replace(";", ":").split(":"):
        if os.path.isabs(place) and _holds(place, ".so"):
            yield place


def _holds(place: str, ending: str) -> bool:
    """Something with that ending, whatever version stands behind it (libfaiss.so.1), lies directly in the folder."""
    try:
        return any(f"{ending}." in f"{name}." for name in os.listdir(place)) if place else False
    except OSError:
        return False


def _package_folders(names: Iterable[str]) -> Iterator[str]:
    for name in names:
        yield from sys.modules[name].__path__


def _outermost(trees: Iterable[Path]) -> list[Path]:
    """Those that lie beneath no other."""
    found = list[Path]()
    for tree in sorted(set(trees)):
        if not any(tree.is_relative_to(other) for other in found):
            found.append(tree)
    return found


def _real(path: str | Path) -> Path:
    return Path(os.path.realpath(path))
