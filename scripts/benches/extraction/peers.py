"""The others that are measured: an environment of their own with pinned versions, and one call into it.

Rule: nothing of theirs is loaded here, and nothing of ours there. An environment is made once, and again when the
versions change.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from extraction.runs import RunError, Watched, plain_environ, watch

#: What was current when this was written; ours of the same names are in requirements.lock.
VERSIONS = (
    "kreuzberg==4.10.4",
    "pdf-oxide==0.3.78",
    "pdfminer.six==20260107",
    "pillow==13.0.0",
    "pymupdf==1.28.2",
    "pypdf==7.1.1",
    "pypdfium2==5.15.2",
    "pytesseract==0.3.13",
)
_PROGRAM = Path(__file__).with_name("peer.py")


class NoPeersError(Exception):
    """The environment cannot be made; the message says why."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Peers:
    """A Python with the others in it."""

    python: Path

    def run(self, place: Path, verb: str, **order: Any) -> tuple[Watched, dict[str, Any]]:
        """One call of peer.py: what was seen of it, and what it answered. Raises RunError."""
        with tempfile.NamedTemporaryFile("w+", dir=place, suffix=".json") as file:
            file.write(json.dumps(order, default=str))
            file.flush()
            environ = plain_environ(OMP_THREAD_LIMIT="1") if verb.startswith("pytesseract") else plain_environ()
            seen = watch([str(self.python), str(_PROGRAM), verb, file.name], environ, place)
        try:
            return seen, json.loads(seen.said.splitlines()[-1])
        except (IndexError, ValueError):
            raise RunError(f"{verb} answered {seen.said[-500:]!r}") from None


def default_place() -> Path:
    """Where the environment is kept between runs."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "nightmill" / "bench-peers"


def prepare(place: Path) -> Peers:
    """The environment in `place`, made by venv and pip if it is not there. Raises NoPeersError."""
    stamp, python = place / "versions", place / "bin" / "python"
    wanted = "\n".join(VERSIONS) + "\n"
    if python.exists() and stamp.exists() and stamp.read_text() == wanted:
        return Peers(python=python)
    print(f"installing {', '.join(VERSIONS)} into {place} (once, some 250 MB)", file=sys.stderr, flush=True)
    install = ["-m", "pip", "install", "--quiet", "--disable-pip-version-check", "--only-binary", ":all:", *VERSIONS]
    for words in ([sys.executable, "-m", "venv", "--clear", str(place)], [str(python), *install]):
        done = subprocess.run(words, capture_output=True, text=True, env=plain_environ(), check=False)
        if done.returncode:
            last = (done.stderr or done.stdout).strip().splitlines()[-1:]
            raise NoPeersError(f"the others cannot be installed (is there a network?): {' '.join(last)}")
    stamp.write_text(wanted)
    return Peers(python=python)
