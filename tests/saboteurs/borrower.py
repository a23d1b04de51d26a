"""A coordinator without a pipeline: it asks for tokens, and for each lease runs one real process, the unit.

Rule: it behaves as the engine's coordinator does towards the desk. A worker is noted in the client file before its
unit begins, and a token goes back when the unit has ended. Everything else it does because it is told to.

A unit is a shell that holds the lock which the observer looks for (tests/faults/observer.py): the file is made and
locked aside, inherited by the shell, and gets its name among the running ones when the unit begins. Units do not die
with this process: whoever finds it dead has to end them.

    stdin    commands, a JSON object a line (see `_obey`); its end means: leave
    stdout   what happened, a JSON object a line: {"said": "here" | "begun" | "done" | "killed" | ...}
"""

from __future__ import annotations

import fcntl
import json
import os
import secrets
import select
import signal
import subprocess
import sys
from collections import deque
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

from engine import desk as desk_module
from engine import rendezvous
from engine.desk import open_desk
from engine.errors import SchedulerUnreachable
from engine.model import Lane, TokenKind, UserId
from engine.ports import Ask, Claim, Grant, Return
from engine.processes import kill_group, start_time
from tests.saboteurs.dying import Countdown

#: A unit that ends only when it is told to, or killed: longer than any test.
_FOR_EVER = 600
#: A unit asks for little memory and claims a little more: there is room for that in every world.
_ASKED_BYTES, _CLAIMED_BYTES = 4 * 10**6, 6 * 10**6
#: $1 seconds, $2 the file that says that the work is done. Without the word to begin (its coordinator died) it does
#: nothing. `exec` is not used: a process that has a child of its own is what has to be ended.
_UNIT = 'read begin || exit 1; sleep "$1" && : >"$2"'


@dataclass(frozen=True, slots=True, kw_only=True)
class Work:
    """Something that needs a token. `milliseconds` None: until told to end."""

    name: str
    user: str
    lane: str
    kind: str
    milliseconds: int | None


@dataclass(slots=True, kw_only=True)
class Unit:
    """Work under way."""

    work: Work
    lease: Grant
    process: subprocess.Popen[bytes]
    started: float


class Borrower:
    """One desk, its work and its units."""

    def __init__(self, told: dict[str, Any]) -> None:
        place = Path(told["place"])
        self._units_folder, self._drafts, self._done = (place / name for name in ("units", "drafts", "done"))
        self._name = told["name"]
        self._stops = told.get("stop_before_unit", False)
        self._numbers = 0
        self._asks = 0
        self._window = told.get("window", 4)
        self._waiting: deque[Work] = deque()
        self._standing: dict[str, Work] = {}
        self._returns: list[Return] = []
        self._claims: list[Claim] = []
        self._withdraw: list[str] = []
        self._units: list[Unit] = []
        self._promoted: set[str] = set()
        self._input = b""
        limits = told["limits"]
        self._desk = open_desk(
            data_dir=place / "data",
            max_total_workers=limits["total"],
            max_workers_per_user=limits["per_user"],
            cpu_limit=limits["cores"],
            memory_limit_bytes=10**9,
            scaling=False,
        )
        self._say("here", limits=[self._desk.limits.max_total_workers, self._desk.limits.max_workers_per_user])

    def work(self) -> None:
        """Until told to leave."""
        while self._hear():
            self._end_units()
            self._exchange()
        self._end_told(len(self._units))
        self._desk.close()
        self._say("left")

    # --- commands ---

    def _hear(self) -> bool:
        """Obey what has come in; False when it is time to leave. Waits a little when there is nothing else to do."""
        patience = 0 if self._standing or self._waiting or self._returns or self._withdraw else 5
        poller = select.poll()
        poller.register(0, select.POLLIN)
        if not poller.poll(patience):
            return True
        data = os.read(0, 65536)
        *lines, self._input = (self._input + data).split(b"\n")
        stays = [self._obey(json.loads(line)) for line in lines]
        return bool(data) and all(stays)

    def _obey(self, command: dict[str, Any]) -> bool:
        match command["do"]:
            case "work":
                for _ in range(command["count"]):
                    self._numbers += 1
                    self._waiting.append(
                        Work(
                            name=f"{self._name}-{self._numbers}",
                            user=command["user"],
                            lane=command["lane"],
                            kind=command["kind"],
                            milliseconds=command["milliseconds"],
                        )
                    )
            case "end":
                self._end_told(command["count"])
            case "withdraw":
                self._waiting.clear()
                self._withdraw += self._standing
            case "promote":
                self._say("promoted", known=self._desk.promote(UserId(command["user"])))
            case "fork":
                self._fork()
            case "leave":
                return False
        return True

    def _fork(self) -> None:
        """A child that has all our descriptors, as a library that forks behind our back would leave one."""
        pid = os.fork()
        if pid == 0:
            # Not the two pipes to the test, whose ends tell it that we are gone.
            os.close(0)
            os.close(1)
            while True:
                signal.pause()
        self._say("forked", pid=pid)

    # --- the desk ---

    def _exchange(self) -> None:
        asks = []
        while self._waiting and len(self._standing) < self._window:
            work = self._waiting.popleft()
            self._asks += 1
            ask_id = f"{work.name}.{self._asks}"
            self._standing[ask_id] = work
            asks.append(
                Ask(
                    ask_id=ask_id,
                    user=UserId(work.user),
                    lane=Lane(work.lane),
                    kind=TokenKind(work.kind),
                    cost_seconds=(work.milliseconds or 1000) / 1000,
                    memory_bytes=_ASKED_BYTES,
                )
            )
        if not (asks or self._returns or self._withdraw or self._claims or self._standing):
            return
        returns, self._returns = self._returns, []
        claims, self._claims = self._claims, []
        withdraw, self._withdraw = self._withdraw, []
        for ask_id in withdraw:
            self._standing.pop(ask_id, None)
        try:
            # Short, because units end meanwhile.
            answer = self._desk.exchange(
                asks=asks, returns=returns, withdraw=withdraw, claims=claims, patience_seconds=0.005
            )
        except SchedulerUnreachable as error:
            # What stands is kept by the desk, which tells it to the next scheduler.
            self._say("unreachable", why=str(error))
            return
        self._promoted |= answer.promoted
        for grant in answer.grants:
            self._begin(grant)

    # --- units ---

    def _begin(self, grant: Grant) -> None:
        if self._stops:
            self._stops = False
            self._say("stopping")
            os.kill(os.getpid(), signal.SIGSTOP)
        work = self._standing.pop(grant.ask_id)
        lane = "either" if work.user in self._promoted else work.lane
        name = f"{work.user}+{lane}+{work.kind}+{self._name}.{secrets.token_hex(6)}"
        draft = self._drafts / name
        lock = os.open(draft, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o600)
        fcntl.flock(lock, fcntl.LOCK_EX)
        seconds = str(_FOR_EVER if work.milliseconds is None else work.milliseconds / 1000)
        process = subprocess.Popen(
            ["sh", "-c", _UNIT, "unit", seconds, str(self._done / work.name)],
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            pass_fds=[lock],
            start_new_session=True,
        )
        os.close(lock)
        started = start_time(process.pid)
        # Killed before this line: the unit never hears the word. After it: the scheduler finds it in the client file.
        self._desk.note_worker(process.pid, started)
        draft.rename(self._units_folder / name)
        assert process.stdin is not None
        process.stdin.write(b"begin\n")
        process.stdin.close()
        self._units.append(Unit(work=work, lease=grant, process=process, started=started))
        self._claims.append(
            Claim(lease_id=grant.lease_id, pid=process.pid, started=started, memory_bytes=_CLAIMED_BYTES)
        )
        self._say("begun", work=work.name, user=work.user, lease=grant.lease_id, pid=process.pid, started=started)

    def _end_units(self) -> None:
        """Take back the tokens of units that have ended. Work whose unit was killed is asked for again."""
        for unit in [unit for unit in self._units if unit.process.poll() is not None]:
            self._units.remove(unit)
            self._desk.note_worker_gone(unit.process.pid)
            self._returns.append(Return(lease_id=unit.lease.lease_id, cost_seconds=0.01))
            if unit.process.returncode == 0:
                self._say("done", work=unit.work.name, lease=unit.lease.lease_id)
            else:
                self._waiting.append(unit.work)
                self._say("killed", work=unit.work.name, lease=unit.lease.lease_id, code=unit.process.returncode)

    def _end_told(self, count: int) -> None:
        """End the oldest units that would go on for ever; their work is done."""
        for unit in self._units[:count]:
            (self._done / unit.work.name).touch()
            kill_group(unit.process.pid, unit.started)
            unit.process.wait()
            self._units.remove(unit)
            self._desk.note_worker_gone(unit.process.pid)
            self._returns.append(Return(lease_id=unit.lease.lease_id, cost_seconds=1.0))
            self._say("done", work=unit.work.name, lease=unit.lease.lease_id)

    def _say(self, said: str, **more: Any) -> None:
        print(json.dumps({"said": said, **more}), flush=True)


def main() -> NoReturn:
    """Be a borrower, as the first argument (JSON) says."""
    told = json.loads(sys.argv[1])
    for name, value in told.get("set", {}).items():
        assert hasattr(desk_module, name)
        setattr(desk_module, name, value)
    dying = told.get("dying")
    if dying is None:
        Borrower(told).work()
    else:
        countdown = Countdown(
            dying["at"], [desk_module, rendezvous], visits=dying["visits"], report=Path(dying["report"])
        )
        countdown.start()
        Borrower(told).work()
        countdown.survived()
    sys.exit(0)


if __name__ == "__main__":
    main()
