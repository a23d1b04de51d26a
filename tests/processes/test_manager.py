"""The Python API as programs use it: many threads, several processes, and whoever is killed, no token is lost."""

from __future__ import annotations

import fcntl
import json
import logging
import os
import pickle
import signal
import subprocess
import sys
import textwrap
import threading
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import pytest

import engine
from engine import ItemFailure, ThreadPoolManager, UsageError, get_thread_pool_manager
from engine.desk import stop_scheduler
from engine.errors import CannotRunError, SettingsError
from engine.processes import is_alive, start_time
from engine.settings import Settings, load_settings
from tests.mill import killed_at_the_end, wait_until

#: Before each script: what its process does is seen by a file in its folder, and it waits for files of ours.
PRELUDE = """
import fcntl, os, sys, time
from pathlib import Path
from engine import get_thread_pool_manager, process_parallel, get_stats

PLACE = Path(os.environ["PLACE"])

def say(name, text=""):
    draft = PLACE / f"{name}.draft{os.getpid()}"
    draft.write_text(str(text))
    draft.rename(PLACE / name)

def wait_for(name):
    while not (PLACE / name).exists():
        time.sleep(0.005)
"""


def settings_for(place: Path, **values: str) -> Settings:
    """total 4, of which one user may have all; cores enough that no test waits for them."""
    table = {
        "NIGHTMILL_DATA_DIR": str(place / "data"),
        "MAX_TOTAL_WORKERS": "4",
        "MAX_WORKERS_PER_USER": "4",
        "NIGHTMILL_CPU_LIMIT": "4",
        "NIGHTMILL_SCALING": "off",
    }
    return load_settings({**table, **values}, dotenv=None)


@pytest.fixture
def place(tmp_path: Path) -> Iterator[Path]:
    """A folder whose data directory's scheduler is ended after the test."""
    yield tmp_path
    with suppress(CannotRunError):
        stop_scheduler(tmp_path / "data")


@pytest.fixture
def manager(place: Path) -> Iterator[ThreadPoolManager]:
    """This process's manager for that folder: total 4, three of them for bulk work."""
    with get_thread_pool_manager(settings_for(place)) as made:
        yield made


def environ_for(place: Path, **values: str) -> dict[str, str]:
    kept = {k: v for k, v in os.environ.items() if not k.startswith(("NIGHTMILL_", "MAX_", "DEBUG_MODE"))}
    table = {
        "NIGHTMILL_DATA_DIR": str(place / "data"),
        "MAX_TOTAL_WORKERS": "4",
        "MAX_WORKERS_PER_USER": "4",
        "NIGHTMILL_CPU_LIMIT": "4",
        "NIGHTMILL_SCALING": "off",
        "PLACE": str(place),
    }
    return {**kept, **table, **values}


def write_script(place: Path, text: str, name: str = "script.py") -> Path:
    script = place / name
    script.write_text(PRELUDE + textwrap.dedent(text))
    return script


@contextmanager
def running(place: Path, text: str, name: str = "script.py", **values: str) -> Iterator[subprocess.Popen[str]]:
    """A program of its own, with the real script file, ended at the end of the block."""
    process = subprocess.Popen(
        [sys.executable, str(write_script(place, text, name))],
        cwd=place,
        env=environ_for(place, **values),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    with killed_at_the_end(process):
        yield process


def finished(place: Path, text: str, *, code: int = 0, **values: str) -> tuple[str, str]:
    """What a program printed and complained, after it ended with `code`."""
    with running(place, text, **values) as process:
        out, err = process.communicate(timeout=120)
    assert process.returncode == code, err
    return out, err


def appears(place: Path, name: str) -> str:
    """Wait for a file that a program writes; answers with its text."""
    return wait_until(lambda: (place / name).exists() and ((place / name).read_text() or " "), f"the file {name}")


def in_thread(what: Callable[[], Any]) -> threading.Thread:
    thread = threading.Thread(target=what, daemon=True)
    thread.start()
    return thread


# --- acquire and release ---


def test_a_token_is_taken_counted_and_given_back(manager: ThreadPoolManager) -> None:
    """What is acquired stands in the statistics under its user, until it is released."""
    assert manager.acquire_worker("ann")
    assert manager.acquire_worker("bob", timeout=5)
    stats = manager.get_stats()
    assert (stats["active_workers"], stats["user_workers"]) == (2, {"ann": 1, "bob": 1})
    assert stats["max_total_workers"] == 4
    manager.release_worker("ann")
    with manager.worker("ann"):
        assert manager.get_stats()["user_workers"] == {"ann": 1, "bob": 1}
    manager.release_worker("bob")
    assert manager.get_stats()["active_workers"] == 0


def test_the_statistics_are_plain_json(manager: ThreadPoolManager) -> None:
    """Everything that get_stats returns can be written as JSON and read again unchanged."""
    manager.acquire_worker("ann")
    stats = manager.get_stats()
    assert json.loads(json.dumps(stats)) == stats
    assert {"active_workers", "max_total_workers", "user_workers", "waiting", "memory", "rates"} <= set(stats)


def test_a_wait_ends_with_the_time_out(manager: ThreadPoolManager) -> None:
    """When all are out, acquire says no after its time-out, and its ask no longer stands."""
    for _ in range(3):
        assert manager.acquire_worker("ann")
    for timeout in (0, 0.05, -1):
        assert manager.acquire_worker("ann", timeout=timeout) is False
    assert manager.acquire_worker("ann", timeout=0, interactive=True), "the token kept for those who wait"
    stats = manager.get_stats()
    assert (stats["active_workers"], stats["waiting"]) == (4, {})


def test_a_waiting_thread_is_served_when_another_releases(manager: ThreadPoolManager) -> None:
    """Whoever releases, the one that waits goes on, and nobody else is woken with nothing."""
    for _ in range(3):
        manager.acquire_worker("ann")
    served = threading.Event()
    waiter = in_thread(lambda: manager.acquire_worker("bob") and served.set())
    wait_until(lambda: manager.get_stats()["waiting"] == {"bob": 1}, "bob to wait")
    assert not served.is_set()
    manager.release_worker("ann")
    waiter.join(30)
    assert served.is_set()
    assert manager.get_stats()["user_workers"] == {"ann": 2, "bob": 1}


def test_a_surplus_release_is_a_warning_and_changes_nothing(manager: ThreadPoolManager) -> None:
    """More releases than tokens: the tokens of others, and one's own that come later, stay what they are."""
    manager.acquire_worker("bob")
    with pytest.warns(RuntimeWarning, match="holds no worker of 'ann'"):
        manager.release_worker("ann")
    manager.acquire_worker("ann")
    manager.release_worker("ann")
    with pytest.warns(RuntimeWarning):
        manager.release_worker("ann")
    assert manager.get_stats()["user_workers"] == {"bob": 1}


@pytest.mark.parametrize(
    ("call", "says"),
    [
        (lambda m: m.acquire_worker(""), "user_id = ''"),
        (lambda m: m.acquire_worker(7), "user_id = 7"),
        (lambda m: m.acquire_worker("ann", timeout="soon"), "timeout = 'soon'"),
        (lambda m: m.acquire_worker("ann", timeout=float("nan")), "timeout = nan"),
        (lambda m: m.process_parallel("ann", [], str, 0), "max_workers = 0"),
        (lambda m: m.process_parallel("ann", [1], None), "process_func = None"),
        (lambda m: m.update_user_status("ann", "busy", 101), "progress = 101"),
        (lambda m: m.update_user_status("ann", "busy", float("nan")), "progress = nan"),
        (lambda m: m.update_user_status("ann", None), "status = None"),
    ],
)
def test_words_that_make_no_sense_are_refused(
    manager: ThreadPoolManager, call: Callable[[ThreadPoolManager], object], says: str
) -> None:
    """The error names the argument and what it must be; nothing has happened."""
    with pytest.raises(UsageError, match=says):
        call(manager)
    assert manager.get_stats()["active_workers"] == 0


def test_fifty_threads_never_hold_more_than_there_is(place: Path) -> None:
    """50 threads take and give back as fast as they can, half of them interactive: never more than 3 at once."""
    total, rounds = 3, 12
    with get_thread_pool_manager(settings_for(place, MAX_TOTAL_WORKERS="3", MAX_WORKERS_PER_USER="2")) as manager:
        slots = threading.Semaphore(total)
        by_user = {f"user{n}": threading.Semaphore(2) for n in range(5)}
        wrong: list[str] = []

        def hammer(number: int) -> None:
            user = f"user{number % 5}"
            for _ in range(rounds):
                manager.acquire_worker(user, interactive=number % 2 == 0)
                if not slots.acquire(blocking=False):
                    wrong.append("more than 3 in all")
                    return
                if not by_user[user].acquire(blocking=False):
                    wrong.append(f"more than 2 of {user}")
                    return
                by_user[user].release()
                slots.release()
                manager.release_worker(user)

        threads = [in_thread(lambda n=n: hammer(n)) for n in range(50)]  # type: ignore[misc]
        for thread in threads:
            thread.join(120)
        assert not wrong
        assert not any(thread.is_alive() for thread in threads)
        stats = manager.get_stats()
        assert (stats["active_workers"], stats["waiting"]) == (0, {})


def test_time_outs_that_race_with_grants_lose_nothing(place: Path) -> None:
    """Time-outs as short as a grant takes: whatever the outcome of each, in the end nothing is out or waiting."""
    with get_thread_pool_manager(settings_for(place, MAX_TOTAL_WORKERS="2")) as manager:
        outcomes: list[bool] = []

        def race(number: int) -> None:
            for n in range(60):
                got = manager.acquire_worker("ann", timeout=(n % 12) * 0.0004)
                outcomes.append(got)
                if got:
                    manager.release_worker("ann")

        threads = [in_thread(lambda n=n: race(n)) for n in range(8)]  # type: ignore[misc]
        for thread in threads:
            thread.join(120)
        assert len(outcomes) == 8 * 60
        assert {True, False} == set(outcomes)
        wait_until(lambda: manager.get_stats()["active_workers"] == 0, "every token to be back")
        assert manager.get_stats()["waiting"] == {}


def test_a_status_is_seen_by_every_process(place: Path, manager: ThreadPoolManager) -> None:
    """What one process tells of a user stands in the statistics of all, until its next word or its end."""
    program = """
    from engine import update_user_status
    update_user_status("ann", "indexing", 40, "12 of 30")
    update_user_status("bob", "done")
    update_user_status("bob", "waiting")
    say("told")
    wait_for("go")
    """
    with running(place, program) as teller:
        appears(place, "told")
        assert manager.get_stats()["user_status"] == {
            "ann": {"status": "indexing", "progress": 40, "message": "12 of 30"},
            "bob": {"status": "waiting", "progress": None, "message": ""},
        }
        (place / "go").touch()
        assert teller.wait(60) == 0
    wait_until(lambda: manager.get_stats()["user_status"] == {}, "the status to go with its process")
    with pytest.raises(UsageError, match="too long"):
        manager.update_user_status("ann", "indexing", message="x" * 5000)
    assert manager.acquire_worker("ann", timeout=5)


def status_of(place: Path, *words: str) -> str:
    """What `nightmill ...` prints about that folder."""
    asked = subprocess.run(
        [sys.executable, "-m", "engine", *words],
        cwd=place,
        env=environ_for(place),
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
    )
    return asked.stdout


def test_status_tells_of_a_product_that_has_no_run_yet(place: Path, manager: ThreadPoolManager) -> None:
    """Where only the Python API was used there is no ledger; what is busy is shown all the same."""
    assert manager.acquire_worker("ann", timeout=5)
    assert "1 of 4 workers busy" in status_of(place, "status")
    assert json.loads(status_of(place, "status", "--json"))["scheduler"]["user_workers"] == {"ann": 1}


def test_a_name_writes_nothing_of_its_own_on_a_terminal(place: Path, manager: ThreadPoolManager) -> None:
    """A product's names of users may be anything: in `status` they are one word of one line."""
    name = "ann\n  busy: bob 99\x1b[31m"
    assert manager.acquire_worker(name, timeout=5)
    manager.update_user_status(name, "indexing")
    shown = status_of(place, "scheduler", "status")
    assert "\x1b" not in shown
    speaking = [line for line in shown.splitlines() if "ann" in line or "bob" in line]
    assert len(speaking) == 2
    assert "busy: ann   busy: bob 99 [31m 1" in speaking[0]
    assert "ann" in speaking[1]


def test_every_grant_and_every_wait_is_in_the_log(manager: ThreadPoolManager, caplog: pytest.LogCaptureFixture) -> None:
    """Each process says for itself, at debug, what it got and waited for, whoever has started the scheduler."""
    caplog.set_level(logging.DEBUG, "engine.lending")
    for _ in range(3):
        assert manager.acquire_worker("ann", timeout=5)
    assert not manager.acquire_worker("bob", timeout=0)
    said = [record.getMessage() for record in caplog.records]
    assert sum(line.startswith("lease ") and "'ann', a bulk api token" in line for line in said) == 3
    assert [line.split(",")[0] for line in said[3:]] == ["wait: 'bob'", "no lease: 'bob'"]


def test_those_who_wait_live_through_a_killed_scheduler(place: Path, manager: ThreadPoolManager) -> None:
    """kill -9 of the scheduler: what is held stays held, and whoever waits is served by the next one."""
    for _ in range(3):
        manager.acquire_worker("ann")
    served = threading.Event()
    waiter = in_thread(lambda: manager.acquire_worker("bob") and served.set())
    wait_until(lambda: manager.get_stats()["waiting"] == {"bob": 1}, "bob to wait")
    lender = manager._lender
    assert lender is not None
    os.kill(lender.desk._scheduler[0], signal.SIGKILL)
    manager.release_worker("ann")
    waiter.join(60)
    assert served.is_set()
    assert manager.get_stats()["user_workers"] == {"ann": 2, "bob": 1}


def test_a_grant_that_comes_as_the_wait_ends_goes_back(place: Path) -> None:
    """Another thread has heard of the grant, and before it hands it over the waiter gives up: no token is lost."""
    with get_thread_pool_manager(settings_for(place, MAX_TOTAL_WORKERS="1")) as manager:
        lender = manager._lender
        assert lender is not None
        exchange, gone = lender.desk.exchange, threading.Event()

        def slow_exchange(**what: Any) -> Any:
            answer = exchange(**what)
            if what.get("returns") and answer.grants:
                assert gone.wait(60)
            return answer

        manager.acquire_worker("ann")
        outcomes: list[bool] = []

        def wait() -> None:
            outcomes.append(manager.acquire_worker("bob", timeout=1.0))
            gone.set()

        waiter = in_thread(wait)
        wait_until(lambda: manager.get_stats()["waiting"] == {"bob": 1}, "bob to wait")
        lender.desk.exchange = slow_exchange  # type: ignore[method-assign]
        manager.release_worker("ann")
        waiter.join(60)
        assert outcomes == [False]
        assert manager.get_stats()["active_workers"] == 0


# --- the process's manager ---


def test_there_is_one_manager_for_a_data_directory(place: Path) -> None:
    """Threads that ask at once get the same one; after its close the next call makes another."""
    settings = settings_for(place)
    found: list[ThreadPoolManager] = []
    threads = [in_thread(lambda: found.append(get_thread_pool_manager(settings))) for _ in range(8)]
    for thread in threads:
        thread.join(60)
    assert len(found) == 8
    assert len({id(one) for one in found}) == 1
    assert found[0].get_stats()["sessions"] == 1
    found[0].close()
    found[0].close()
    with pytest.raises(UsageError, match="closed"):
        found[0].acquire_worker("ann")
    with get_thread_pool_manager(settings) as another:
        assert another is not found[0]


def test_a_close_ends_those_who_wait(place: Path) -> None:
    """A thread that waits for a token of a manager that is closed hears so; what was out is back."""
    manager = get_thread_pool_manager(settings_for(place, MAX_TOTAL_WORKERS="1"))
    manager.acquire_worker("ann")
    said: list[str] = []

    def wait() -> None:
        try:
            manager.acquire_worker("bob")
        except UsageError as error:
            said.append(str(error))

    waiter = in_thread(wait)
    wait_until(lambda: manager.get_stats()["waiting"] == {"bob": 1}, "bob to wait")
    manager.close()
    waiter.join(30)
    assert said
    assert "closed" in said[0]
    with get_thread_pool_manager(settings_for(place)) as another:
        assert another.get_stats()["active_workers"] == 0


def test_a_forked_child_has_a_desk_of_its_own(place: Path) -> None:
    """The child of a fork holds nothing of its parent's, cannot return it, and its end takes nothing away."""
    out, _ = finished(
        place,
        """
        import warnings
        manager = get_thread_pool_manager()
        manager.acquire_worker("ann")
        child = os.fork()
        if child == 0:
            warnings.simplefilter("error")
            try:
                manager.release_worker("ann")
            except RuntimeWarning:
                print("child holds nothing", flush=True)
            get_thread_pool_manager().acquire_worker("ann")
            print(get_stats()["user_workers"], get_stats()["sessions"], flush=True)
            sys.exit(0)
        assert os.waitpid(child, 0)[1] == 0
        while get_stats()["sessions"] > 1:
            time.sleep(0.005)
        print(get_stats()["user_workers"])
        manager.release_worker("ann")
        print(get_stats()["user_workers"])
        """,
    )
    assert out.splitlines() == ["child holds nothing", "{'ann': 2} 2", "{'ann': 1}", "{}"]


def test_settings_come_as_on_the_command_line(place: Path) -> None:
    """From the environment and from `.env`; all that is wrong in one error."""
    (place / ".env").write_text("MAX_TOTAL_WORKERS=7\n")
    program = "print(get_stats()['max_total_workers'])"
    assert finished(place, program, MAX_TOTAL_WORKERS="")[0] == "7\n"
    _, err = finished(place, program, code=1, MAX_WORKERS_PER_USER="none")
    assert "engine.errors.SettingsError" in err
    assert "MAX_WORKERS_PER_USER = none" in err
    assert engine.SettingsError is SettingsError


def test_an_unusable_data_directory_is_an_error_of_the_engine(place: Path) -> None:
    """Where the data directory cannot be made, the error says so and names the setting."""
    (place / "file").touch()
    with pytest.raises(CannotRunError, match="NIGHTMILL_DATA_DIR"):
        get_thread_pool_manager(settings_for(place / "file"))


# --- who is killed ---

HOLDER = """
manager = get_thread_pool_manager()
for _ in range(3):
    manager.acquire_worker("ann")
say("held")
wait_for("never")
"""


def test_the_tokens_of_a_killed_holder_come_back(place: Path, manager: ThreadPoolManager) -> None:
    """kill -9 of a process that holds all tokens: they go to those who wait."""
    with running(place, HOLDER) as holder:
        appears(place, "held")
        assert manager.acquire_worker("bob", timeout=0) is False
        holder.kill()
        assert manager.acquire_worker("bob", timeout=60)
    wait_until(lambda: manager.get_stats()["user_workers"] == {"bob": 1}, "the others to be back")


def test_no_token_is_lost_to_a_killed_waiter(place: Path, manager: ThreadPoolManager) -> None:
    """kill -9 of a process that waits: the tokens that come free afterwards all go to others."""
    for _ in range(3):
        manager.acquire_worker("ann")
    with running(place, "get_thread_pool_manager().acquire_worker('bob')") as waiter:
        wait_until(lambda: manager.get_stats()["waiting"] == {"bob": 1}, "bob to wait")
        waiter.kill()
        waiter.wait()
        for _ in range(3):
            manager.release_worker("ann")
        for _ in range(3):
            assert manager.acquire_worker("cid", timeout=60)
    assert manager.get_stats()["user_workers"] == {"cid": 3}


def test_the_children_of_a_killed_caller_die_before_its_tokens_return(place: Path, manager: ThreadPoolManager) -> None:
    """kill -9 of a caller with busy processes: they and what they started are gone when a token is lent again."""
    program = """
    import subprocess
    def busy(item):
        helper = subprocess.Popen(["sleep", "600"])
        say(f"busy{item}", f"{os.getpid()} {helper.pid}")
        wait_for("never")
    process_parallel("ann", range(3), busy, 3, processes=True)
    """
    with running(place, program) as caller:
        pids = [int(word) for n in range(3) for word in appears(place, f"busy{n}").split()]
        born = [(pid, start_time(pid)) for pid in pids]
        assert manager.acquire_worker("bob", timeout=0) is False
        caller.kill()
        assert manager.acquire_worker("bob", timeout=60)
        assert not [pid for pid, started in born if is_alive(pid, started)]


def test_two_programs_together_keep_the_limit(place: Path, manager: ThreadPoolManager) -> None:
    """Two processes with more work than tokens: an item that runs holds one of 4 files' locks, and always finds one."""
    program = """
    slots = [os.open(PLACE / f"slot{n}", os.O_CREAT | os.O_RDWR) for n in range(4)]
    def hold(item):
        for n in range(4):
            descriptor = os.open(PLACE / f"slot{n}", os.O_CREAT | os.O_RDWR)
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                time.sleep(0.002)
                return n
            except BlockingIOError:
                continue
            finally:
                os.close(descriptor)
        raise RuntimeError("more than 4 at once")
    say(f"ready{sys.argv[0][-4]}")
    wait_for("go")
    print(process_parallel(sys.argv[0][-4], range(150), hold, 6))
    """
    with running(place, program, "a.py") as one, running(place, program, "b.py") as two:
        appears(place, "readya")
        appears(place, "readyb")
        (place / "go").touch()
        for process in (one, two):
            out, err = process.communicate(timeout=120)
            assert process.returncode == 0, err
            assert out.count(",") == 149
            assert "more than 4" not in out
    wait_until(lambda: manager.get_stats()["active_workers"] == 0, "all tokens to be back")


def test_an_interruption_stops_and_returns_the_tokens(place: Path, manager: ThreadPoolManager) -> None:
    """Ctrl-C in process_parallel: nothing new begins, what runs in threads ends, all tokens are back."""
    program = """
    def item(n):
        say(f"began{n}")
        wait_for("go")
        return n
    def numbers():
        for n in range(100):
            yield n
    try:
        process_parallel("ann", numbers(), item, 2)
    except KeyboardInterrupt:
        print("interrupted", get_stats()["user_workers"], get_stats()["waiting"], flush=True)
        wait_for("end")
    """
    with running(place, program) as caller:
        appears(place, "began0")
        appears(place, "began1")
        caller.send_signal(signal.SIGINT)
        (place / "go").touch()
        assert caller.stdout is not None
        assert caller.stdout.readline() == "interrupted {} {}\n"
        assert not (place / "began50").exists()
        (place / "end").touch()
        assert caller.wait(60) == 0


def test_an_interruption_ends_the_processes(place: Path) -> None:
    """Ctrl-C in process mode does not wait for items: their processes are gone when the interruption arrives."""
    program = """
    def item(n):
        say(f"began{n}", os.getpid())
        wait_for("never")
    try:
        process_parallel("ann", range(100), item, 2, processes=True)
    except KeyboardInterrupt:
        print("interrupted", get_stats()["user_workers"], flush=True)
        wait_for("end")
    """
    with running(place, program) as caller:
        pids = [int(appears(place, f"began{n}")) for n in range(2)]
        born = [(pid, start_time(pid)) for pid in pids]
        caller.send_signal(signal.SIGINT)
        assert caller.stdout is not None
        assert caller.stdout.readline() == "interrupted {}\n"
        assert not [pid for pid, started in born if is_alive(pid, started)]
        (place / "end").touch()
        assert caller.wait(60) == 0


def test_an_interrupted_wait_leaves_no_ask(place: Path, manager: ThreadPoolManager) -> None:
    """Ctrl-C while acquire_worker waits: the ask is withdrawn, and the process goes on working."""
    for _ in range(3):
        manager.acquire_worker("ann")
    program = """
    manager = get_thread_pool_manager()
    try:
        manager.acquire_worker("bob")
    except KeyboardInterrupt:
        while get_stats()["waiting"]:
            time.sleep(0.005)
        print("nobody waits", flush=True)
    print(manager.acquire_worker("bob", timeout=60))
    """
    with running(place, program) as waiter:
        wait_until(lambda: manager.get_stats()["waiting"] == {"bob": 1}, "bob to wait")
        waiter.send_signal(signal.SIGINT)
        assert waiter.stdout is not None
        assert waiter.stdout.readline() == "nobody waits\n"
        manager.release_worker("ann")
        assert waiter.stdout.readline() == "True\n"


def test_a_storm_of_interruptions_loses_no_token(place: Path) -> None:
    """Ctrl-C at any moment of acquire and release, while other threads wait: in the end every token is back."""
    program = """
    import signal, threading, warnings
    manager = get_thread_pool_manager()
    ended = threading.Event()

    def interrupt():
        while not ended.is_set():
            os.kill(os.getpid(), signal.SIGINT)
            ended.wait(0.0013)

    def work():
        while not ended.is_set():
            with manager.worker("bob"):
                pass

    workers = [threading.Thread(target=work) for _ in range(3)]
    for worker in workers:
        worker.start()
    storm = threading.Thread(target=interrupt)
    hits = 0
    def once():
        manager.acquire_worker("ann")
        manager.release_worker("ann")
    def rounds():
        global hits
        while hits < 300:
            try:
                while True:
                    once()
            except KeyboardInterrupt:
                hits += 1
    started = False
    while hits < 300:
        try:
            if not started:
                started = True
                storm.start()
            rounds()
        except KeyboardInterrupt:
            hits += 1
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    ended.set()
    for thread in [storm, *workers]:
        thread.join(30)
        assert not thread.is_alive(), "a thread waits for ever"
    warnings.simplefilter("error")
    try:
        while True:
            manager.release_worker("ann")
    except RuntimeWarning:
        pass
    # What an interrupted thread left is tidied up by another.
    while get_stats()["active_workers"] or get_stats()["waiting"]:
        time.sleep(0.005)
    print("all is back")
    """
    out, err = finished(place, program, MAX_TOTAL_WORKERS="2", MAX_WORKERS_PER_USER="1")
    assert out == "all is back\n", err


# --- process_parallel, in threads ---


def test_results_stand_in_the_order_of_the_items(manager: ThreadPoolManager) -> None:
    """The first item ends last, and its result is first all the same."""
    last = threading.Event()

    def wait_or_set(item: int) -> int:
        if item == 0:
            assert last.wait(60)
        if item == 9:
            last.set()
        return item * item

    assert manager.process_parallel("ann", range(10), wait_or_set, 2) == [n * n for n in range(10)]
    assert manager.get_stats()["active_workers"] == 0


def test_an_item_that_raises_is_a_failure_in_its_place(manager: ThreadPoolManager) -> None:
    """Whatever is raised, even what ends programs: its item fails, with name, message and trace; the others go on."""

    class OddError(Exception):
        def __str__(self) -> str:
            raise RuntimeError

    def picky(item: int) -> int:
        match item:
            case 1:
                raise ValueError("not one")
            case 2:
                sys.exit(3)
            case 3:
                raise OddError
        return item

    results = manager.process_parallel("ann", range(5), picky)
    assert [results[0], results[4]] == [0, 4]
    failures = [result for result in results if isinstance(result, ItemFailure)]
    assert [(f.index, f.kind) for f in failures] == [(1, "ValueError"), (2, "SystemExit"), (3, "OddError")]
    assert failures[0].message == "not one"
    assert failures[0].traceback.splitlines()[-1] == "ValueError: not one"
    assert "parallel.py" not in failures[0].traceback


def test_an_endless_supply_is_taken_as_it_is_needed(manager: ThreadPoolManager) -> None:
    """Items are taken in the calling thread, a few ahead of those that run, never all of them."""
    taken, ahead = 0, []
    threads = set()

    def supply() -> Iterator[int]:
        nonlocal taken
        while taken < 300:
            threads.add(threading.current_thread())
            taken += 1
            yield taken

    done = 0
    lock = threading.Lock()

    def count(item: int) -> int:
        nonlocal done
        with lock:
            done += 1
            ahead.append(taken - done)
        return item

    assert manager.process_parallel("ann", supply(), count, 3) == list(range(1, 301))
    assert max(ahead) <= 6
    assert threads == {threading.current_thread()}


def test_a_supply_that_fails_ends_the_call(manager: ThreadPoolManager) -> None:
    """What iterating raises is the caller's to see; the tokens are back."""

    def supply() -> Iterator[int]:
        yield from range(5)
        raise OSError("the disk is gone")

    with pytest.raises(OSError, match="the disk is gone"):
        manager.process_parallel("ann", supply(), str)
    assert manager.get_stats()["active_workers"] == 0


def test_progress_is_told_once_for_each_item(manager: ThreadPoolManager, caplog: pytest.LogCaptureFixture) -> None:
    """In order, in the calling thread; a reporter that fails is logged, and the work goes on."""
    told: list[tuple[int, int | None]] = []

    def tell(done: int, total: int | None) -> None:
        assert threading.current_thread() is threading.main_thread()
        told.append((done, total))
        if done == 2:
            raise RuntimeError("the window is closed")

    assert manager.process_parallel("ann", range(20), str, 4, on_progress=tell) == [str(n) for n in range(20)]
    assert told == [(n + 1, 20) for n in range(20)]
    assert "the window is closed" in caplog.text
    told.clear()
    manager.process_parallel("ann", iter("abc"), str, on_progress=tell)
    assert told == [(1, None), (2, None), (3, None)]


def test_no_more_run_at_once_than_asked_for_and_lent(manager: ThreadPoolManager) -> None:
    """max_workers bounds one call, the desk all of them; threads are not made for tokens that are not there."""
    running_now, most, threads = 0, 0, set()
    lock = threading.Lock()

    def measure(item: int) -> None:
        nonlocal running_now, most
        with lock:
            running_now += 1
            most = max(most, running_now)
            threads.add(threading.current_thread())
        with lock:
            running_now -= 1

    manager.process_parallel("ann", range(200), measure, 2)
    assert most <= 2
    assert len(threads) <= 2
    threads.clear()
    manager.acquire_worker("bob")
    manager.acquire_worker("bob")
    manager.process_parallel("ann", range(50), measure, 30)
    assert len(threads) <= 2, "one works, and one waits for a token"


def test_an_empty_call_needs_no_token(manager: ThreadPoolManager) -> None:
    """No items, no threads, no tokens, and an empty list."""
    for _ in range(3):
        manager.acquire_worker("bob")
    assert manager.process_parallel("ann", [], str) == []
    assert manager.process_parallel("ann", [], str, processes=True) == []


# --- process_parallel, in processes ---


def test_a_plain_script_may_use_processes(place: Path) -> None:
    """No `if __name__ == "__main__"`: it is not run again, its globals and classes go along, prints are seen."""
    out, err = finished(
        place,
        """
        import math
        from dataclasses import dataclass
        print("the script runs", flush=True)
        FACTOR = 3
        @dataclass
        class Point:
            x: int
            y: float
            def norm(self):
                return scale(math.hypot(self.x, self.y))
        def scale(number):
            return FACTOR * number
        def process_item(point):
            print(f"seen {point.x}\\n", end="")
            assert __name__ == "__main__" and os.getpid() != PARENT
            return Point(point.x, point.norm())
        PARENT = os.getpid()
        results = process_parallel("ann", [Point(n, 0.0) for n in range(4)], process_item, 2, processes=True)
        print(results == [Point(n, 3.0 * n) for n in range(4)], flush=True)
        print(process_parallel("ann", [1, 2], lambda n: (lambda m: m + n * FACTOR), 1, processes=True)[1](10))
        """,
    )
    lines = out.splitlines()
    assert lines.count("the script runs") == 1
    assert sorted(line for line in lines if "seen" in line) == [f"seen {n}" for n in range(4)]
    assert lines[-2:] == ["True", "16"], err


def test_a_function_that_uses_the_manager_has_one_in_its_process(place: Path) -> None:
    """A manager that a sent function names is, in the other process, that process's own."""
    out, _ = finished(
        place,
        """
        manager = get_thread_pool_manager()
        def nested(item):
            with manager.worker("bob"):
                return sorted(manager.get_stats()["user_workers"].items())
        print(manager.process_parallel("ann", [1], nested, processes=True))
        """,
    )
    assert out == "[[('ann', 1), ('bob', 1)]]\n"


def ends_badly(item: int) -> object:
    match item:
        case 1:
            os.kill(os.getpid(), signal.SIGKILL)
        case 2:
            os._exit(7)
        case 3:
            os.kill(os.getpid(), signal.SIGSEGV)
        case 4:
            raise ValueError("four")
        case 5:
            return (n for n in range(3))
        case 6:
            sys.exit("six")
    return os.getpid()


def test_a_worker_that_dies_costs_its_item_alone(manager: ThreadPoolManager) -> None:
    """Killed, ended, crashed, raised or unable to say: each is its item's failure, the others are done."""
    results = manager.process_parallel("ann", range(12), ends_badly, 2, processes=True)
    failures = {f.index: f for f in results if isinstance(f, ItemFailure)}
    assert {index: f.kind for index, f in failures.items()} == {
        1: "WorkerDied",
        2: "WorkerDied",
        3: "WorkerDied",
        4: "ValueError",
        5: "TypeError",
        6: "SystemExit",
    }
    assert failures[1].message == "its worker process was ended by SIGKILL"
    assert failures[2].message == "its worker process ended with exit code 7"
    assert failures[3].message == "its worker process was ended by SIGSEGV"
    assert "cannot pickle" in failures[5].message
    assert "ends_badly" in failures[4].traceback
    workers = {results[n] for n in (0, 7, 8, 9, 10, 11)}
    assert os.getpid() not in workers
    assert not [pid for pid in workers if isinstance(pid, int) and Path(f"/proc/{pid}").exists()]
    stats = manager.get_stats()
    assert (stats["active_workers"], stats["waiting"]) == (0, {})


def test_a_worker_killed_by_a_stranger_costs_its_item_alone(place: Path, manager: ThreadPoolManager) -> None:
    """kill -9 from outside while an item runs, though a grandchild keeps the pipe open: that item, and no other."""

    def item(number: int) -> int:
        if number == 2:
            helper = subprocess.Popen(["sleep", "600"], close_fds=False)
            (place / "draft").write_text(f"{os.getpid()} {helper.pid}")
            (place / "draft").rename(place / "victim")
            signal.pause()
        return number

    results: list[Any] = []
    call = in_thread(lambda: results.extend(manager.process_parallel("ann", range(6), item, 2, processes=True)))
    worker, helper = map(int, appears(place, "victim").split())
    started = start_time(helper)
    os.kill(worker, signal.SIGKILL)
    call.join(60)
    assert [n for n in results if not isinstance(n, ItemFailure)] == [0, 1, 3, 4, 5]
    assert results[2] == ItemFailure(index=2, kind="WorkerDied", message="its worker process was ended by SIGKILL")
    assert not is_alive(helper, started)


def test_large_items_and_results_go_through(manager: ThreadPoolManager) -> None:
    """Much more than a pipe holds, both ways."""
    big = b"x" * 5_000_000
    assert manager.process_parallel("ann", [big, big], lambda data: data + b"y", 2, processes=True) == [big + b"y"] * 2


def test_what_cannot_be_sent_is_said_at_once(manager: ThreadPoolManager) -> None:
    """A function that holds a generator cannot travel: an error with the way out; an item that cannot is a failure."""
    stream = (n for n in range(3))
    with pytest.raises(UsageError, match=r"cannot be sent to another process.*use threads"):
        manager.process_parallel("ann", [1], lambda item: next(stream), processes=True)
    results = manager.process_parallel("ann", [1, stream, 3], lambda item: item, processes=True)
    assert [results[0], results[2]] == [1, 3]
    assert isinstance(results[1], ItemFailure)
    assert "cannot pickle" in results[1].message
    assert manager.get_stats()["active_workers"] == 0


def test_workers_that_die_at_their_start_end_the_call(place: Path) -> None:
    """A module that kills its process when it is imported, or cannot be imported: an error, not an endless respawn."""
    (place / "deadly.py").write_text(
        "import os\nopen(f'{os.environ[\"PLACE\"]}/start{os.getpid()}', 'w')\n"
        "if 'PARENT' in os.environ and os.environ['PARENT'] != str(os.getpid()): os._exit(9)\n"
        "def item(n): return n\n"
    )
    (place / "absent.py").write_text(
        "import os\nif os.environ['PARENT'] != str(os.getpid()): raise ImportError('not here')\ndef item(n): return n\n"
    )
    program = """
    os.environ["PARENT"] = str(os.getpid())
    import absent, deadly
    from engine import CannotRunError, UsageError
    for module in (absent, deadly):
        try:
            process_parallel("ann", range(1000), module.item, 2, processes=True)
        except (CannotRunError, UsageError) as error:
            print(type(error).__name__, str(error).splitlines()[0])
    print(get_stats()["user_workers"])
    """
    out, _ = finished(place, program)
    first, second, third = out.splitlines()
    assert first == "UsageError process_func cannot be loaded in another process: ImportError: not here"
    assert second.startswith(
        "CannotRunError no worker process can be started: 3 in a row ended before their first item"
    )
    assert "exit code 9" in second
    assert third == "{}"
    assert len(list(place.glob("start*"))) <= 1 + 4


def test_processes_count_as_cpu_work(place: Path) -> None:
    """Bulk processes never outnumber the cores, whatever max_workers says."""
    with get_thread_pool_manager(settings_for(place, NIGHTMILL_CPU_LIMIT="1")) as manager:

        def item(number: int) -> int:
            descriptor = os.open(place / "core", os.O_CREAT | os.O_RDWR)
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            os.close(descriptor)
            return number

        assert manager.process_parallel("ann", range(20), item, 4, processes=True) == list(range(20))


def test_failures_are_plain_values() -> None:
    """A failure can be compared, sent and stored."""
    failure = ItemFailure(index=1, kind="ValueError", message="one")
    assert pickle.loads(pickle.dumps(failure)) == failure


def test_warnings_are_for_surplus_alone(manager: ThreadPoolManager) -> None:
    """An ordinary use of the API warns of nothing."""
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        manager.acquire_worker("ann")
        manager.release_worker("ann")
        manager.process_parallel("ann", range(3), str)
