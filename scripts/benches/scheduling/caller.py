"""One client process of the bench of calls: `python -m scheduling.caller DATA_DIR SECONDS`.

Connects, says "ready", waits for a line, then returns and asks in one call, again and again; prints how many calls.
"""

from __future__ import annotations

import os
import sys
import time
from pathlib import Path

from engine.ports import Return
from scheduling.rig import Ceilings, an_ask, desk_at

if __name__ == "__main__":
    place, seconds = Path(sys.argv[1]), float(sys.argv[2])
    user = f"caller{os.getpid()}"
    with desk_at(place, Ceilings()) as desk:
        print("ready", flush=True)
        sys.stdin.readline()
        until = time.monotonic() + seconds
        calls, held = 0, ()
        while time.monotonic() < until:
            asks = [an_ask(str(calls), user)]
            returns = [Return(lease_id=grant.lease_id, cost_seconds=0.001) for grant in held]
            held = desk.exchange(asks=asks, returns=returns).grants
            calls += 1
        print(calls, flush=True)
