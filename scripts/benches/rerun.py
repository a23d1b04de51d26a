"""The second run over a folder, as a share of the first: what a night costs in which nothing changed.

Both runs are made here, one after the other, by the command line; the ratio is what counts, not the seconds.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, help="real files of many kinds")
    parser.add_argument("--embedder", default="builtin")
    parser.add_argument("--json", action="store_true")
    given = parser.parse_args()
    place = Path(tempfile.mkdtemp(prefix="nightmill-rerun-"))
    environ = {**os.environ, "NIGHTMILL_DATA_DIR": str(place / "var"), "NIGHTMILL_EMBEDDER": given.embedder}

    def command(*words: str) -> tuple[float, str]:
        began = time.monotonic()
        done = subprocess.run(
            [sys.executable, "-m", "engine", *words], env=environ, stdout=subprocess.PIPE, text=True, check=False
        )
        if done.returncode not in (0, 3):
            sys.exit(f"{words} ended with exit code {done.returncode}")
        return time.monotonic() - began, done.stdout

    try:
        command("users", "add", "ann", f"folder:{given.folder.resolve()}")
        first, said = command("init", "--json")
        second, again = command("init", "--json")
    finally:
        shutil.rmtree(place, ignore_errors=True)
    figures = {
        "counts": json.loads(said)["counts"],
        "first_seconds": round(first, 2),
        "second_seconds": round(second, 2),
        "share_percent": round(100 * second / first, 2),
        "second_work": json.loads(again)["work"],
    }
    if given.json:
        print(json.dumps(figures, indent=2))
        return
    counts = json.loads(said)["counts"]
    print(", ".join(f"{counts[name]} {name}" for name in ("found", "indexed", "skipped", "failed", "pending")))
    print(f"first run {first:.1f} s, second {second:.2f} s: {figures['share_percent']} %")
    print(f"done in the second: {figures['second_work']}")


if __name__ == "__main__":
    main()
