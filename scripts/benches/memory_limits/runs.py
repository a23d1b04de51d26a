"""One program under one limit, watched from outside until it ends.

Rule: what is told of memory comes from the kernel's own counts for the group, never from the program.
"""

from __future__ import annotations

import resource
import subprocess
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from memory_limits.groups import Group

#: As often as the engine's own guard looks.
_LOOK_SECONDS = 0.1
#: Points of a line in a picture; of the looks between two of them the highest is kept.
_POINTS = 400


@dataclass(frozen=True, slots=True, kw_only=True)
class Watched:
    """What was seen of one program.

    seconds            wall time from start to end
    cpu_seconds        of it and all descendants that were waited for
    peak_used_bytes    the most at any look, without file cache
    peak_kernel_bytes  the most that the kernel ever counted, with it
    limit_hits         how often the limit was touched
    line               (seconds, MiB without file cache)
    """

    said: str
    complaints: str
    exit_code: int
    seconds: float
    cpu_seconds: float
    peak_used_bytes: int
    peak_kernel_bytes: int
    oom_kills: int
    limit_hits: int
    line: tuple[tuple[float, float], ...]


def watch(group: Group, words: list[str], environ: Mapping[str, str], place: Path, most_seconds: float) -> Watched:
    """Run a command inside the group to its end; after `most_seconds` it is killed (exit code -9).

    place: a folder for what it prints.
    """
    looks: list[tuple[float, int]] = []
    used_before = _cpu_of_children()
    with open(place / "stdout", "w+") as out, open(place / "stderr", "w+") as err:
        began = time.monotonic()
        with subprocess.Popen(group.joining(words), env=environ, cwd=place, stdout=out, stderr=err) as process:
            try:
                number, code = 0, None
                while code is None:
                    looks.append((time.monotonic() - began, group.usage().used_bytes))
                    number += 1
                    try:
                        code = process.wait(max(0.001, began + number * _LOOK_SECONDS - time.monotonic()))
                    except subprocess.TimeoutExpired:
                        if time.monotonic() - began > most_seconds:
                            process.kill()
            finally:
                process.kill()  # Interrupted: it must not be waited for.
        seconds = time.monotonic() - began
        out.seek(0)
        err.seek(0)
        said, complaints = out.read(), err.read()
    peak = max(used for _, used in looks)
    return Watched(
        said=said,
        complaints=complaints[-4000:],
        exit_code=code,
        seconds=seconds,
        cpu_seconds=_cpu_of_children() - used_before,
        peak_used_bytes=peak,
        peak_kernel_bytes=group.peak_bytes() or peak,
        oom_kills=group.oom_kills(),
        limit_hits=group.limit_hits(),
        line=_thinned(looks),
    )


def _thinned(looks: list[tuple[float, int]]) -> tuple[tuple[float, float], ...]:
    step = max(1, len(looks) // _POINTS)
    groups = (looks[start : start + step] for start in range(0, len(looks), step))
    return tuple((round(some[0][0], 2), round(max(used for _, used in some) / 2**20, 1)) for some in groups)


def _cpu_of_children() -> float:
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime
