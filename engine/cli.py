"""Words on the command line -> one call -> an exit code.

Rule: no work is done here. Each command is a short function that loads what it needs when it is called, so that
`nightmill status` is quick and no command loads a library that can crash. The last broad `except` is here.

    0 all done · 1 internal error · 2 settings or usage · 3 finished, some items failed · 4 could not run
    5 deadline reached, the rest reported · 130 interrupted, can be taken up again
"""

from __future__ import annotations

import argparse
import csv
import io
import json
import os
import sys
import time
import traceback
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

from engine.errors import NO_ROOM, CannotRunError, NightmillError, UsageError
from engine.model import Counts, ItemState, Lane, UserId
from engine.printing import printable, printable_lines
from engine.reasons import CATALOGUE, Reason
from engine.settings import INDEXES_FOLDER, LEDGER_FILE, SETTINGS, Settings, own_settings
from engine.sizes import format_size
from engine.telemetry import WAITS, choose_reporter, set_up_logging

if TYPE_CHECKING:
    from engine.document import Document
    from engine.ledger import SqlLedger
    from engine.ports import ItemRecord

SCHEMA_VERSION = 1
#: ports.DeskStats.scaled_by, for people.
_SCALED = {"load": "what other programs do", "memory": "the memory that is in use"}
_KINDS = ("file", "mail", "event")
#: No path is longer.
_NAME_CHARS = 10_000


def main(words: Sequence[str] | None = None) -> int:
    """Run one command. Returns the exit code; writes results to standard output and all else to standard error."""
    parser = make_parser()
    given = parser.parse_args(words)
    _mend_streams()
    # What we write is people's mail: for the account that runs us alone.
    os.umask(0o077)
    try:
        settings = _settings(given)
        set_up_logging(settings.log_level, sys.stderr)
        code: int = given.call(settings, given)
        sys.stdout.flush()
        return code
    except NightmillError as error:
        print(f"nightmill: {error}", file=sys.stderr)
        return error.exit_code
    except KeyboardInterrupt:
        print("nightmill: interrupted", file=sys.stderr)
        return 130
    except BrokenPipeError:
        # Whoever read our output has gone (`| head`): no reason to complain, and nowhere to do so.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return int(getattr(given, "exit_code", 0))
    except Exception as error:  # noqa: BLE001 - the last one: a person gets a sentence, the log the rest
        return _unexpected(error)


def _mend_streams() -> None:
    """Output that is closed goes nowhere, and a name that the terminal cannot write is written with escapes."""
    for name in ("stdout", "stderr"):
        stream = getattr(sys, name)
        if stream is None:
            setattr(sys, name, open(os.devnull, "w", encoding="utf-8"))  # noqa: SIM115 - as long as the process
        elif isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")


def _unexpected(error: Exception) -> int:
    from indexes.errors import IndexFault

    if isinstance(error, IndexFault):
        print(f"nightmill: {error}", file=sys.stderr)
        return CannotRunError.exit_code
    if isinstance(error, OSError) and error.errno in NO_ROOM:
        print(f"nightmill: no room: {error}; free space, then run again", file=sys.stderr)
        return CannotRunError.exit_code
    traceback.print_exc()
    print(f"nightmill: internal error: {type(error).__name__}: {error}; please report it", file=sys.stderr)
    return 1


# --- the words -------------------------------------------------------------------------------------------------------


def make_parser() -> argparse.ArgumentParser:
    """All commands with their words; also what shell completion is made from."""
    parser = argparse.ArgumentParser(
        prog="nightmill", description="One private search index for every user: mail, calendars and files."
    )
    parser.add_argument("--version", action="version", version=f"nightmill {version('nightmill')}")
    commands = parser.add_subparsers(dest="command", metavar="COMMAND", required=True)
    common, plain = _common(with_json=True), _common(with_json=False)

    def command(
        group: Any,
        name: str,
        call: Callable[[Settings, argparse.Namespace], int],
        help_: str,
        parent: argparse.ArgumentParser = common,
    ) -> argparse.ArgumentParser:
        made: argparse.ArgumentParser = group.add_parser(name, help=help_, description=help_, parents=[parent])
        made.set_defaults(call=call)
        return made

    demo = command(commands, "demo", _demo, "a small world of users, indexed and searched, in a temporary place", plain)
    _path(demo.add_argument("--place", type=Path, help="build the world here and keep it (default: a temporary place)"))
    demo.add_argument("--keep", action="store_true", help="do not remove the temporary place at the end")

    users = commands.add_parser("users", help="who is indexed, and from where", description="Who is indexed.")
    of_users = users.add_subparsers(dest="users_command", metavar="COMMAND", required=True)
    add = command(of_users, "add", _users_add, "register a user, or add sources to one")
    add.add_argument("name")
    add.add_argument("source", nargs="+", help="folder:PATH, mbox:PATH, maildir:PATH or ics:PATH")
    add.add_argument("--weight", type=float, default=1.0, help="the user's share (default 1.0)")
    command(of_users, "list", _users_list, "all users and their sources")
    import_ = command(of_users, "import", _users_import, "register users from lines of NAME,SOURCE[,WEIGHT]")
    _path(import_.add_argument("file", type=Path))
    remove = command(of_users, "remove", _users_remove, "end the service for a user, or for some of the sources")
    remove.add_argument("name")
    remove.add_argument("source", nargs="*", help="only these sources, as `users list` shows them")
    erase = command(of_users, "erase", _users_erase, "destroy every byte of a user's index, and prove it")
    erase.add_argument("name")

    init = command(commands, "init", _init, "bring all users up to date: everything that changed")
    init.add_argument("user", nargs="*", help="only these users")
    init.add_argument("--dry-run", action="store_true", help="say what a run would find, and do nothing")
    init.add_argument("--until", metavar="HH:MM", help="begin nothing new after this time of day")
    _run_words(init)

    reindex = command(commands, "reindex", _reindex, "bring one user up to date now, before all bulk work")
    reindex.add_argument("user")
    reindex.add_argument("--full", action="store_true", help="extract everything again, OCR included")
    _run_words(reindex)

    search = command(commands, "search", _search, "ask one user's index")
    search.add_argument("user")
    search.add_argument("words", nargs="+")
    search.add_argument("-k", type=int, default=10, metavar="N", help="so many hits (default 10)")
    search.add_argument("--kind", choices=_KINDS, action="append", help="only items of this kind")
    search.add_argument("--since", type=_day, metavar="YYYY-MM-DD", help="only items of this day or later")
    search.add_argument("--until", type=_day, metavar="YYYY-MM-DD", help="only items before this day")
    search.add_argument("--mode", choices=("hybrid", "vector", "keyword"), default="hybrid")

    extract = command(commands, "extract", _extract, "what the engine reads in a file: type, pages, text")
    _path(extract.add_argument("file", type=Path))

    status = command(commands, "status", _status, "how far everything is, what waits and why")
    status.add_argument("user", nargs="?")
    status.add_argument("--watch", action="store_true", help="again every two seconds, until interrupted")

    failures = commands.add_parser(
        "failures", help="what was not indexed, and why", description="What was not indexed."
    )
    of_failures = failures.add_subparsers(dest="failures_command", metavar="COMMAND", required=True)
    listed = command(
        of_failures,
        "list",
        _failures_list,
        "what failed; with --skipped also what was left out by rule",
    )
    listed.add_argument("--user")
    listed.add_argument("--reason", choices=[reason.value for reason in Reason], metavar="REASON")
    listed.add_argument("--since", type=_day, metavar="YYYY-MM-DD")
    listed.add_argument("--skipped", action="store_true", help="also what was skipped by rule")
    explain = command(of_failures, "explain", _failures_explain, "one item: what was tried, what it means, the way out")
    explain.add_argument("item", help="its number, or a part of its path")
    explain.add_argument("--user")
    retry = command(of_failures, "retry", _failures_retry, "let the next run try failed items again")
    retry.add_argument("--user")
    retry.add_argument("--reason", choices=[reason.value for reason in Reason], metavar="REASON")

    scheduler = commands.add_parser("scheduler", help="the process that gives out tokens", description="The scheduler.")
    of_scheduler = scheduler.add_subparsers(dest="scheduler_command", metavar="COMMAND", required=True)
    command(of_scheduler, "run", _scheduler_run, "be the scheduler, in the foreground", plain)
    command(of_scheduler, "status", _scheduler_status, "who holds how many tokens")
    command(of_scheduler, "stop", _scheduler_stop, "end it; coordinators that work start another")

    prune = command(commands, "prune", _prune, "give back disk space: old history, what killed processes left, logs")
    prune.add_argument("--dry-run", action="store_true", help="say what would go, and remove nothing")
    command(commands, "settings", _show_settings, "every setting, its value and where it comes from")
    command(commands, "doctor", _doctor, "what this machine offers, and what is missing")
    completion = command(commands, "completion", _completion, "the completion script of a shell", plain)
    completion.add_argument("shell", choices=("bash", "zsh", "tcsh"))
    return parser


def _common(*, with_json: bool) -> argparse.ArgumentParser:
    """What every command takes: --quiet, a flag for each setting, and --json where there is something to report."""
    common = argparse.ArgumentParser(add_help=False)
    if with_json:
        common.add_argument("--json", action="store_true", help="print one JSON object, for programs")
    common.add_argument("-q", "--quiet", action="store_true", help="no progress")
    group = common.add_argument_group("settings", "each overrides its key in the environment and in .env")
    for setting in SETTINGS:
        group.add_argument(setting.flag, dest=f"setting_{setting.key}", metavar="VALUE", help=f"{setting.key}")
    return common


def _run_words(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--accept-removals", action="store_true", help="remove what is gone from the sources, however much it is"
    )


def _path(action: argparse.Action) -> None:
    action.complete = {"bash": "_shtab_compgen_files", "zsh": "_files", "tcsh": "f"}  # type: ignore[attr-defined]


def _day(word: str) -> float:
    try:
        return datetime.strptime(word, "%Y-%m-%d").replace(tzinfo=UTC).timestamp()
    except ValueError:
        raise argparse.ArgumentTypeError(f"{word!r} is not a day; write it as 2026-01-31") from None


def _settings(given: argparse.Namespace) -> Settings:
    flags = {
        setting.key: value
        for setting in SETTINGS
        if (value := getattr(given, f"setting_{setting.key}", None)) is not None
    }
    return own_settings(flags)


# --- running ---------------------------------------------------------------------------------------------------------


def _init(settings: Settings, given: argparse.Namespace) -> int:
    from engine.run import seconds_until

    until = seconds_until(given.until, time.time()) if given.until else None
    users = [UserId(name) for name in dict.fromkeys(given.user)] or None
    if given.dry_run:
        return _dry_run(settings, given, users)
    return _run(settings, given, users, kind="init", lane=Lane.BULK, until=until)


def _dry_run(settings: Settings, given: argparse.Namespace, users: Sequence[UserId] | None) -> int:
    from engine.survey import Orders, preview

    orders = Orders(accept_removals=given.accept_removals, remove_nothing=settings.debug_mode)
    previews = []
    with _ledger(settings) as ledger:
        for user in users or ():
            _require_user(ledger, user)
        if ledger is not None:
            names = users if users is not None else [record.name for record in ledger.users()]
            previews = [preview(name, ledger=ledger, data_dir=settings.data_dir, orders=orders) for name in names]
    if given.json:
        _print_json({"users": [asdict(found) for found in previews]})
    for found in [] if given.json else previews:
        held = f", {found.held:,} vanished at once and held" if found.held else ""
        print(f"{found.user}: {found.new:,} new, {found.changed:,} changed, {found.gone:,} gone{held}")
        for trouble in found.troubles:
            print(f"  {printable(trouble)}")
    return 3 if any(found.troubles for found in previews) else 0


def _reindex(settings: Settings, given: argparse.Namespace) -> int:
    return _run(settings, given, [UserId(given.user)], kind="reindex", lane=Lane.INTERACTIVE, until=None)


def _run(
    settings: Settings,
    given: argparse.Namespace,
    users: Sequence[UserId] | None,
    *,
    kind: str,
    lane: Lane,
    until: float | None,
) -> int:
    from engine.run import run
    from engine.survey import Orders

    reporter = choose_reporter(sys.stderr, quiet=given.quiet or given.json)
    orders = Orders(full=getattr(given, "full", False), accept_removals=given.accept_removals)
    try:
        report = run(settings, users, kind=kind, lane=lane, orders=orders, reporter=reporter, until=until)
    finally:
        reporter.close()
    # Whoever reads our output may go before the end of it; what the run came to is told in any case.
    given.exit_code = report.exit_code
    if given.json:
        _print_json(report.to_json())
        return report.exit_code
    counts, work = report.counts, report.work
    print(f"{_number(report.users, 'user')} in {_duration(report.seconds)}: {_counts_line(counts)}")
    print(
        f"done now: {work.extracted:,} extracted, {_number(work.ocr_pages, 'page')} by OCR, "
        f"{_number(work.embedded, 'text')} embedded, "
        f"{work.published:,} published, {work.removed:,} removed"
    )
    if counts.failed or counts.attachments_failed or report.troubles:
        print("why: `nightmill failures list`")
    if report.message:
        print(report.message)
    return report.exit_code


def _demo(settings: Settings, given: argparse.Namespace) -> int:
    from engine.demo import run_demo

    return run_demo(place=given.place, keep=given.keep or given.place is not None, out=sys.stdout)


def _extract(settings: Settings, given: argparse.Namespace) -> int:
    from engine import inspect
    from engine.model import Failure

    reporter = choose_reporter(sys.stderr, quiet=given.json or not sys.stderr.isatty())
    try:
        found = inspect.read_file(settings, given.file, reporter)
    finally:
        reporter.close()
    if given.json:
        _print_json(inspect.to_json(given.file, found))
    elif isinstance(found, Failure):
        print(f"{given.file}: {found.reason.value}: {printable(found.detail)}")
        print(f"{CATALOGUE[found.reason].meaning} {CATALOGUE[found.reason].way_out}")
    else:
        _print_document(found)
    return 3 if isinstance(found, Failure) else 0


def _print_document(found: Document) -> None:
    print(f"type: {printable(found.media_type)}\ntitle: {printable(found.title)}")
    for name, value in found.facts.items():
        print(f"{printable(name)}: {printable(value, 300)}")
    for part in found.parts:
        print(f"attachment: {printable(part.name)} ({printable(part.media_type)}, {part.size_bytes:,} bytes)")
    for note in found.notes:
        print(f"note: {printable(note)}")
    for page in found.pages:
        how = page.method.value + (f", confidence {page.confidence:.0f}" if page.confidence is not None else "")
        label = f", printed as {printable(page.label)}" if page.label not in ("", str(page.number)) else ""
        print(f"\n--- page {page.number}{label} ({how}) ---" if page.number else f"\n--- text ({how}) ---")
        print(printable_lines(page.text))


# --- searching -------------------------------------------------------------------------------------------------------


def _search(settings: Settings, given: argparse.Namespace) -> int:
    from engine import search
    from indexes.records import Filters

    if given.k < 1:
        raise UsageError(f"-k {given.k}: must be at least 1")
    with _ledger(settings) as ledger:
        _require_user(ledger, UserId(given.user))
    filters = Filters(kinds=tuple(given.kind or ()), since=given.since, until=given.until)
    answer = search.search(
        settings.data_dir / INDEXES_FOLDER,
        UserId(given.user),
        _readable(" ".join(given.words)),
        k=given.k,
        mode=given.mode,
        filters=filters if filters != Filters() else None,
    )
    if given.json:
        hits = [
            {
                "title": hit.title,
                "path": hit.path,
                "kind": hit.kind,
                "page": hit.page or None,
                "passage": hit.passage,
                "score": hit.score,
                "type": hit.media_type,
                "date": _iso(hit.date),
                "facts": dict(hit.facts),
            }
            for hit in answer.hits
        ]
        _print_json({"user": given.user, "hits": hits, "note": answer.note})
        return 0
    for number, hit in enumerate(answer.hits, start=1):
        page = f", page {hit.page}" if hit.page else ""
        print(f"{number}. {printable(hit.title, 200)}  [{hit.kind}{page}]  {hit.score:.4f}")
        print(f"   {printable(hit.path, 300)}")
        print(f"   {printable(' '.join(hit.passage.split()), 240)}")
    if answer.note or not answer.hits:
        print(answer.note or "no hits")
    return 0


# --- users -----------------------------------------------------------------------------------------------------------


def _users_add(settings: Settings, given: argparse.Namespace) -> int:
    from engine.sources.uri import parse_uri

    uris = [str(parse_uri(word)) for word in given.source]
    with _ledger(settings, make=True) as ledger:
        assert ledger is not None
        ledger.add_user(UserId(given.name), uris, weight=given.weight)
        sources = [source.uri for source in ledger.sources(UserId(given.name))]
    for uri in map(parse_uri, uris):
        place = uri.path
        if os.path.isabs(place) and not os.path.exists(place):
            print(
                f"note: {printable(place)} is not there now; until it is, this source is listed as missing",
                file=sys.stderr,
            )
    if given.json:
        _print_json({"user": given.name, "sources": sources})
    else:
        print(f"{given.name}: {', '.join(printable(uri) for uri in sources)}")
    return 0


def _users_list(settings: Settings, given: argparse.Namespace) -> int:
    with _ledger(settings) as ledger:
        listed: list[dict[str, Any]] = []
        if ledger is not None:
            for record in sorted(ledger.users(), key=lambda record: record.name):
                uris = [source.uri for source in ledger.sources(record.name)]
                listed.append({"user": record.name, "weight": record.weight, "sources": uris})
    if given.json:
        _print_json({"users": listed})
    elif not listed:
        print("no users yet; `nightmill users add NAME folder:PATH` registers one")
    for entry in [] if given.json else listed:
        print(f"{entry['user']}: {', '.join(printable(uri) for uri in entry['sources'])}")
    return 0


def _users_import(settings: Settings, given: argparse.Namespace) -> int:
    from engine.ledger import check_user_name
    from engine.sources.uri import parse_uri

    try:
        rows = list(csv.reader(given.file.open(encoding="utf-8-sig", newline="")))
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise UsageError(f"{given.file} cannot be read: {error}") from None
    wanted: dict[str, tuple[list[str], float]] = {}
    problems: list[str] = []
    for number, row in enumerate(rows, start=1):
        cells = [cell.strip() for cell in row]
        if not any(cells) or (number == 1 and [cell.lower() for cell in cells[:2]] == ["name", "source"]):
            continue
        try:
            if len(cells) not in (2, 3):
                raise UsageError(f"{len(cells)} columns; write NAME,SOURCE or NAME,SOURCE,WEIGHT")
            check_user_name(cells[0])
            weight = float(cells[2]) if len(cells) == 3 and cells[2] else 1.0
            sources, _ = wanted.setdefault(cells[0], ([], weight))
            sources.append(str(parse_uri(cells[1])))
        except (UsageError, ValueError) as error:
            problems.append(f"  line {number}: {error}")
    if problems:
        raise UsageError(f"{given.file}: nothing was imported, because of\n" + "\n".join(problems))
    with _ledger(settings, make=True) as ledger:
        assert ledger is not None
        for name, (sources, weight) in wanted.items():
            ledger.add_user(UserId(name), sources, weight=weight)
    if given.json:
        _print_json({"users": len(wanted)})
    else:
        print(f"{len(wanted):,} users imported")
    return 0


def _users_remove(settings: Settings, given: argparse.Namespace) -> int:
    from engine.leaving import erase_user, remove_sources
    from engine.sources.uri import parse_uri

    user, root = UserId(given.name), settings.data_dir / INDEXES_FOLDER
    with _ledger(settings) as ledger:
        _require_user(ledger, user)
        assert ledger is not None
        if given.source:
            count = remove_sources(user, [str(parse_uri(word)) for word in given.source], ledger=ledger, root=root)
            said = f"{_number(count, 'item')} of {len(given.source)} sources of {user} left the index"
        else:
            erase_user(user, ledger=ledger, root=root)
            said = f"{user} is removed; the files of its sources are where they were"
    if given.json:
        _print_json({"user": user, "sources": given.source, "removed": True})
    else:
        print(said)
    return 0


def _users_erase(settings: Settings, given: argparse.Namespace) -> int:
    from engine.leaving import erase_user

    with _ledger(settings) as ledger:
        files, size = erase_user(UserId(given.name), ledger=ledger, root=settings.data_dir / INDEXES_FOLDER)
    if given.json:
        _print_json({"user": given.name, "erased_files": files, "erased_bytes": size, "left": 0})
    else:
        print(
            f"{given.name}: {_number(files, 'file')} with {size:,} bytes destroyed; looked again, and nothing is left"
        )
    return 0


# --- what is going on ------------------------------------------------------------------------------------------------


def _status(settings: Settings, given: argparse.Namespace) -> int:
    user = UserId(given.user) if given.user else None
    while True:
        table = _status_table(settings, user)
        if given.json:
            _print_json(table)
        else:
            _print_status(table)
        if not given.watch:
            return 0
        time.sleep(2.0)
        if not given.json:
            print()


def _status_table(settings: Settings, user: UserId | None) -> dict[str, Any]:
    from engine import guards
    from engine.desk import find_statistics
    from engine.workers.sandbox import find_protections

    with _ledger(settings) as ledger:
        if user is not None:
            _require_user(ledger, user)
        table: dict[str, Any] = dict(asdict(Counts() if ledger is None else ledger.counts(user)))
        if ledger is None:
            # No run yet; yet a product may be at work through the Python API.
            table["users"] = []
        elif user is None:
            by_user = ledger.counts_by_user()
            table["users"] = [
                {"user": name, **_short(counts)} for name, counts in sorted(by_user.items(), key=lambda pair: pair[0])
            ]
        else:
            table["user"] = user
            table["sources"] = [
                {
                    "uri": source.uri,
                    "reason": source.reason,
                    "detail": source.detail,
                    "held_removals": source.held_removals,
                    "listed": source.listed,
                }
                for source in ledger.sources(user)
            ]
        last_runs = () if ledger is None else ledger.last_runs(1)
        table["last_run"] = next((asdict(record) for record in last_runs), None)
    there = find_protections()
    table["sandbox"] = {"mode": settings.sandbox, **asdict(there), "says": there.describe()}
    limit, source = guards.memory_limit(settings.memory_limit_bytes)
    table["memory"] = {"limit_bytes": limit, "source": source, "available_bytes": guards.read_memory().available_bytes}
    statistics = find_statistics(settings.data_dir)
    table["scheduler"] = None if statistics is None else asdict(statistics)
    return table


def _short(counts: Counts) -> dict[str, int]:
    return {name: getattr(counts, name) for name in ("found", "indexed", "skipped", "failed", "pending")}


def _print_status(table: Mapping[str, Any]) -> None:
    print(_counts_line(Counts(**{name: table[name] for name in asdict(Counts())})))
    listed = table.get("users", ())
    for entry in listed[:50]:
        print(f"  {entry['user']}: {_counts_line(Counts(**{k: v for k, v in entry.items() if k != 'user'}))}")
    if len(listed) > 50:
        print(f"  ... and {len(listed) - 50:,} more; `nightmill status USER` shows one")
    for source in table.get("sources", ()):
        trouble = f"{source['reason']}: {printable(source['detail'])}" if source["reason"] else "well"
        print(f"  {printable(source['uri'])}: {trouble}")
        if source["held_removals"]:
            held = source["held_removals"]
            print(f"    {held:,} items vanished at once; another run, or --accept-removals, removes them")
    last = table["last_run"]
    if last is not None:
        began = datetime.fromtimestamp(last["began"]).strftime("%Y-%m-%d %H:%M")
        ended = "not ended" if last["ended"] is None else f"exit code {last['exit_code']}"
        print(f"last run: {last['kind']} {began}, {ended}")
    sandbox = table["sandbox"]
    held = "nothing (NIGHTMILL_SANDBOX = off)" if sandbox["mode"] == "off" else sandbox["says"]
    print(f"workers are confined by: {held}")
    memory = table["memory"]
    limit, available = format_size(memory["limit_bytes"]), format_size(memory["available_bytes"])
    print(f"memory for all of them: {limit} ({printable(memory['source'], 200)}); {available} are available")
    if table["scheduler"] is None:
        print("scheduler: not running (it starts with the next run)")
    else:
        _print_scheduler(table["scheduler"])


def _print_scheduler(statistics: Mapping[str, Any]) -> None:
    """Who holds what and why others wait: fields of ports.DeskStats."""
    waiting, backlog = sum(statistics["waiting"].values()), sum(statistics["backlog"].values())
    print(
        f"scheduler: {statistics['active_workers']} of {statistics['max_total_workers']} workers busy "
        f"({statistics['max_workers_per_user']} at most for a user), {waiting:,} units wait for a token, "
        f"{backlog:,} items are to be done, {statistics['sessions']} coordinators"
    )
    scaled = f", because of {_SCALED[statistics['scaled_by']]}" if statistics["scaled_by"] else ""
    print(f"  cores: bulk work may use {statistics['cpu_target']} of {statistics['cpu_limit']}{scaled}")
    reserved, limit, used, taken = (
        f"{statistics[f'memory_{name}_bytes'] // 10**6:,}" for name in ("reserved", "limit", "used", "taken")
    )
    print(f"  memory: {reserved} of {limit} MB are promised to units")
    source = printable(statistics["memory_source"], 200)
    print(f"  memory in use: {used} MB, {taken} of them not by units ({source})")
    if statistics["memory_closed"]:
        print("    so much that nothing starts beside what runs")
    if statistics["memory_stopped"]:
        print(f"    {statistics['memory_stopped']:,} units were stopped so far, because it ran out")
    if statistics["user_workers"]:
        busiest = sorted(statistics["user_workers"].items(), key=lambda pair: (-pair[1], pair[0]))
        more = f", and {len(busiest) - 10:,} more users" if len(busiest) > 10 else ""
        print("  busy: " + ", ".join(f"{printable(user, 100)} {count}" for user, count in busiest[:10]) + more)
    for why, users in sorted(statistics["reasons"].items()):
        print(f"  {users:,} users wait for {WAITS.get(why, why)}")
    for user, status in sorted(statistics["user_status"].items())[:20]:
        said = ", ".join(f"{name} {printable(str(value), 200)}" for name, value in status.items() if value is not None)
        print(f"  {printable(user, 100)}: {said}")


def _failures_list(settings: Settings, given: argparse.Namespace) -> int:
    from engine.ports import SourceRecord

    states = (ItemState.FAILED, ItemState.QUARANTINED) + ((ItemState.SKIPPED,) if given.skipped else ())
    reason = Reason(given.reason) if given.reason else None
    if reason is not None and CATALOGUE[reason].skip:
        states = (*states, ItemState.SKIPPED)
    items: list[ItemRecord] = []
    sources: list[SourceRecord] = []
    with _ledger(settings) as ledger:
        if ledger is not None:
            user = _known_user(ledger, given.user)
            items = ledger.failures(user=user, reason=reason, since=given.since, states=states)
            users = [user] if user is not None else [record.name for record in ledger.users()]
            sources = [
                source
                for name in users
                for source in ledger.sources(name)
                if source.reason is not None and reason in (None, source.reason) and given.since is None
            ]
    if given.json:
        _print_json(
            {
                "sources": [{"user": s.user, "uri": s.uri, "reason": s.reason, "detail": s.detail} for s in sources],
                "failures": [_failure_entry(item) for item in items],
            }
        )
        return 0
    for source in sources:
        print(f"source {printable(source.uri)} of {source.user}: {source.reason}: {printable(source.detail)}")
    for item in items:
        detail = f" ({printable(item.detail, 300)})" if item.detail else ""
        print(f"{item.id}  {item.user}  {printable(item.path, 300)}: {item.state.value}, {item.reason}{detail}")
    if not items and not sources:
        print("nothing failed")
    return 0


def _failure_entry(item: ItemRecord) -> dict[str, Any]:
    return {
        "item": item.id,
        "user": item.user,
        "path": item.path,
        "kind": item.kind.value,
        "state": item.state.value,
        "reason": item.reason,
        "detail": item.detail,
        "attempts": item.attempts,
        "type": item.media_type,
    }


def _failures_explain(settings: Settings, given: argparse.Namespace) -> int:
    with _ledger(settings) as ledger:
        user = _known_user(ledger, given.user) if ledger else None
        found = ledger.find_items(_readable(given.item)[:_NAME_CHARS], user) if ledger else []
        if not found:
            raise UsageError(f"no item is called {given.item!r}; `nightmill failures list` names those that failed")
        exact = [item for item in found if str(item.id) == given.item or item.path == given.item]
        chosen = exact or found
        attempts = {item.id: ledger.attempts(item.id) for item in chosen[:20]} if ledger else {}
    if given.json:
        entries = [
            {
                **_failure_entry(item),
                "meaning": CATALOGUE[item.reason].meaning if item.reason else "",
                "way_out": CATALOGUE[item.reason].way_out if item.reason else "",
                "tried": [asdict(attempt) for attempt in attempts.get(item.id, ())],
            }
            for item in chosen[:20]
        ]
        _print_json({"items": entries})
        return 0
    for item in chosen[:20]:
        print(f"item {item.id} of {item.user}: {printable(item.path)}")
        print(f"  state: {item.state.value}{f', {item.reason}' if item.reason else ''}")
        if item.detail:
            print(f"  found: {printable(item.detail)}")
        if item.reason:
            print(f"  meaning: {CATALOGUE[item.reason].meaning}\n  way out: {CATALOGUE[item.reason].way_out}")
        for attempt in attempts.get(item.id, ()):
            when = datetime.fromtimestamp(attempt.started).strftime("%Y-%m-%d %H:%M:%S")
            part = f" {attempt.part}" if attempt.part else ""
            outcome = "well" if attempt.failure is None else f"{attempt.failure.reason}: {attempt.failure.detail}"
            print(
                f"  {when} {attempt.stage}{part}: {printable(outcome)} ({attempt.seconds:.2f} s, "
                f"{attempt.cpu_seconds:.2f} CPU s, {attempt.peak_bytes // 2**20} MiB)"
            )
    if len(chosen) > 20:
        print(f"... and {len(chosen) - 20} more; say more of the path")
    return 0


def _failures_retry(settings: Settings, given: argparse.Namespace) -> int:
    with _ledger(settings) as ledger:
        count = 0
        if ledger is not None:
            reasons = (Reason(given.reason),) if given.reason else ()
            user = _known_user(ledger, given.user)
            count = ledger.requeue(user, reasons=reasons, states=(ItemState.FAILED, ItemState.QUARANTINED))
    if given.json:
        _print_json({"requeued": count})
    else:
        print(f"{count:,} items will be tried again by the next run")
    return 0


# --- the machine -----------------------------------------------------------------------------------------------------


def _scheduler_run(settings: Settings, given: argparse.Namespace) -> int:
    import math

    from engine import guards
    from engine.policy.tokens import Limits
    from engine.scheduler import EXIT_LOST_ELECTION, run_scheduler

    limits = Limits(
        max_total_workers=settings.max_total_workers,
        max_workers_per_user=settings.max_workers_per_user,
        cpu_limit=settings.cpu_limit or guards.cpu_limit(),
        memory_limit_bytes=settings.memory_limit_bytes or guards.machine_limit(),
    )
    scaling = settings.scaling == "auto"
    code = run_scheduler(settings.data_dir, limits, idle_seconds=math.inf, scaling=scaling)
    if code == EXIT_LOST_ELECTION:
        raise CannotRunError(f"a scheduler of {settings.data_dir} runs already; `nightmill scheduler stop` ends it")
    return code


def _scheduler_status(settings: Settings, given: argparse.Namespace) -> int:
    from engine.desk import find_statistics

    statistics = find_statistics(settings.data_dir)
    if given.json:
        _print_json({"running": statistics is not None, "statistics": asdict(statistics) if statistics else None})
    elif statistics is None:
        print("not running; a run starts it when it is needed")
    else:
        _print_scheduler(asdict(statistics))
    return 0


def _scheduler_stop(settings: Settings, given: argparse.Namespace) -> int:
    from engine.desk import stop_scheduler

    stopped = stop_scheduler(settings.data_dir)
    if given.json:
        _print_json({"stopped": stopped})
    else:
        print("stopped" if stopped else "not running")
    return 0


def _prune(settings: Settings, given: argparse.Namespace) -> int:
    from engine.prune import prune

    with _ledger(settings) as ledger:
        done = prune(settings, ledger, time.time(), dry_run=given.dry_run)
    if given.json:
        _print_json({"dry_run": given.dry_run, **asdict(done)})
        return 0
    went = "would go" if given.dry_run else "went"
    print(f"history older than {settings.keep_days} days: {done.attempts:,} attempts and {done.runs:,} runs {went}")
    print(
        f"left by dead processes: {_number(done.spools, 'spool')} of {format_size(done.spool_bytes)} and "
        f"{_number(done.sessions, 'session')} {went}"
    )
    empty = "are empty in the ledger" if given.dry_run else "of the ledger's file were given back"
    print(f"logs: {format_size(done.log_bytes)} {went}; {format_size(done.ledger_bytes)} {empty}")
    return 0


def _show_settings(settings: Settings, given: argparse.Namespace) -> int:
    rows = settings.describe()
    if given.json:
        _print_json({"settings": [asdict(row) for row in rows]})
        return 0
    for row in rows:
        print(f"{row.key} = {row.value}  ({row.origin})\n    {row.meaning}")
    return 0


def _doctor(settings: Settings, given: argparse.Namespace) -> int:
    from engine.doctor import examine

    checks = examine(settings, os.environ)
    if given.json:
        _print_json({"checks": [asdict(check) for check in checks]})
    else:
        words = {True: "ok", None: "note", False: "MISSING"}
        for check in checks:
            print(f"{words[check.ok]:8}{check.name}: {printable(check.found)}")
            if check.ok is not True and check.way_out:
                print(f"        {printable(check.way_out)}")
    return CannotRunError.exit_code if any(check.ok is False for check in checks) else 0


def _completion(settings: Settings, given: argparse.Namespace) -> int:
    import shtab

    print(shtab.complete(make_parser(), given.shell))
    return 0


# --- how -------------------------------------------------------------------------------------------------------------


class _ledger:  # noqa: N801 - reads as the verb it is: `with _ledger(settings) as ledger`
    """The ledger of the data directory; None where there is none yet, unless it is to be made."""

    def __init__(self, settings: Settings, *, make: bool = False) -> None:
        self._settings, self._make = settings, make
        self._ledger: SqlLedger | None = None

    def __enter__(self) -> SqlLedger | None:
        place = self._settings.data_dir / LEDGER_FILE
        if self._make or place.exists():
            from engine.clock import SystemClock
            from engine.ledger import open_ledger

            self._ledger = open_ledger(place, SystemClock())
        return self._ledger

    def __exit__(self, *_: object) -> None:
        if self._ledger is not None:
            self._ledger.close()


def _readable(words: str) -> str:
    """The words, if they can be compared with anything: bytes that are no UTF-8 stand for no text."""
    try:
        words.encode("utf-8")
    except UnicodeEncodeError:
        raise UsageError(f"{printable(words, 100)!r} is not UTF-8; write it in the encoding of this terminal") from None
    return words


def _require_user(ledger: SqlLedger | None, user: UserId) -> None:
    if ledger is None or ledger.find_user(user) is None:
        raise UsageError(f"there is no user {user!r}; `nightmill users list` names them")


def _known_user(ledger: SqlLedger, name: str | None) -> UserId | None:
    if name is not None:
        _require_user(ledger, UserId(name))
    return None if name is None else UserId(name)


def _counts_line(counts: Counts) -> str:
    line = (
        f"{counts.found:,} found = {counts.indexed:,} indexed + {counts.skipped:,} skipped + {counts.failed:,} failed"
    )
    if counts.pending:
        line += f" + {counts.pending:,} pending"
    if counts.attachments:
        parts = {
            "indexed": counts.attachments_indexed,
            "skipped": counts.attachments_skipped,
            "failed": counts.attachments_failed,
            "pending": counts.attachments_pending,
        }
        told = ", ".join(f"{number:,} {state}" for state, number in parts.items() if number)
        line += f"; {_number(counts.attachments, 'attachment')}: {told}"
    return line


def _number(count: int, thing: str) -> str:
    return f"{count:,} {thing}" if count == 1 else f"{count:,} {thing}s"


def _duration(seconds: float) -> str:
    if seconds < 100:
        return f"{seconds:.1f} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 120 else f"{minutes // 60} h {minutes % 60} min"


def _iso(seconds: float | None) -> str | None:
    """None also for a moment that no calendar of ours holds: dates in mails are strangers' words."""
    try:
        return None if seconds is None else datetime.fromtimestamp(seconds, UTC).isoformat()
    except (ValueError, OverflowError, OSError):
        return None


def _print_json(table: Mapping[str, Any] | Iterable[tuple[str, Any]]) -> None:
    print(json.dumps({"schema_version": SCHEMA_VERSION, **dict(table)}, ensure_ascii=False, default=str))
