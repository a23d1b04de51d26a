"""Flags, environment and `.env` -> one frozen `Settings`, or all mistakes at once.

Rule: one table (`SETTINGS`) says all there is to know of a setting; parsing, `nightmill settings` and
docs/settings.md follow it. The environment is an argument, and `own_settings` the one that passes the process's own.

    flags  >  environment  >  .env  >  preset  >  default       an empty value counts as not set (in a flag: as empty)
"""

from __future__ import annotations

import io
import os
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from difflib import get_close_matches
from pathlib import Path
from typing import Any, Final

from dotenv.parser import Binding, parse_stream

from engine.errors import SettingsError
from engine.printing import printable
from engine.sizes import format_size, parse_size

#: In debug mode only so many items of a source are looked at, the latest ones.
DEBUG_FILES: Final = 50
#: By the name of a preset: the workers of one user, and of all.
PRESETS: Final = {"small": (5, 20), "medium": (3, 30), "large": (2, 40)}
#: In the data directory.
LEDGER_FILE: Final = "ledger.db"
INDEXES_FOLDER: Final = "indexes"
SPOOL_FOLDER: Final = "spool"

_PREFIX: Final = "NIGHTMILL_"
#: What a preset brings, in the order of its numbers.
_OF_THE_PRESET: Final = ("MAX_WORKERS_PER_USER", "MAX_TOTAL_WORKERS")
#: Read by the tests, not by the engine.
_OF_THE_TESTS: Final = frozenset({"NIGHTMILL_CORPUS"})
#: Kubernetes (and Docker's links) put these into each container beside a service that is called nightmill.
_OF_KUBERNETES: Final = re.compile(r"NIGHTMILL_(SERVICE_HOST|SERVICE_PORT(_\w+)?|PORT(_[0-9]+_(TCP|UDP)(_\w+)?)?)")
#: Tesseract's names: three letters, then variants (`chi_sim_vert`). Nothing that could leave a folder.
_LANGUAGE: Final = re.compile(r"[a-z]{3}(_[A-Za-z]+)*")
#: How like a known key another program's key may be before it is taken for a slip of the pen (difflib ratio).
_LIKENESS: Final = 0.8


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """What the operator decided, checked. Made by `load_settings`; copies with changes by dataclasses.replace.

    data_dir               absolute; may not exist yet
    preset                 a name of PRESETS; its numbers are in the next two fields, unless those were given
    max_workers_per_user   workers of one user, over all processes
    max_total_workers      workers of all users, over all processes; may be the smaller of the two
    cpu_limit              cores to use; None: as measured
    scaling                "auto" or "off"
    memory_limit_bytes     for all workers together; None: as measured
    disk_reserve_bytes     free space below which nothing is begun
    spool_limit_bytes      for the files that a run's workers work on, and what they write
    keep_days              how long runs, and attempts at items that are well, are remembered
    max_text_bytes         of one document, as UTF-8; at most document.MAX_TEXT_BYTES
    ocr                    "auto" or "off"
    ocr_languages          Tesseract's names, at least one, in order of preference
    ocr_backend            "auto", "tesserocr" or "pytesseract"
    embedder               a name that embedders.spec_of knows
    sandbox                "auto", "strict" or "off"
    stall_seconds          a worker that says nothing for so long is stopped
    unit_seconds           ceiling of one unit, in seconds of wall time
    debug_mode             the latest DEBUG_FILES items only, nothing is ever removed
    log_level              "debug", "info", "warning" or "error"
    origins                for each key where its value comes from: "default", "environment", ".env", the key of another
                           setting that brings it ("NIGHTMILL_PRESET", "DEBUG_MODE"), or the flag, such as "--data-dir"
    """

    data_dir: Path
    preset: str
    max_workers_per_user: int
    max_total_workers: int
    cpu_limit: int | None
    scaling: str
    memory_limit_bytes: int | None
    disk_reserve_bytes: int
    spool_limit_bytes: int
    keep_days: int
    max_text_bytes: int
    ocr: str
    ocr_languages: tuple[str, ...]
    ocr_backend: str
    embedder: str
    sandbox: str
    stall_seconds: float
    unit_seconds: float
    debug_mode: bool
    log_level: str
    origins: Mapping[str, str] = field(default_factory=dict, compare=False)

    def describe(self) -> tuple[Described, ...]:
        """Every setting as it is in force, in the order of the table."""
        return tuple(
            Described(
                key=setting.key,
                value=printable(setting.form.show(getattr(self, setting.field))),
                origin=self.origins.get(setting.key, "default"),
                meaning=setting.meaning,
            )
            for setting in SETTINGS
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Described:
    """One line of `nightmill settings`; `value` is safe to show on a terminal."""

    key: str
    value: str
    origin: str
    meaning: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Form:
    """How values are written. `parse` raises ValueError; `range` completes the sentence "must be ..."."""

    range: str
    parse: Callable[[str], Any]
    show: Callable[[Any], str] = str


@dataclass(frozen=True, slots=True, kw_only=True)
class Setting:
    """One line of the table.

    key       in the environment and in `.env`
    field     of Settings
    default   as one would write it; "" where leaving it out means something of its own
    meaning   what it does
    prevents  the failure that the default prevents
    """

    key: str
    field: str
    default: str
    form: Form
    meaning: str
    prevents: str

    @property
    def flag(self) -> str:
        """The key as a word of the command line: `--data-dir` for NIGHTMILL_DATA_DIR."""
        return "--" + self.key.removeprefix(_PREFIX).lower().replace("_", "-")


class _Wrong(ValueError):  # noqa: N818 - never leaves this file
    """A mistake that has more to say than the range of its setting."""


def _whole(low: int, high: int) -> Form:
    def parse(text: str) -> int:
        # int() alone would take 1_0, signs and the digits of other scripts.
        number = int(text) if re.fullmatch(r"[0-9]{1,18}", text) else -1
        if not low <= number <= high:
            raise ValueError
        return number

    return Form(range=f"{low} to {high}", parse=parse)


def _measured(form: Form) -> Form:
    """The same, or nothing: then the machine is asked."""
    return Form(
        range=form.range,
        parse=lambda text: form.parse(text) if text else None,
        show=lambda value: "measured" if value is None else form.show(value),
    )


def _size(low: str, high: str = "") -> Form:
    def parse(text: str) -> int:
        size = parse_size(text)
        if size < parse_size(low):
            raise _Wrong(f"must be at least {low}")
        if high and size > parse_size(high):
            raise _Wrong(f"must be at most {high}")
        return size

    bound = f", at least {low}" if parse_size(low) else "; 0 for none"
    sizes = f"a size from {low} to {high}" if high else f"a size such as 2GB or 1536MiB{bound}"
    return Form(range=sizes, parse=parse, show=format_size)


def _choice(*names: str) -> Form:
    def parse(text: str) -> str:
        if text.lower() not in names:
            raise ValueError
        return text.lower()

    return Form(range=", ".join(names[:-1]) + " or " + names[-1], parse=parse)


def _embedder(*names: str) -> Form:
    plain = _choice(*names)

    def parse(text: str) -> str:
        if text.lower() == "openai":
            raise _Wrong(f"comes with a later release; for now it must be {plain.range}")
        return str(plain.parse(text))

    return Form(range=plain.range, parse=parse)


def _switch() -> Form:
    values = {"1": True, "true": True, "yes": True, "on": True, "0": False, "false": False, "no": False, "off": False}

    def parse(text: str) -> bool:
        try:
            return values[text.lower()]
        except KeyError:
            raise ValueError from None

    return Form(
        range="on or off (1, true, yes; 0, false, no)", parse=parse, show=lambda value: "on" if value else "off"
    )


def _languages() -> Form:
    def parse(text: str) -> tuple[str, ...]:
        names = [name.strip() for name in re.split(r"[,+]", text)]
        for name in names:
            if not _LANGUAGE.fullmatch(name):
                raise _Wrong(f"{printable(name)!r} is no language; must be names such as eng or eng,deu,chi_sim")
        return tuple(dict.fromkeys(names))

    return Form(range="Tesseract's language names, with commas or plus signs between", parse=parse, show=",".join)


def _folder() -> Form:
    def parse(text: str) -> Path:
        if not text or "\0" in text:
            raise ValueError
        path = os.path.expanduser(text)
        if path.startswith("~"):
            # Nobody has that name, or no home is known. Taken literally, a folder called ~ would be made.
            raise _Wrong(f"{printable(path.split('/')[0])} is nobody's home; write the path in full or as ./~name")
        return Path(os.path.abspath(path))

    return Form(range="the path of a folder; relative ones begin where the command is run", parse=parse)


SETTINGS: Final[tuple[Setting, ...]] = (
    Setting(
        key="NIGHTMILL_DATA_DIR",
        field="data_dir",
        default="./var",
        form=_folder(),
        meaning="The folder that holds the ledger, the users' indexes and the spool. Made when it is not there.",
        prevents="A first try must not need root rights or write outside of the folder that it is made in.",
    ),
    Setting(
        key="NIGHTMILL_PRESET",
        field="preset",
        default="small",
        form=_choice(*PRESETS),
        meaning=(
            "How many workers one user and all users may keep busy, by the kind of deployment: small (5 and 20) for "
            "few users with much each, medium (3 and 30) for some dozens, large (2 and 40) for many users who all get "
            "something at any time. MAX_WORKERS_PER_USER and MAX_TOTAL_WORKERS, where they are given, win over it."
        ),
        prevents="With the numbers of large, a lone user would get two workers, and the rest would stand idle.",
    ),
    Setting(
        key="MAX_WORKERS_PER_USER",
        field="max_workers_per_user",
        default="5",
        form=_whole(1, 1000),
        meaning=(
            "The most workers that are busy for one user at a time, over all processes of the data directory. Left "
            "out, NIGHTMILL_PRESET says it."
        ),
        prevents="One user with a huge mailbox would take every worker, and all others would wait for days.",
    ),
    Setting(
        key="MAX_TOTAL_WORKERS",
        field="max_total_workers",
        default="20",
        form=_whole(1, 1000),
        meaning=(
            "The most workers that are busy at a time, for all users and over all processes. It may be smaller than "
            "MAX_WORKERS_PER_USER; both limits hold. Left out, NIGHTMILL_PRESET says it."
        ),
        prevents="A nightly run and a few re-indexes beside it would together start more than the server can carry.",
    ),
    Setting(
        key="NIGHTMILL_CPU_LIMIT",
        field="cpu_limit",
        default="",
        form=_measured(_whole(1, 4096)),
        meaning=(
            "The most cores that workers keep busy. Left out, it is what the machine and its container really give "
            "(affinity and cgroup quotas)."
        ),
        prevents="In a container, counting the cores of the host starts workers that only take turns and stall.",
    ),
    Setting(
        key="NIGHTMILL_SCALING",
        field="scaling",
        default="auto",
        form=_choice("auto", "off"),
        meaning=(
            "Whether bulk work keeps fewer cores busy, down to one, while other programs keep them busy for more than "
            "some seconds or memory is short, and comes back when they are done. Work that somebody waits for is not "
            "affected. With off it is always NIGHTMILL_CPU_LIMIT. The scheduler goes by what the process was set that "
            "started it."
        ),
        prevents="A night that runs late would slow the web server beside it down, and push its memory into swap.",
    ),
    Setting(
        key="NIGHTMILL_MEMORY_LIMIT",
        field="memory_limit_bytes",
        default="",
        form=_measured(_size("256MiB")),
        meaning=(
            "The memory that all workers may use together. It is no more than the narrowest limit of the container, "
            "and the physical memory less a reserve for the rest of the machine; left out, it is as much."
        ),
        prevents="Several large files at once would make the kernel kill a process, and not always one of ours.",
    ),
    Setting(
        key="NIGHTMILL_DISK_RESERVE",
        field="disk_reserve_bytes",
        default="500MB",
        form=_size("0"),
        meaning=(
            "Free space on the data directory's disk below which no run starts, and a run that goes on begins nothing "
            "more: it publishes what is ready and ends with exit code 4."
        ),
        prevents="A disk filled to the last byte stops the other programs of the server, databases first.",
    ),
    Setting(
        key="NIGHTMILL_SPOOL_LIMIT",
        field="spool_limit_bytes",
        default="4GB",
        form=_size("16MiB"),
        meaning=(
            "What the files that a run's workers work on, and what they write, may take of the disk together. A file "
            "that needs more is worked on alone; one that would leave the disk less than NIGHTMILL_DISK_RESERVE fails."
        ),
        prevents="Copies of twenty large files at once would fill the disk, though each of them has room.",
    ),
    Setting(
        key="NIGHTMILL_KEEP_DAYS",
        field="keep_days",
        default="90",
        form=_whole(1, 3650),
        meaning=(
            "How many days the ledger remembers runs, and what was tried with items that are indexed or left out. What "
            "failed keeps its history until it is mended or gone."
        ),
        prevents="The history of years, which nobody asks for, would take more of the disk than the items themselves.",
    ),
    Setting(
        key="NIGHTMILL_MAX_TEXT",
        field="max_text_bytes",
        default="20MB",
        form=_size("1KB", "20MB"),
        meaning=(
            "How much text is kept of one file, mail or event, counted as UTF-8. What is longer is cut there, with a "
            "note that says so, and is counted as partial. It can be lowered; the memory and the disk that a run plans "
            "with allow no more. After a change the next run reads all files anew."
        ),
        prevents="One export of a database would fill a user's index with numbers, and a worker's memory with text.",
    ),
    Setting(
        key="NIGHTMILL_OCR",
        field="ocr",
        default="auto",
        form=_choice("auto", "off"),
        meaning=(
            "Whether pages and images without text are read by text recognition. With off they are indexed by what "
            "text they have."
        ),
        prevents="Without recognition scans would be in the index, and never be found.",
    ),
    Setting(
        key="NIGHTMILL_OCR_LANGUAGES",
        field="ocr_languages",
        default="eng",
        form=_languages(),
        meaning=(
            "The languages that text recognition expects, such as eng,deu. Each needs its data; each makes "
            "recognition slower."
        ),
        prevents="Any other language needs data that may not be there; that of English is installed with Nightmill.",
    ),
    Setting(
        key="NIGHTMILL_OCR_BACKEND",
        field="ocr_backend",
        default="auto",
        form=_choice("auto", "tesserocr", "pytesseract"),
        meaning=(
            "How Tesseract is called: tesserocr in the worker itself, pytesseract through the tesseract program. "
            "auto takes tesserocr where it and the languages' data are there, else the program."
        ),
        prevents="A server that lacks one of the two would read no scans, though the other is there.",
    ),
    Setting(
        key="NIGHTMILL_EMBEDDER",
        field="embedder",
        default="builtin",
        form=_embedder("builtin", "fast", "none"),
        meaning=(
            "What makes vectors of texts: builtin (all-MiniLM-L6-v2), fast (WordLlama, a hundred times faster and "
            "less exact) or none (keyword search only). After a change the next run embeds all texts anew."
        ),
        prevents="A model that needs a key or the network would make the first run fail, or send mail elsewhere.",
    ),
    Setting(
        key="NIGHTMILL_SANDBOX",
        field="sandbox",
        default="auto",
        form=_choice("auto", "strict", "off"),
        meaning=(
            "Whether workers give up all rights but those to their own two folders before they read a file: no other "
            "file, no network, no other process, no program. With auto they give up what this kernel lets them; with "
            "strict no run starts where Landlock or seccomp is lacking, and a worker that has read one user's files "
            "reads nobody else's, which takes two or three times as long where many users have a little to read; with "
            "off they keep the rights of the account. `nightmill doctor` says what there is."
        ),
        prevents="A file made to take over a PDF library would read everybody's index, and send it somewhere.",
    ),
    Setting(
        key="NIGHTMILL_STALL_SECONDS",
        field="stall_seconds",
        default="120",
        form=_whole(5, 3600),
        meaning="A worker that reports no page and no text for so many seconds is stopped; its item is tried again. "
        "Seconds in which others have all the cores do not count.",
        prevents="One file that sends a parser round in circles would hold a worker until morning.",
    ),
    Setting(
        key="NIGHTMILL_UNIT_SECONDS",
        field="unit_seconds",
        default="600",
        form=_whole(10, 86400),
        meaning="The most seconds that one unit of work (a file, or a few pages of a long one) may take in all.",
        prevents="A file that makes a little progress for ever would never be caught by NIGHTMILL_STALL_SECONDS.",
    ),
    Setting(
        key="DEBUG_MODE",
        field="debug_mode",
        default="off",
        form=_switch(),
        meaning=(
            f"A trial: only the latest {DEBUG_FILES} files are looked at, nothing is ever removed from an index, and "
            "the log says everything, unless NIGHTMILL_LOG_LEVEL is set."
        ),
        prevents="Left on by default, a night would end early and look complete.",
    ),
    Setting(
        key="NIGHTMILL_LOG_LEVEL",
        field="log_level",
        default="warning",
        form=_choice("debug", "info", "warning", "error"),
        meaning=(
            "How much the log on standard error says. With debug, a scheduler that is started writes every grant and "
            "every wait to run/scheduler.log in the data directory; one that runs already goes on as it was started."
        ),
        prevents="A line for each of a hundred thousand items would bury the one that matters.",
    ),
)
_BY_KEY: Final = {setting.key: setting for setting in SETTINGS}


def load_settings(
    environ: Mapping[str, str], *, dotenv: Path | None, flags: Mapping[str, str] | None = None
) -> Settings:
    """The settings in force. `flags` has keys of the table (not the flags' own words), as far as they were given.

    dotenv: the `.env` file; None, or a file that is not there: none is read. Raises SettingsError with every mistake
    that was found; KeyError for a flag that the table does not know (a defect of the caller).
    """
    flags = flags or {}
    problems: list[str] = []
    in_file = _read_dotenv(dotenv, problems) if dotenv is not None else {}
    problems += _strangers(environ, "the environment", _is_near_in_environment)
    problems += _strangers(in_file, ".env", _is_near_in_file)
    values: dict[str, Any] = {}
    origins: dict[str, str] = {}
    given = {_BY_KEY[key].key: text for key, text in flags.items()}
    for setting in SETTINGS:
        text, origin = _find(setting, given, environ, in_file)
        origins[setting.key] = origin
        try:
            values[setting.field] = setting.form.parse(text.strip())
        except ValueError as error:
            wanted = str(error) if isinstance(error, _Wrong) else f"must be {setting.form.range}"
            place = "the environment" if origin == "environment" else origin
            problems.append(f"{setting.key} = {printable(text, 200)} (from {place}); {wanted}")
    if problems:
        raise SettingsError(tuple(problems))
    for key, brought in zip(_OF_THE_PRESET, PRESETS[values["preset"]], strict=True):
        if origins[key] == "default" != origins["NIGHTMILL_PRESET"]:
            values[_BY_KEY[key].field], origins[key] = brought, "NIGHTMILL_PRESET"
    if values["debug_mode"] and origins["NIGHTMILL_LOG_LEVEL"] == "default":
        values["log_level"], origins["NIGHTMILL_LOG_LEVEL"] = "debug", "DEBUG_MODE"
    return Settings(**values, origins=origins)


def own_settings(flags: Mapping[str, str] | None = None) -> Settings:
    """The settings of this process, by its environment and the `.env` of its working folder. See `load_settings`."""
    return load_settings(os.environ, dotenv=Path(".env"), flags=flags)


def _find(
    setting: Setting, flags: Mapping[str, str], environ: Mapping[str, str], in_file: Mapping[str, str]
) -> tuple[str, str]:
    """The text that counts, and its origin."""
    if setting.key in flags:
        return flags[setting.key], setting.flag
    for origin, texts in (("environment", environ), (".env", in_file)):
        if texts.get(setting.key, "").strip():
            return texts[setting.key], origin
    return setting.default, "default"


def _read_dotenv(path: Path, problems: list[str]) -> dict[str, str]:
    """Key -> text, the last line of a key counting, as everybody's tools read it. Nothing is interpolated.

    A line's text is not repeated in a problem: it may hold a key to something.
    """
    try:
        text = path.read_text(encoding="utf-8-sig")
    except FileNotFoundError:
        return {}
    except OSError as error:
        problems.append(f".env: {printable(str(path))} cannot be read: {error.strerror}")
        return {}
    except UnicodeDecodeError as error:
        problems.append(f".env: {printable(str(path))} is not UTF-8 (byte {error.start}); save it as UTF-8")
        return {}
    found: dict[str, str] = {}
    for binding in parse_stream(io.StringIO(text)):
        if binding.error:
            problems.append(f".env line {_line_of(binding)}: it makes no sense; write KEY=value, and close every quote")
        elif binding.key is not None and binding.value is not None:
            found[binding.key] = binding.value
        elif binding.key is not None and (binding.key in _BY_KEY or _is_near_in_file(binding.key)):
            problems.append(
                f".env line {_line_of(binding)}: {printable(binding.key, 100)} has no value; write KEY=value"
            )
    return found


def _line_of(binding: Binding) -> int:
    """Blank lines before a binding belong to it; the line of interest is the first with something on it."""
    text = binding.original.string
    return binding.original.line + text[: len(text) - len(text.lstrip())].count("\n")


def _strangers(texts: Mapping[str, str], place: str, is_near: Callable[[str], bool]) -> list[str]:
    """A problem for each key that means us and is none of ours."""
    problems = []
    for key in sorted(texts):
        if key not in _BY_KEY and is_near(key):
            guess = _guess(key)
            way_out = f"did you mean {guess}?" if guess else "`nightmill settings` lists those that there are"
            problems.append(f"{printable(key, 100)} (from {place}) is no setting; {way_out}")
    return problems


def _is_near_in_environment(key: str) -> bool:
    """Only what bears our prefix: the environment is everybody's, and there are no misspelt keys to look for."""
    return key.upper().startswith(_PREFIX) and key not in _OF_THE_TESTS and not _OF_KUBERNETES.fullmatch(key)


def _is_near_in_file(key: str) -> bool:
    """Our prefix, or almost one of our keys: the file was written for us, perhaps among others."""
    if key in _OF_THE_TESTS:
        return False
    return key.upper().startswith(_PREFIX) or bool(get_close_matches(key.upper(), _BY_KEY, n=1, cutoff=_LIKENESS))


def _guess(key: str) -> str | None:
    """The key that was probably meant."""
    upper = key.upper()
    for likely in (upper, upper.removeprefix(_PREFIX)):
        if likely in _BY_KEY:
            return likely
    found: Sequence[str] = get_close_matches(upper, _BY_KEY, n=1)
    return found[0] if found else None
