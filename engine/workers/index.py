"""Stage `index`: a user's vectors -> a FAISS file, in a worker process.

Rule: the only stage that touches `indexes`. It builds a file; the coordinator alone publishes it.
"""

from __future__ import annotations

from collections.abc import Mapping
from importlib import import_module
from typing import Any

from engine.ports import Place
from indexes import faiss_store


def open_stage(options: Mapping[str, Any]) -> IndexStage:
    """Nothing to choose. FAISS is loaded now, without a limit: what it maps and does not use is far more than a unit is
    promised, and with less than that it crashes."""
    import_module("faiss")
    return IndexStage()


class IndexStage:
    """Builds FAISS files."""

    def run(self, order: Mapping[str, Any], place: Place) -> Mapping[str, Any]:
        """Order: {"file": raw vectors in the inbox, "ids": their int64 ids, "dim": numbers a row, "prefix": ...}.

        Writes `<prefix>.faiss`. Returns {"faiss": its name, "count": vectors in it}.
        """
        name = f"{order['prefix']}.faiss"
        count = faiss_store.build(
            ids_file=place.inbox / str(order["ids"]),
            vectors_file=place.inbox / str(order["file"]),
            dim=int(order["dim"]),
            target=place.outbox / name,
            progress=place.progress,
        )
        return {"faiss": name, "count": count}
