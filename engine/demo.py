"""`nightmill demo`: a small world of three users of very different size, indexed and searched by the commands.

Rule: it knows the engine only as a person at a terminal does: by commands, their output and their exit codes. The
world is the same on every day and machine: no luck, no clock, no fonts of the system, nothing from the network.

    build_world   files of many kinds, questions whose answers are known, one file that is damaged on purpose
    run_demo      users add, init, init again (nothing is done twice), search, status; any surprise is an error
"""

from __future__ import annotations

import contextlib
import io
import itertools
import json
import os
import re
import shlex
import shutil
import subprocess
import sys
import tempfile
import textwrap
import time
import zipfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from email.message import EmailMessage
from email.utils import format_datetime
from pathlib import Path
from typing import Any, Final, NamedTuple, TextIO

from engine.errors import NightmillError, UsageError

#: Hits asked for. An answer that is not among the first three is not found, as people read search results.
TOP: Final = 3
#: How long a command that was told to stop may take, in seconds. A drain takes a few; all it leaves is removed anyway.
GRACE_SECONDS: Final = 10.0
#: Exit codes as the command line documents them.
EXIT_SURPRISE: Final = 1
EXIT_SOME_FAILED: Final = 3
EXIT_INTERRUPTED: Final = 130

#: What office scanners deliver, and enough for the OCR of 15 point print.
_SCAN_DPI: Final = 200
_SCAN_POINTS: Final = 15
_TEXT_POINTS: Final = 11
_A4: Final = (595, 842)
_CARD: Final = (420, 300)
#: Of a PDF of a thousand bytes: its head is there, so that it is one, and no page that could be rescued.
_CUT_BYTES: Final = 300
_COUNTS: Final = ("found", "indexed", "skipped", "failed", "pending")
_WORK: Final = ("extracted", "ocr_pages", "embedded")
_FIRST_DAY: Final = datetime(2025, 2, 3, 9, 15, tzinfo=UTC)


@dataclass(frozen=True, slots=True)
class Question:
    """Words to search for, and the hit that answers them.

    expected  a part of its path or title
    kind      what kind of content has the answer, for people
    page      where the answer stands, 0 for anywhere; a hit that names another page is no answer
    """

    words: str
    expected: str
    kind: str
    page: int = 0

    def answered_by(self, hit: Mapping[str, Any]) -> bool:
        """True where a hit, as `nightmill search --json` writes it, is the expected one."""
        named = any(self.expected in str(hit.get(name, "")) for name in ("path", "title"))
        return named and (not self.page or hit.get("page") in (self.page, 0, None))


@dataclass(frozen=True, slots=True, kw_only=True)
class DemoUser:
    """A user of the world.

    sources      URIs as `nightmill users add` takes them
    questions    each has one right answer, in this user's items alone
    items        paths of the files, mails and events, as hits show them; no two users share one. Attachments come below
    damaged      those of `items` that cannot be read, on purpose
    unsupported  those of `items` whose type is known and not read
    """

    name: str
    sources: tuple[str, ...]
    questions: tuple[Question, ...]
    items: tuple[str, ...]
    damaged: tuple[str, ...] = ()
    unsupported: tuple[str, ...] = ()

    def owns(self, path: str) -> bool:
        """True where a hit's path names one of the items, or an attachment of one."""
        return any(path == item or path.startswith(item + "/") for item in self.items)


def build_world(place: Path) -> tuple[DemoUser, ...]:
    """Write the files of three users beneath `place`, which is made; the same bytes and times whenever it is called."""
    return _ann(place / "ann"), _ben(place / "ben"), _cleo(place / "cleo")


def run_demo(
    *,
    place: Path | None,
    keep: bool,
    out: TextIO,
    program: Sequence[str] = (sys.executable, "-m", "engine"),
) -> int:
    """Build the world, run the commands on it and check what they say; the exit code.

    place    a new or empty folder, which is kept; None for a temporary one, which is removed unless `keep`
    out      gets everything except the progress of `init`, which goes straight to the terminal
    program  what `nightmill` is; runs with NIGHTMILL_DATA_DIR beneath the place and all other settings of the caller

    0 when everything was as expected, 1 with a message when not, 130 when interrupted. Raises UsageError for a place
    that is not empty.
    """
    began = time.monotonic()
    try:
        with _ground(place, keep=keep, out=out) as ground:
            users = build_world(ground / "world")
            items = sum(len(user.items) for user in users)
            print(f"A world of {len(users)} users and {items} items in {ground}\n", file=out)
            data_dir = ground / "var"
            answered = _tour(users, _Terminal(program, data_dir, out), out)
            print(
                f"Shown: {len(users)} users, {items} items, nothing done twice, {answered} questions answered, "
                f"no item shown to another user, {sum(len(user.damaged) for user in users)} damaged file reported; "
                f"{time.monotonic() - began:.1f} s.",
                file=out,
            )
    except _Surprise as surprise:
        print(f"nightmill demo: {surprise}", file=out)
        return EXIT_SURPRISE
    except KeyboardInterrupt:
        print("nightmill demo: interrupted", file=out)
        return EXIT_INTERRUPTED
    return 0


class _Surprise(NightmillError):  # noqa: N818 - named for what it is to the reader
    """A command did not do what the demo promises."""


@contextlib.contextmanager
def _ground(place: Path | None, *, keep: bool, out: TextIO) -> Iterator[Path]:
    """The folder for the world and its indexes. A kill -9 leaves a folder `nightmill-demo-*` in the temporary place."""
    if place is not None and place.exists() and not (place.is_dir() and not any(place.iterdir())):
        raise UsageError(f"{place} is not an empty folder; name a new one, or leave it out for a temporary one")
    if place is None:
        ground = Path(tempfile.mkdtemp(prefix="nightmill-demo-")).resolve()
    else:
        place.mkdir(parents=True, exist_ok=True)
        ground = place.resolve()
    try:
        yield ground
    finally:
        if place is None and not keep:
            # Errors are ignored: an idle scheduler may be removing its own socket just now.
            shutil.rmtree(ground, ignore_errors=True)
        if ground.exists():
            print(f"Kept in {ground}; to go on: export NIGHTMILL_DATA_DIR={shlex.quote(str(ground / 'var'))}", file=out)


def _tour(users: Sequence[DemoUser], terminal: _Terminal, out: TextIO) -> int:
    """All that is shown, in order; the number of questions answered. Raises _Surprise."""
    for user in users:
        terminal.show("users", "add", user.name, *user.sources)
    damaged = " and ".join(f"{user.name}'s {path}" for user in users for path in user.damaged)
    terminal.watch("init", expected=EXIT_SOME_FAILED)
    print(f"Exit code {EXIT_SOME_FAILED}, and rightly so: {damaged} is cut off on purpose.\n", file=out)

    report = terminal.report("init", "--json", expected=EXIT_SOME_FAILED)
    _check_second_pass(report, users)
    counts = ", ".join(f"{name} {_number(report, 'counts', name)}" for name in _COUNTS)
    seconds = float(report.get("seconds") or 0.0)
    print(f"  {counts}; nothing extracted, recognised or embedded again; {seconds:.1f} s\n", file=out)

    for user in users:
        for question in user.questions:
            report = terminal.report("search", user.name, question.words, "--json", "-k", str(TOP))
            hits = _hits(report)
            _print_hits(hits, question, out)
            _check_hits(hits, question, user, users)

    report = terminal.report("status", "--json")
    _check_status(_status(report), users)
    _print_status(_status(report), out)
    return sum(len(user.questions) for user in users)


class _Terminal:
    """Runs commands one after another and prints each as somebody would have typed it."""

    def __init__(self, program: Sequence[str], data_dir: Path, out: TextIO) -> None:
        self._program = tuple(program)
        # The world is made for these; the caller's own choice of them would leave questions without an answer.
        own = {"NIGHTMILL_OCR": "auto", "NIGHTMILL_OCR_LANGUAGES": "eng", "DEBUG_MODE": "off"}
        self._environment = {**os.environ, **own, "NIGHTMILL_DATA_DIR": str(data_dir)}
        self._out = out

    def show(self, *words: str) -> None:
        """Run a command and print what it says."""
        print(self._run(words, expected=0, captured=True), file=self._out)

    def watch(self, *words: str, expected: int) -> None:
        """Run a command that shows its progress on the terminal itself."""
        self._run(words, expected=expected, captured=False)

    def report(self, *words: str, expected: int = 0) -> dict[str, Any]:
        """Run a command that answers in JSON."""
        output = self._run(words, expected=expected, captured=True)
        try:
            table = json.loads(output)
        except ValueError:
            table = None
        if not isinstance(table, dict):
            raise _Surprise(f"`{_typed(words)}` did not answer with a JSON object but with {output[:200]!r}")
        return table

    def _run(self, words: Sequence[str], *, expected: int, captured: bool) -> str:
        print(f"$ {_typed(words)}", file=self._out, flush=True)
        command = [*self._program, *words]
        stdout = subprocess.PIPE if captured else None
        with subprocess.Popen(
            command, env=self._environment, stdout=stdout, encoding="utf-8", errors="replace"
        ) as child:
            try:
                output = child.communicate()[0] or ""
            except KeyboardInterrupt:
                # A terminal has told the child as well; whoever sends the signal to this process alone has not.
                child.terminate()
                with contextlib.suppress(subprocess.TimeoutExpired):
                    child.wait(GRACE_SECONDS)
                raise
            finally:
                child.kill()
        if child.returncode != expected:
            print(output, end="", file=self._out)
            raise _Surprise(f"`{_typed(words)}` ended with exit code {child.returncode}; expected was {expected}")
        return output


def _typed(words: Sequence[str]) -> str:
    return shlex.join(["nightmill", *words])


def _number(report: Mapping[str, Any], table: str, name: str) -> int:
    value = report.get(table)
    number = value.get(name) if isinstance(value, dict) else None
    if not isinstance(number, int):
        raise _Surprise(f"the report has no number {table}.{name}")
    return number


def _check_second_pass(report: Mapping[str, Any], users: Sequence[DemoUser]) -> None:
    """Nothing may be done twice, and the sums must be what the world holds."""
    again = {name: _number(report, "work", name) for name in _WORK}
    if any(again.values()):
        done = ", ".join(f"{name} {number}" for name, number in again.items())
        raise _Surprise(f"nothing has changed, yet the second init did work again: {done}")
    _check_counts({name: _number(report, "counts", name) for name in _COUNTS}, users, of="the second init")


def _check_counts(counts: Mapping[str, int], users: Sequence[DemoUser], *, of: str) -> None:
    failed, skipped = (sum(len(user.damaged) for user in users), sum(len(user.unsupported) for user in users))
    found = sum(len(user.items) for user in users)
    expected = dict(zip(_COUNTS, (found, found - skipped - failed, skipped, failed, 0), strict=True))
    wrong = [f"{name} {counts[name]} instead of {expected[name]}" for name in _COUNTS if counts[name] != expected[name]]
    if wrong:
        raise _Surprise(f"{of} counts {', '.join(wrong)}")


def _hits(report: Mapping[str, Any]) -> list[dict[str, Any]]:
    hits = report.get("hits")
    if not isinstance(hits, list) or not all(isinstance(hit, dict) for hit in hits):
        raise _Surprise("the answer of the search has no list of hits")
    return hits


def _check_hits(
    hits: Sequence[Mapping[str, Any]], question: Question, user: DemoUser, users: Sequence[DemoUser]
) -> None:
    """No hit may be anybody else's, and the answer must be among the first."""
    for path in (str(hit.get("path", "")) for hit in hits):
        owner = next((other.name for other in users if other.owns(path)), None)
        if owner is None:
            raise _Surprise(f"{user.name} asked {question.words!r} and got {path!r}, which is no item of this world")
        if owner != user.name:
            raise _Surprise(f"{user.name} asked {question.words!r} and got {path!r}, which is {owner}'s: a leak")
    if not any(question.answered_by(hit) for hit in hits[:TOP]):
        raise _Surprise(
            f"{user.name} asked {question.words!r}; {question.expected!r} ({question.kind}) is not in the top {TOP}"
        )


def _print_hits(hits: Sequence[Mapping[str, Any]], question: Question, out: TextIO) -> None:
    for number, hit in enumerate(hits, start=1):
        page = f", page {hit['page']}" if hit.get("page") else ""
        found = f"   <- {question.kind}" if question.answered_by(hit) else ""
        title = textwrap.shorten(str(hit.get("title", "")), 48, placeholder=" ...")
        print(f"  {number}. {float(hit.get('score') or 0.0):.3f}  {title}  [{hit.get('path')}{page}]{found}", file=out)
        print(f"     {textwrap.shorten(str(hit.get('passage', '')), 100, placeholder=' ...')}", file=out)
    print(file=out)


def _status(report: Mapping[str, Any]) -> dict[str, dict[str, int]]:
    """Counts by user. Raises _Surprise."""
    entries = report.get("users")
    if not isinstance(entries, list) or not all(isinstance(entry, dict) for entry in entries):
        raise _Surprise("the status has no list of users")
    tables = {str(entry.get("user", entry.get("name"))): entry.get("counts", entry) for entry in entries}
    return {
        user: {name: _number({"counts": table}, "counts", name) for name in _COUNTS} for user, table in tables.items()
    }


def _check_status(status: Mapping[str, Mapping[str, int]], users: Sequence[DemoUser]) -> None:
    if set(status) != {user.name for user in users}:
        raise _Surprise(f"the status shows the users {', '.join(sorted(status)) or '(none)'}")
    for user in users:
        _check_counts(status[user.name], [user], of=f"the status of {user.name}")


def _print_status(status: Mapping[str, Mapping[str, int]], out: TextIO) -> None:
    print(f"  {'user':<6}" + "".join(f"{name:>9}" for name in _COUNTS), file=out)
    for user, counts in status.items():
        print(f"  {user:<6}" + "".join(f"{counts[name]:>9}" for name in _COUNTS), file=out)
    print(file=out)


# ---- the world: what the three users have ----------------------------------------------------------------------------


class _Contract(NamedTuple):
    file: str
    company: str
    subject: str
    fee: int
    begins: str
    notice: int
    contact: str


class _Event(NamedTuple):
    """`hours` 0: the whole day, without a time of day. `rule`: what RRULE says, and more properties, one a line."""

    summary: str
    start: str
    hours: int
    place: str
    text: str
    rule: str = ""


class _Attachment(NamedTuple):
    name: str
    data: bytes


class _Letter(NamedTuple):
    sender: str
    recipient: str
    subject: str
    text: str
    attachment: _Attachment | None = None


_CONTRACTS: Final = (
    _Contract("cleaning", "Sparrow Cleaning Ltd", "cleaning the office twice a week", 380, "1 March 2025", 1, "Mira"),
    _Contract("internet", "Bluewire Telecom", "an internet line of 500 Mbit/s", 59, "15 April 2025", 3, "Jonas"),
    _Contract("printer", "Copperleaf Office Machines", "the rent of one colour printer", 74, "1 May 2025", 6, "Edda"),
    _Contract("bookkeeping", "Ledger & Lark", "monthly bookkeeping and payroll", 290, "1 January 2026", 2, "Tomas"),
    _Contract("plants", "Fernhill Gardens", "watering and replacing the plants", 45, "1 June 2025", 1, "Wanda"),
    _Contract("alarm", "Nightjar Security", "the burglar alarm and its remote watch", 112, "1 July 2025", 12, "Oskar"),
)
_BOILER: Final = """Boiler inspection report

Kestrel Studio, cellar room 2
Inspected on 14 October 2025 by Halden Heating.

The boiler was found to be in good order.
Serial number KX-4471
Operating pressure 1.8 bar
Flue gas temperature 118 degrees

The expansion vessel should be replaced
before the next inspection in October 2026."""
_INSURANCE: Final = (
    """Pelican Insurance
Policy number 77-20418

Dear Ann,

thank you for reporting the water damage
in the archive room on 9 September 2025.
We will pay 2,640 euros for the carpet
and the two damaged filing cabinets.""",
    """Page 2 of our letter, policy 77-20418

The excess of 150 euros has been deducted.
Please send us the receipt of the carpet fitter
before the end of November.

Kind regards
Paula, claims department""",
)
_DELIVERY: Final = """Delivery note 5530

Oakridge Furniture
Delivered to Kestrel Studio on 3 June 2025

6 desk chairs, grey
2 standing desks, 160 cm
1 meeting table, oak

One chair has a scratched armrest
and will be exchanged."""
_LEASE: Final = (
    """Lease of the office at 12 Harbour Lane

Between Gull & Anchor Properties as landlord and Kestrel Studio as tenant.

The landlord lets the second floor, 140 square metres, from 1 March 2025 for five years. The rent is 2,150 euros
a month, payable on the first. The tenant has paid a deposit of three months' rent.""",
    """Terms

The rent follows the index of consumer prices once a year. The tenant may sublet single desks, not whole rooms.
Repairs below 200 euros are borne by the tenant, all others by the landlord. At the end the rooms are handed over
swept and with white walls.""",
    """Annex: house rules

1. Dogs are allowed in the office
   if all tenants of the floor agree.
2. Bicycles belong in the yard,
   not in the staircase.
3. Quiet hours are from ten at night
   until six in the morning.
4. The roof terrace closes at sunset.""",
)
_WHITEBOARD: Final = """Launch plan

Prototype ready: 20 January
Test with five customers
Price decision: Helga
Press kit: Ruben"""
_TICKET: Final = """Harbour car park
Ticket 90817
Arrived 08:42
Paid 7.50 euros
Level 3, bay 41"""
_SOLAR: Final = (
    """Brightroof Energy: offer for Kestrel Studio

14 panels of 430 watts on the south roof, one inverter of 6 kilowatts, cables and mounting.
The price is 9,870 euros including the scaffold.""",
    """Terms of the offer

The warranty on the inverter is twelve years, on the panels twenty-five. The work takes four days.
The offer stands until 30 April 2026.""",
)
_STAND: Final = """
stand-prices: Prices of the stand
Item: Price
Stand B17: 1,900 euros
Wall with shelf: 340 euros
"""
#: A file a line: its name, and what it says.
_ANN_NOTES: Final = """
budget-round: Budget round, 6 February 2026. Helga wants 12,000 euros for the trade fair; Ruben offers 9,000.
hiring: Hiring. Two designers came. Noor convinced everybody with her folding map. The offer goes out on Monday.
trade-fair: Trade fair in Lisbon, hall 4, stand B17. Bring the folding map, 300 postcards and the long cable.
server-move: Server move. The old machine is switched off on 28 March. Backups go to the box in the cellar.
customer-call: Call with Meadow Maps. They want the harbour series in a larger print and on recycled paper.
train-to-lisbon: Travel plan. Night train to Irun on 11 May, bus to Lisbon, room at the Pensao Azul for four nights.
retrospective: What went well: fewer meetings. What did not: the colour proofs came two weeks late, again.
spare-key: The spare key of the archive lies with Tomas. The alarm must be off before the side door is opened.
"""
#: A table a paragraph: the name of its file, its title, then its rows, the heads first.
_ANN_REPORTS: Final = """
sales-2025: Sales 2025
Product: Pieces
Harbour map: 1,204
Island map: 688
Sky map: 97

paper-stock: Paper stock
Paper: Sheets
Cotton 250 g: 5,400
Recycled 170 g: 11,000

holidays: Holidays 2026
Who: Days left
Helga: 11
Ruben: 23
Noor: 25

print-run: Print run of the island map
Step: Supplier
Plates: Zinkhof
Folding: Quick Fold
"""
_ANN_EVENTS: Final = (
    _Event("Monday round", "20250303T093000", 1, "Office", "Who does what this week.", "FREQ=WEEKLY;BYDAY=MO"),
    _Event("Pay the rent", "20250301T080000", 1, "", "2,150 euros to Gull & Anchor.", "FREQ=MONTHLY;BYMONTHDAY=1"),
    _Event("Dentist", "20260217T150000", 1, "Mill Street 4", "Bring the insurance card."),
    _Event("Trade fair in Lisbon", "20260512", 0, "Lisbon, hall 4", "Stand B17, together with Noor."),
    _Event("Colour proofs", "20260119T110000", 2, "Zinkhof", "Check the blues of the island map."),
    _Event("Call with Meadow Maps", "20260204T140000", 1, "by telephone", "Paper and size of the harbour series."),
    _Event("Boiler inspection", "20261013T080000", 1, "Cellar", "Halden Heating; have the old report at hand."),
    _Event("Lunch with Wanda", "20260305T123000", 1, "Cafe Linde", "She brings cuttings of the fern."),
    _Event("Fire drill", "20251106T100000", 1, "Yard", "Everybody walks down the north stairs."),
    _Event(
        "Print review",
        "20250408T160000",
        1,
        "Large table",
        "Every second Tuesday, with the printer's samples.",
        "FREQ=WEEKLY;INTERVAL=2;BYDAY=TU;UNTIL=20261231T000000Z\nEXDATE;TZID=Europe/Berlin:20251230T160000",
    ),
)
_BEN_NOTICE: Final = """NOTICE

The water will be shut off
on Thursday 12 March
from 9:00 to 13:00.
Please fill a bucket in time.
Caretaker Milan"""
_BEN_SCAN: Final = """Veterinary office, bee health

Certificate 2026-0311 for Ben

The apiary at Linden Hill was examined.
No sign of foulbrood was found.
The certificate is valid for transport
until 30 September 2026."""
_BEN_HIVES: Final = """hive,place,queen marked,honey in kilograms
1,Linden Hill,blue 2025,31.5
2,Linden Hill,green 2024,27.0
5,Quarry edge,red 2023,12.5
7,Orchard gate,blue 2025,44.0
"""
_BEN_JARS: Final = """
jar-count: Jars in the shed
What: Pieces
Jars of 500 g: 180
Jars of 250 g: 95
Labels: 300
"""
_BEN_WINTER: Final = (
    "Wintering\n\nFeed until mid September. Each colony needs fifteen kilograms of stores.",
    "Against mice\n\nNarrow the entrance to seven millimetres before the first frost.",
)
_BEN_RULES: Final = (
    "Rules of the Linden Hill bee club\n\nMembers pay 24 euros a year and may borrow the honey extractor.",
    "Borrowing\n\nThe extractor is returned clean within five days. Ida keeps the list.",
)
_BEN_EVENTS: Final = (
    _Event(
        "Beekeepers' evening",
        "20250410T190000",
        2,
        "Inn at the bridge",
        "Every second Thursday of the month; the treasurer reports in October.",
        "FREQ=MONTHLY;BYDAY=2TH",
    ),
    _Event("Bring the extractor back", "20260802T100000", 1, "Ida's barn", "Clean the sieve first."),
)
_CLEO_BUNS: Final = """
buns: Sweet buns
Ingredient: Amount
Flour: 500 g
Butter, soft: 80 g
Cardamom, freshly ground: 9 g
Milk: 250 ml
Yeast: 21 g
"""
_CLEO_BREAD: Final = (
    "Mix 600 g of rye flour with the starter and leave it overnight.",
    "After kneading the dough rests for five hours in a basket, then it bakes at 240 degrees for 50 minutes.",
)
_CLEO_EVENTS: Final = (
    _Event(
        "Choir rehearsal",
        "20250902T193000",
        2,
        "Parish hall",
        "Alto sits at the window. Bring the blue score.",
        "FREQ=WEEKLY;BYDAY=TU",
    ),
    _Event("Market day", "20260418", 0, "Town square", "Sell buns from eight o'clock."),
)
_ZONE: Final = """BEGIN:VTIMEZONE
TZID:Europe/Berlin
BEGIN:DAYLIGHT
TZOFFSETFROM:+0100
TZOFFSETTO:+0200
TZNAME:CEST
DTSTART:19700329T020000
RRULE:FREQ=YEARLY;BYMONTH=3;BYDAY=-1SU
END:DAYLIGHT
BEGIN:STANDARD
TZOFFSETFROM:+0200
TZOFFSETTO:+0100
TZNAME:CET
DTSTART:19701025T030000
RRULE:FREQ=YEARLY;BYMONTH=10;BYDAY=-1SU
END:STANDARD
END:VTIMEZONE"""


def _ann(home: Path) -> DemoUser:
    """The large one: a small publisher of maps with an office, contracts, a mailbox and a full calendar."""
    shelf = _Shelf(home)
    for contract in _CONTRACTS:
        shelf.put(f"contracts/{contract.file}.pdf", _pdf(*_contract_pages(contract)))
    shelf.put("contracts/lease-harbour-lane.pdf", _pdf(_LEASE[0], _LEASE[1], _Scan(_LEASE[2])))
    shelf.put("scans/boiler-inspection.pdf", _pdf(_Scan(_BOILER)))
    shelf.put("scans/water-damage.pdf", _pdf(*map(_Scan, _INSURANCE)))
    shelf.put("scans/delivery-note.pdf", _pdf(_Scan(_DELIVERY)))
    shelf.put("pictures/whiteboard.png", _picture(_WHITEBOARD, "PNG"))
    shelf.put("pictures/parking.jpg", _picture(_TICKET, "JPEG"))
    for paragraph in _ANN_REPORTS.split("\n\n"):
        shelf.put_table("reports", paragraph)
    for name, text in _pairs(_ANN_NOTES):
        shelf.put(f"notes/{name}.txt", f"{textwrap.fill(text, 72)}\n".encode())
    shelf.put("web/island-map.html", _html("The island map", "Folded to 21 by 10 cm, printed in six colours."))
    shelf.put("web/imprint.html", _html("Imprint", "Kestrel Studio, 12 Harbour Lane. Responsible: Ann."))
    shelf.put("tables/suppliers.csv", b"supplier,delivers,days\nZinkhof,printing plates,9\nQuick Fold,folding,4\n")
    shelf.put("tables/expenses.csv", b"date,what,euros\n2026-01-09,ink,214.30\n2026-01-22,postage,88.00\n")
    shelf.put_mbox("ann-mail.mbox", _ann_letters())
    shelf.put_calendar("ann-calendar.ics", _ANN_EVENTS)
    return shelf.user(
        Question("boiler serial number and pressure", "boiler-inspection.pdf", "a scanned page", page=1),
        Question("are dogs allowed in the office", "lease-harbour-lane.pdf", "a scanned page among others", page=3),
        Question("how long is the warranty on the inverter", "/solar-offer.pdf", "an attachment of a mail"),
    )


def _ben(home: Path) -> DemoUser:
    """The middle one: a beekeeper, with one file that is damaged and one of a type that is not read."""
    shelf = _Shelf(home)
    shelf.put("bees/wintering.pdf", _pdf(*_BEN_WINTER))
    shelf.put("bees/club-rules.pdf", _pdf(*_BEN_RULES))
    shelf.put("bees/health-certificate.pdf", _pdf(_Scan(_BEN_SCAN)))
    shelf.put("bees/cut-off.pdf", _pdf("Order for jars\n\nTwo hundred jars of 500 g with golden lids.")[:_CUT_BYTES])
    shelf.put("bees/hives.csv", _BEN_HIVES.encode())
    shelf.put_table("bees", _BEN_JARS)
    shelf.put("home/water-notice.png", _picture(_BEN_NOTICE, "PNG"))
    shelf.put("home/bicycle.txt", b"Bicycle: new chain at 11,400 km, brake pads next. The pump is in Ida's van.\n")
    shelf.put("home/swarm.txt", b"Swarm in the cherry tree: spray with water, hold the box below, shake once.\n")
    shelf.put("home/bee-song.mp3", _silence())
    shelf.put_maildir("ben-maildir", _ben_letters())
    shelf.put_calendar("ben-calendar.ics", _BEN_EVENTS)
    return shelf.user(
        Question("honey of the hive at the orchard gate", "hives.csv", "a row of a CSV"),
        Question("when is the water shut off", "water-notice.png", "a picture"),
        Question("beekeepers evening at the inn", "Beekeepers' evening", "an event that repeats monthly"),
        damaged=("bees/cut-off.pdf",),
        unsupported=("home/bee-song.mp3",),
    )


def _cleo(home: Path) -> DemoUser:
    """The small one: somebody who bakes and sings."""
    shelf = _Shelf(home)
    shelf.put_table("kitchen", _CLEO_BUNS)
    shelf.put("kitchen/bread.html", _html("Sourdough bread of my aunt", *_CLEO_BREAD))
    shelf.put("kitchen/pears.txt", b"Preserved pears: two kilos of pears, one lemon, half a stick of cinnamon.\n")
    shelf.put_calendar("cleo-calendar.ics", _CLEO_EVENTS)
    return shelf.user(
        Question("how much cardamom for the buns", "buns.docx", "a table cell of a DOCX"),
        Question("how long does the sourdough rest", "bread.html", "a page of HTML"),
        Question("choir rehearsal", "Choir rehearsal", "an event that repeats weekly"),
    )


def _contract_pages(contract: _Contract) -> tuple[str, str, str]:
    plural = "s" if contract.notice > 1 else ""
    return (
        f"Contract with {contract.company}\n\nKestrel Studio orders from {contract.company} {contract.subject}. "
        f"The contract begins on {contract.begins}.",
        f"Price and term\n\nThe price is {contract.fee} euros a month, to be paid within fourteen days. "
        f"Either side may give notice of {contract.notice} month{plural} to the end of a month.",
        f"Contact\n\nQuestions about {contract.subject} are answered by {contract.contact} from nine to five.",
    )


def _ann_letters() -> Sequence[_Letter]:
    me, helga = "Ann <ann@kestrel.example>", "Helga <helga@kestrel.example>"
    solar = _Attachment("solar-offer.pdf", _pdf(*_SOLAR))
    stand = _Attachment("stand-prices.docx", _docx(*_pairs(_STAND)))
    sizes = _Attachment("sizes.txt", b"Harbour north: 594 x 841\nHarbour south: 420 x 594\nLighthouses: 297 x 420\n")
    return (
        _Letter(helga, me, "Postcards", "The postcards are printed. Shall I send fifty to Noor?"),
        _Letter(me, helga, "Re: Postcards", "Yes please, and keep ten for the window."),
        _Letter("Sven <sven@brightroof.example>", me, "Your roof", "Here is the paper we talked about.", solar),
        _Letter("Desk <desk@mapfair.example>", me, "Your stand", "Please sign and return it before Friday.", stand),
        _Letter("Ruben <ruben@kestrel.example>", me, "Late today", "The tram stands still at the harbour."),
        _Letter("Meadow Maps <hello@meadow.example>", me, "Sizes", "All sizes in the file are millimetres.", sizes),
        _Letter("Tomas <tomas@lark.example>", me, "Invoice 2217", "1,318 euros to Zinkhof are still open."),
        _Letter("Noor <noor@kestrel.example>", me, "Folding map", "From now on it folds in three.\n\nFrom me: cheers."),
    )


def _ben_letters() -> Sequence[_Letter]:
    me, ida = "Ben <ben@lindenhill.example>", "Ida <ida@lindenhill.example>"
    return (
        _Letter(ida, me, "Extractor", "You can have the extractor from the first of July."),
        _Letter(ida, me, "Wax", "I melted the old combs: four kilos of clean wax for candles."),
        _Letter("Jars <shop@glasshouse.example>", me, "Your order", "Two hundred jars leave our house on Wednesday."),
    )


def _pairs(block: str) -> list[tuple[str, str]]:
    """What stands before and after the first ": " of each line."""
    return [(left, right) for left, _, right in (line.partition(": ") for line in block.strip().splitlines())]


# ---- how its files are written ---------------------------------------------------------------------------------------


class _Shelf:
    """One user's files being written: remembers the sources, and the items as hits will name them."""

    def __init__(self, home: Path) -> None:
        self._home = home
        self._days = itertools.count()
        self._sources = [f"folder:{home / 'files'}"]
        self._items: list[str] = []

    def user(self, *questions: Question, damaged: tuple[str, ...] = (), unsupported: tuple[str, ...] = ()) -> DemoUser:
        """The user whose files have been written."""
        return DemoUser(
            name=self._home.name,
            sources=tuple(self._sources),
            questions=questions,
            items=tuple(self._items),
            damaged=damaged,
            unsupported=unsupported,
        )

    def put(self, path: str, data: bytes) -> None:
        """A file of the user's folder."""
        self._write(f"files/{path}", data)
        self._items.append(path)

    def put_table(self, folder: str, block: str) -> None:
        """A DOCX in the user's folder."""
        first, *rows = _pairs(block)
        self.put(f"{folder}/{first[0]}.docx", _docx(first, *rows))

    def put_mbox(self, name: str, letters: Sequence[_Letter]) -> None:
        """A mailbox in one file: a source of its own."""
        box = bytearray()
        for number, letter in enumerate(letters, start=1):
            mail = re.sub(rb"(?m)^(>*From )", rb">\1", _mail(letter, number))
            box += f"From demo@kestrel.example {time.asctime(_mail_day(number).timetuple())}\n".encode() + mail + b"\n"
        self._write(name, bytes(box))
        self._add("mbox", name, [f"{name}#{number}" for number in range(1, len(letters) + 1)])

    def put_maildir(self, name: str, letters: Sequence[_Letter]) -> None:
        """A mailbox of one file per mail: read ones in `cur`, the last, unread, in `new`."""
        uniques = [f"{int(_mail_day(number).timestamp())}.M{number}.demo" for number in range(1, len(letters) + 1)]
        (self._home / name / "tmp").mkdir(parents=True, exist_ok=True)
        for number, (letter, unique) in enumerate(zip(letters, uniques, strict=True), start=1):
            inside = f"new/{unique}" if number == len(letters) else f"cur/{unique}:2,S"
            self._write(f"{name}/{inside}", _mail(letter, number))
        self._add("maildir", name, uniques)

    def put_calendar(self, name: str, events: Sequence[_Event]) -> None:
        """A calendar in one file: a source of its own."""
        self._write(name, _calendar(events))
        self._add("ics", name, [f"{name}#{number}" for number in range(1, len(events) + 1)])

    def _add(self, scheme: str, name: str, items: Sequence[str]) -> None:
        self._sources.append(f"{scheme}:{self._home / name}")
        self._items += items

    def _write(self, path: str, data: bytes) -> None:
        target = self._home / path
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes(data)
        modified = (_FIRST_DAY + timedelta(days=7 * next(self._days))).timestamp()
        os.utime(target, (modified, modified))


@dataclass(frozen=True, slots=True)
class _Scan:
    """Text of a page that is put into its PDF as a picture."""

    text: str


def _pdf(*pages: str | _Scan) -> bytes:
    """A PDF with text pages and scanned pages, in this order; its title is the first line."""
    import pymupdf

    with pymupdf.open() as document:
        for page in pages:
            sheet = document.new_page(width=_A4[0], height=_A4[1])
            if isinstance(page, _Scan):
                sheet.insert_image(sheet.rect, stream=_printed(page.text, _A4))
            else:
                _print_on(sheet, page, _TEXT_POINTS)
        first = pages[0].text if isinstance(pages[0], _Scan) else pages[0]
        day = _FIRST_DAY.strftime("D:%Y%m%d%H%M%SZ")
        document.set_metadata({"title": first.partition("\n")[0], "creationDate": day, "modDate": day})
        data: bytes = document.tobytes(garbage=3, deflate=True, no_new_id=True)
        return data


def _printed(text: str, size: tuple[int, int]) -> bytes:
    """`text` on a sheet of `size` points, as a grey PNG of 200 dpi."""
    import pymupdf

    with pymupdf.open() as document:
        sheet = document.new_page(width=size[0], height=size[1])
        _print_on(sheet, text, _SCAN_POINTS)
        data: bytes = sheet.get_pixmap(dpi=_SCAN_DPI, colorspace=pymupdf.csGRAY).tobytes("png")
        return data


def _print_on(sheet: Any, text: str, points: int) -> None:
    room = sheet.insert_textbox(sheet.rect + (50, 50, -50, -50), text, fontsize=points, fontname="helv")  # noqa: RUF005
    if room < 0:
        raise ValueError(f"the text does not fit on its page: {text[:40]!r}")


def _picture(text: str, kind: str) -> bytes:
    """A picture of a printed card; `kind` as Pillow names formats."""
    from PIL import Image

    target = io.BytesIO()
    with Image.open(io.BytesIO(_printed(text, _CARD))) as picture:
        picture.save(target, kind, dpi=(_SCAN_DPI, _SCAN_DPI))
    return target.getvalue()


def _docx(first: tuple[str, str], *rows: tuple[str, str]) -> bytes:
    """A document with a heading and a table. `first` has the name of its file, which nobody sees, and the heading."""
    import docx

    document = docx.Document()
    document.core_properties.title = first[1]
    document.core_properties.created = document.core_properties.modified = _FIRST_DAY.replace(tzinfo=None)
    document.add_heading(first[1])
    document.add_paragraph("All that is known stands in the table.")
    table = document.add_table(rows=0, cols=2)
    for row in rows:
        for cell, words in zip(table.add_row().cells, row, strict=True):
            cell.text = words
    written = io.BytesIO()
    document.save(written)
    return _undated(written)


def _undated(archive: io.BytesIO) -> bytes:
    """The same archive without the time of day that its writer put beside every member."""
    target = io.BytesIO()
    with zipfile.ZipFile(archive) as before, zipfile.ZipFile(target, "w") as after:
        for name in before.namelist():
            after.writestr(zipfile.ZipInfo(name, _FIRST_DAY.timetuple()[:6]), before.read(name), zipfile.ZIP_DEFLATED)
    return target.getvalue()


def _html(title: str, *paragraphs: str) -> bytes:
    head = f'<!DOCTYPE html>\n<html lang="en"><head><meta charset="utf-8"><title>{title}</title></head>'
    body = "".join(f"<p>{text}</p>\n" for text in paragraphs)
    return f"{head}\n<body><h1>{title}</h1>\n{body}</body></html>\n".encode()


def _silence() -> bytes:
    """An MP3 of a few silent frames: an empty ID3 tag, then MPEG 1 layer III, 128 kbit/s, 44.1 kHz (417 bytes each)."""
    return b"ID3\x03\x00\x00\x00\x00\x00\x00" + (b"\xff\xfb\x90\x00" + bytes(413)) * 8


def _mail_day(number: int) -> datetime:
    return _FIRST_DAY + timedelta(days=19 * number, hours=number)


def _mail(letter: _Letter, number: int) -> bytes:
    mail = EmailMessage()
    mail["From"], mail["To"], mail["Subject"] = letter.sender, letter.recipient, letter.subject
    mail["Date"] = format_datetime(_mail_day(number))
    mail["Message-ID"] = f"<{number}.{letter.subject.replace(' ', '-').replace(':', '')}@demo.example>"
    if letter.subject.startswith("Re: "):
        mail["In-Reply-To"] = f"<{number - 1}.{letter.subject[4:].replace(' ', '-')}@demo.example>"
    mail.set_content(letter.text + "\n")
    if letter.attachment is not None:
        maintype, subtype = _MEDIA_TYPES[Path(letter.attachment.name).suffix]
        mail.add_attachment(letter.attachment.data, maintype=maintype, subtype=subtype, filename=letter.attachment.name)
        mail.set_boundary(f"=demo-{number}=")
    return mail.as_bytes()


_MEDIA_TYPES: Final = {
    ".pdf": ("application", "pdf"),
    ".docx": ("application", "vnd.openxmlformats-officedocument.wordprocessingml.document"),
    ".txt": ("text", "plain"),
}


def _calendar(events: Sequence[_Event]) -> bytes:
    lines = ["BEGIN:VCALENDAR", "VERSION:2.0", "PRODID:-//Nightmill//demo//EN", *_ZONE.splitlines()]
    for number, event in enumerate(events, start=1):
        lines += ["BEGIN:VEVENT", f"UID:{number}-{event.start}@demo.example", "DTSTAMP:20250203T091500Z"]
        lines += [f"SUMMARY:{_escaped(event.summary)}", *_span(event)]
        lines += f"RRULE:{event.rule}".splitlines() if event.rule else []
        lines += [f"LOCATION:{_escaped(event.place)}"] if event.place else []
        lines += [f"DESCRIPTION:{_escaped(event.text)}", "END:VEVENT"]
    return "".join(f"{line}\r\n" for line in [*lines, "END:VCALENDAR"]).encode()


def _span(event: _Event) -> tuple[str, str]:
    if not event.hours:
        end = datetime.strptime(event.start, "%Y%m%d") + timedelta(days=1)
        return f"DTSTART;VALUE=DATE:{event.start}", f"DTEND;VALUE=DATE:{end:%Y%m%d}"
    end = datetime.strptime(event.start, "%Y%m%dT%H%M%S") + timedelta(hours=event.hours)
    return f"DTSTART;TZID=Europe/Berlin:{event.start}", f"DTEND;TZID=Europe/Berlin:{end:%Y%m%dT%H%M%S}"


def _escaped(text: str) -> str:
    """RFC 5545, 3.3.11."""
    return text.replace("\\", "\\\\").replace(";", "\\;").replace(",", "\\,")
