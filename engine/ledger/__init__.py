"""What happened to every item, durably: who the users are, what their sources held, and how each item stands.

    sql_ledger.py   the verbs (ports.Ledger)
    listing.py      a listing compared with what is known
    database.py     the SQLite file, its transactions and its troubles
    tables.py       today's schema;  migrations.py  the way to it

Rule: what is searchable is for the index to say; the ledger is reconciled with it, never the other way round.
"""

from __future__ import annotations

from pathlib import Path

from engine.ledger.sql_ledger import SqlLedger, check_user_name
from engine.ports import Clock

__all__ = ["SqlLedger", "check_user_name", "open_ledger"]


def open_ledger(path: Path, clock: Clock) -> SqlLedger:
    """Open the ledger in the file `path`, or make it (mode 0600, its folder 0700); to be closed, or used in a `with`.

    Older schemas are migrated. Raises CannotRunError with the path and the way out (no permission, damaged, locked,
    disk full), and NewerDataError when a newer release wrote it.
    """
    return SqlLedger(path, clock)
