"""Measure one part in this process, and print it as JSON: `python -m scheduling NAME [--quick]`."""

from __future__ import annotations

import importlib
import json
import sys

if __name__ == "__main__":
    found = importlib.import_module(f"scheduling.{sys.argv[1]}").measure("--quick" in sys.argv)
    print(json.dumps(found.to_json()))
