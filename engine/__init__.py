"""Nightmill for programs: `from engine import get_thread_pool_manager` (docs/python.md).

Rule: importing this does nothing and loads nothing, because every worker process does it. A name is looked up in its
module when it is first asked for.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from engine.errors import CannotRunError as CannotRunError
    from engine.errors import NightmillError as NightmillError
    from engine.errors import SchedulerUnreachable as SchedulerUnreachable
    from engine.errors import SettingsError as SettingsError
    from engine.errors import UsageError as UsageError
    from engine.given import GivenFailure as GivenFailure
    from engine.given import GivenReport as GivenReport
    from engine.given import create_email_embeddings as create_email_embeddings
    from engine.given import create_file_embeddings as create_file_embeddings
    from engine.given import create_schedule_embeddings as create_schedule_embeddings
    from engine.manager import ThreadPoolManager as ThreadPoolManager
    from engine.manager import get_stats as get_stats
    from engine.manager import get_thread_pool_manager as get_thread_pool_manager
    from engine.manager import process_parallel as process_parallel
    from engine.manager import update_user_status as update_user_status
    from engine.model import ItemFailure as ItemFailure

#: Public name -> the module that has it.
_HOMES = {
    "CannotRunError": "engine.errors",
    "GivenFailure": "engine.given",
    "GivenReport": "engine.given",
    "ItemFailure": "engine.model",
    "NightmillError": "engine.errors",
    "SchedulerUnreachable": "engine.errors",
    "SettingsError": "engine.errors",
    "ThreadPoolManager": "engine.manager",
    "UsageError": "engine.errors",
    "create_email_embeddings": "engine.given",
    "create_file_embeddings": "engine.given",
    "create_schedule_embeddings": "engine.given",
    "get_stats": "engine.manager",
    "get_thread_pool_manager": "engine.manager",
    "process_parallel": "engine.manager",
    "update_user_status": "engine.manager",
}
__all__ = list(_HOMES)


def __getattr__(name: str) -> Any:
    home = _HOMES.get(name)
    if home is None:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from importlib import import_module

    value = getattr(import_module(home), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *_HOMES})
