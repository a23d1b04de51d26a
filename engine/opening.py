"""What every way into the engine begins with: the data directory, and a desk at its scheduler.

Rule: runs and the Python API open the same things by the same rules, because they share limits.
"""

from __future__ import annotations

from pathlib import Path

from engine import guards
from engine.desk import Desk, open_desk
from engine.errors import CannotRunError
from engine.rendezvous import find_runtime_dir
from engine.settings import INDEXES_FOLDER, SPOOL_FOLDER, Settings
from engine.workers.sandbox import cannot_be_strict, find_protections, needs_of


def make_data_dir(settings: Settings) -> None:
    """The data directory, for this account alone. Raises CannotRunError when it cannot be made."""
    try:
        settings.data_dir.mkdir(mode=0o700, parents=True, exist_ok=True)
    except OSError as error:
        raise CannotRunError(
            f"the data directory {settings.data_dir} cannot be made: {error.strerror}; set NIGHTMILL_DATA_DIR"
        ) from error


def private_folders(settings: Settings) -> tuple[Path, ...]:
    """What no worker may read beyond its own folders: the data directory, and each of its rooms by itself, since
    something that a worker needs may lie in the data directory too, such as a virtual environment."""
    rooms = (settings.data_dir / name for name in (INDEXES_FOLDER, SPOOL_FOLDER))
    return (settings.data_dir, *rooms, find_runtime_dir(settings.data_dir))


def require_sandbox(settings: Settings) -> None:
    """Raises CannotRunError where NIGHTMILL_SANDBOX is strict and this machine cannot confine workers."""
    if settings.sandbox == "strict" and (lacking := find_protections().lacking):
        raise CannotRunError(cannot_be_strict(lacking))


def can_start_programs(settings: Settings) -> bool:
    """Workers may start other programs: nothing keeps them from it, or text recognition is one."""
    options = {"languages": settings.ocr_languages, "backend": settings.ocr_backend}
    ocr = needs_of("engine.workers.ocr", options)
    return settings.sandbox == "off" or not find_protections().seccomp or (settings.ocr == "auto" and ocr.programs)


def desk_for(settings: Settings) -> Desk:
    """A desk at the scheduler of this data directory, which is started if none runs. Raises CannotRunError."""
    return open_desk(
        data_dir=settings.data_dir,
        max_total_workers=settings.max_total_workers,
        max_workers_per_user=settings.max_workers_per_user,
        cpu_limit=settings.cpu_limit or guards.cpu_limit(),
        # The scheduler's guard looks at groups, again and again.
        memory_limit_bytes=settings.memory_limit_bytes or guards.machine_limit(),
        scaling=settings.scaling == "auto",
        debug=settings.log_level == "debug",
    )
