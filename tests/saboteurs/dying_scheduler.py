"""A scheduler that dies at its n-th step, or with other constants: `engine.scheduler` itself, started in a bad moment.

    python -m tests.saboteurs.dying_scheduler '{"at": 7, "report": FILE, ...}' --data-dir=D ...

at        the step, of scheduler.py, served.py, guarding.py and rendezvous.py; 0: none
visits    how often one line counts (dying.py)
trigger   a file: steps count from when it is there
set       constants of engine.scheduler and engine.served, for tests that would have to wait long otherwise
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

from engine import guarding, rendezvous, scheduler, served
from tests.saboteurs.dying import Countdown


def main() -> int:
    """What engine.scheduler's main answers, if it lives to answer."""
    how = json.loads(sys.argv[1])
    for name, value in how.get("set", {}).items():
        module = scheduler if hasattr(scheduler, name) else served
        assert hasattr(module, name)
        setattr(module, name, value)
    if "report" not in how:
        return scheduler.main(sys.argv[2:])
    countdown = Countdown(
        how["at"],
        [scheduler, served, guarding, rendezvous],
        visits=how["visits"],
        report=Path(how["report"]),
        trigger=Path(how["trigger"]) if how.get("trigger") else None,
    )
    countdown.start()
    code = scheduler.main(sys.argv[2:])
    countdown.survived()
    return code


if __name__ == "__main__":
    sys.exit(main())
