"""The runtime folder: what the dead left in it, keys that do not fit, folders and callers that are not ours."""

from __future__ import annotations

import fcntl
import json
import os
import resource
import signal
import socket
import subprocess
import sys
import textwrap
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest

from engine import desk as desk_module
from engine import rendezvous
from engine.desk import find_statistics, open_desk, stop_scheduler
from engine.errors import CannotRunError
from engine.policy.tokens import Limits
from engine.ports import Return
from engine.processes import is_alive, start_time
from engine.served import ServedDesk
from tests.faults.test_borrowers import all_can_be_borrowed
from tests.faults.world import World, a_world, an_ask
from tests.mill import wait_until

as_root = pytest.mark.skipif(os.getuid() != 0, reason="only root can act as another account")


@contextmanager
def _sleepers(count: int) -> Iterator[list[tuple[subprocess.Popen[bytes], float]]]:
    """Processes that lead groups of their own, as workers do, with their start times."""
    started = [subprocess.Popen(["sleep", "600"], start_new_session=True) for _ in range(count)]
    try:
        yield [(process, start_time(process.pid)) for process in started]
    finally:
        for process in started:
            process.kill()
            process.wait()


def _line(process: subprocess.Popen[bytes], started: float) -> str:
    return json.dumps({"worker": process.pid, "started": started}) + "\n"


def _left_behind(world: World, session: str, *lines: str) -> Path:
    """A client file that nobody holds the lock of."""
    path = rendezvous.client_path(rendezvous.make_runtime_dir(world.data_dir), session)
    path.write_text("".join(lines))
    path.chmod(0o600)
    return path


# --- leftovers ---


def test_socket_lock_and_key_of_a_killed_scheduler(tmp_path: Path) -> None:
    """A socket that nobody serves, an unlocked lock file, a key and its drafts: the next scheduler replaces them."""
    with a_world(tmp_path) as world:
        world.scheduler()
        run = world.data_dir / "run"
        old_key = (run / "key").read_bytes()
        world.kill_scheduler()
        assert (run / "socket").is_socket()
        (run / "key.1234").touch(mode=0o600)
        assert world.statistics() is None
        borrower = world.borrower("one")
        borrower.work("ann", count=2)
        borrower.wait_for("done", 2)
        assert not (run / "key.1234").exists()
        assert (run / "key").read_bytes() != old_key
        assert [(run / name).stat().st_mode & 0o777 for name in ("socket", "key", "scheduler.lock")] == [0o600] * 3
        all_can_be_borrowed(world)


@pytest.mark.parametrize("name", ["socket", "key", "scheduler.lock"])
def test_links_in_the_place_of_its_files(tmp_path: Path, name: str) -> None:
    """What a link points to is neither locked nor written: it is replaced, or nothing starts."""
    with a_world(tmp_path) as world:
        target = tmp_path / "target"
        target.write_text("precious")
        (rendezvous.make_runtime_dir(world.data_dir) / name).symlink_to(target)
        scheduler = world.scheduler(wait=False)
        wait_until(lambda: scheduler.poll() is not None or world.scheduler_process(), "a scheduler, or its end")
        if name != "scheduler.lock":
            wait_until(world.statistics, "a scheduler that answers")
        assert scheduler.poll() == (CannotRunError.exit_code if name == "scheduler.lock" else None)
        assert target.read_text() == "precious"


def test_the_client_file_of_a_dead_process(tmp_path: Path) -> None:
    """Workers that a dead coordinator lists are ended before anything is lent; those it had waited for are let be."""
    with a_world(tmp_path) as world, _sleepers(2) as ((listed, since), (gone, gone_since)):
        dead = subprocess.Popen(["true"])
        dead_since = start_time(dead.pid)
        dead.wait()
        path = _left_behind(
            world,
            f"{dead.pid}-{dead_since:.0f}-00000000",
            _line(listed, since),
            _line(gone, gone_since),
            json.dumps({"gone": gone.pid}) + "\n",
        )
        desk = world.desk()
        assert len(desk.exchange(asks=[an_ask("1")]).grants) == 1
        assert not is_alive(listed.pid, since)
        assert gone.poll() is None
        assert not path.exists()
        all_can_be_borrowed(world)


@pytest.mark.parametrize("locked", [False, True])
def test_the_client_file_of_a_reused_process_id(tmp_path: Path, locked: bool) -> None:
    """The file names a process id that another process has now: its owner is dead, even if somebody keeps its lock."""
    with a_world(tmp_path) as world, _sleepers(2) as ((other, since), (worker, worker_since)):
        path = _left_behind(world, f"{other.pid}-{since - 1:.0f}-00000000", _line(worker, worker_since))
        with path.open("rb") as kept:
            if locked:
                fcntl.flock(kept, fcntl.LOCK_EX)
            desk = world.desk()
            assert len(desk.exchange(asks=[an_ask("1")]).grants) == 1
        assert not is_alive(worker.pid, worker_since)
        assert other.poll() is None
        assert not path.exists()


def test_a_worker_whose_process_id_was_used_again(tmp_path: Path) -> None:
    """A listed worker with another start time than the process of that id has now is long dead: nobody is killed."""
    with a_world(tmp_path) as world, _sleepers(1) as ((innocent, since),):
        path = _left_behind(world, "999999-1-00000000", _line(innocent, since - 1))
        desk = world.desk()
        assert len(desk.exchange(asks=[an_ask("1")]).grants) == 1
        assert innocent.poll() is None
        assert not path.exists()


def test_a_torn_client_file(tmp_path: Path) -> None:
    """A last line that was not finished, or nonsense, hides none of the other lines, and kills nobody."""
    with a_world(tmp_path) as world, _sleepers(2) as ((listed, since), (torn, torn_since)):
        whole = _line(torn, torn_since)
        nonsense = ["\0\xff\n", "[]\n", "7\n", '{"worker": "x"}\n', '{"worker": 1, "started": 1}\n', '{"worker": -1}\n']
        _left_behind(world, "999999-1-00000000", *nonsense, _line(listed, since), whole[: whole.index("started")])
        _left_behind(world, "no session at all")
        desk = world.desk()
        assert len(desk.exchange(asks=[an_ask("1")]).grants) == 1
        assert not is_alive(listed.pid, since)
        assert torn.poll() is None
        assert len(rendezvous.client_files(world.data_dir / "run")) == 1


def test_a_client_file_that_is_locked_between_look_and_removal(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A client that had made its file and not locked it when a new scheduler looked is awaited, not cleared away."""
    place = rendezvous.make_runtime_dir(tmp_path)
    client = rendezvous.ClientFile(place)
    # What was true a moment before.
    monkeypatch.setattr(rendezvous, "client_is_alive", lambda path: False)
    limits = Limits(max_total_workers=1, max_workers_per_user=1, cpu_limit=1, memory_limit_bytes=10**9)
    desk = ServedDesk(place, limits)
    desk.recover()
    assert client.path.exists()
    assert desk._awaited == {client.session: client.path}
    client.close()
    assert list((place / "clients").iterdir()) == []


_LEAVES_AND_DIES = textwrap.dedent(
    """
    import os, signal, sys
    from pathlib import Path
    from engine.desk import open_desk
    desk = open_desk(data_dir=Path(sys.argv[1]), max_total_workers=2, max_workers_per_user=2, cpu_limit=4,
                     memory_limit_bytes=10**9)
    desk._proxy.call("leave", desk._client_file.session)
    os.kill(os.getpid(), signal.SIGKILL)
    """
)


def test_the_client_file_of_who_died_after_leaving(tmp_path: Path) -> None:
    """It belongs to no session any more; the scheduler removes it all the same."""
    with a_world(tmp_path) as world:
        world.scheduler()
        left = world.start("-c", _LEAVES_AND_DIES, str(world.data_dir))
        assert left.wait(timeout=60) == -signal.SIGKILL
        clients = world.data_dir / "run" / "clients"
        wait_until(lambda: list(clients.iterdir()) == [], "an empty folder")


@contextmanager
def _files_up_to(size: int) -> Iterator[None]:
    """For a while this process can write no file beyond that size: a write is cut off, as on a full disk."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def test_a_worker_that_cannot_be_noted(tmp_path: Path) -> None:
    """On a full disk it is an error, before its first unit; the line that was cut off does not spoil the next."""
    client = rendezvous.ClientFile(rendezvous.make_runtime_dir(tmp_path))
    client.add(11, 1.0)
    with _files_up_to(client.path.stat().st_size + 10):
        with pytest.raises(CannotRunError, match="worker 12 cannot be noted"):
            client.add(12, 2.0)
        client.remove(12)
    client.add(13, 3.0)
    assert rendezvous.read_client_file(client.path) == {11: 1.0, 13: 3.0}
    client.close()


@pytest.mark.parametrize("size", [0, 100])
def test_a_lease_that_cannot_be_noted(tmp_path: Path, size: int) -> None:
    """It is not used, whoever asked for it is told, and it can be had when there is room again."""
    with a_world(tmp_path, total=2) as world:
        desk = world.desk()
        (first,) = desk.exchange(asks=[an_ask("1")]).grants
        path = desk._client_file.path
        listed = rendezvous.read_leases(path)
        assert [lease_id for lease_id, _ in listed] == [first.lease_id]
        with _files_up_to(size), pytest.raises(CannotRunError, match="leases cannot be noted"):
            desk.exchange(asks=[an_ask("2")])
        assert rendezvous.read_leases(path) == listed
        assert [*desk.standing()[1]] == [first.lease_id]
        (second,) = wait_until(lambda: desk.exchange(patience_seconds=0.05).grants, "the other token")
        assert [lease_id for lease_id, _ in rendezvous.read_leases(path)] == [first.lease_id, second.lease_id]
        assert world.statistics().active_workers == 2
        desk.exchange(returns=[Return(lease_id=one.lease_id, cost_seconds=0.1) for one in (first, second)])
        assert rendezvous.read_leases(path) == []
        all_can_be_borrowed(world)


# --- keys ---


@pytest.mark.parametrize("key", [b"", b"short", b"\0" * rendezvous.KEY_BYTES, None])
def test_a_key_that_does_not_fit(tmp_path: Path, key: bytes | None, monkeypatch: pytest.MonkeyPatch) -> None:
    """Empty, short, wrong or missing: a newcomer is told in time, who works goes on, and the next one gets in."""
    monkeypatch.setattr(desk_module, "PATIENCE_SECONDS", 0.7)
    with a_world(tmp_path) as world:
        good = world.borrower("good")
        good.work("ann", count=5, milliseconds=10)
        good.wait_for("begun")
        path = world.data_dir / "run" / "key"
        whole = path.read_bytes()
        if key is None:
            path.unlink()
        else:
            path.write_bytes(key)
        with pytest.raises(CannotRunError, match=r"could not be reached"):
            world.desk()
        good.work("ben", count=5, milliseconds=10)
        good.wait_for("done", 10)
        path.write_bytes(whole)
        all_can_be_borrowed(world)


# --- what is not ours ---


@pytest.mark.parametrize("what", ["run", "clients"])
@pytest.mark.parametrize("how", ["link", "open", "file", pytest.param("foreign", marks=as_root)])
def test_a_folder_that_is_not_ours_alone(tmp_path: Path, what: str, how: str) -> None:
    """A link, a folder open to others or of another account, a file: neither side uses it, and both say why."""
    with a_world(tmp_path) as world:
        folder = world.data_dir / ("run" if what == "run" else "run/clients")
        folder.parent.mkdir(parents=True, mode=0o700, exist_ok=True)
        elsewhere = tmp_path / "elsewhere"
        elsewhere.mkdir(mode=0o700)
        match how:
            case "link":
                folder.symlink_to(elsewhere)
            case "open":
                folder.mkdir()
                folder.chmod(0o777)
            case "foreign":
                folder.mkdir(mode=0o700)
                os.chown(folder, 65534, 65534)
            case _:
                folder.touch()
        with pytest.raises(CannotRunError, match=str(folder)):
            world.desk()
        scheduler = world.scheduler(wait=False)
        assert scheduler.wait(timeout=30) == CannotRunError.exit_code
        assert str(folder) in (world.place / "scheduler.err").read_text()
        assert list(elsewhere.iterdir()) == []


def test_nothing_is_said_to_a_scheduler_in_a_folder_that_is_not_ours_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """`scheduler status` and `stop` trust a folder no more than coordinators do: its key and socket may be anybody's.

    What comes over the socket is unpickled: whoever answers there runs code as us.
    """
    monkeypatch.setattr(desk_module, "CALL_SECONDS", 0.3)
    run = rendezvous.make_runtime_dir(tmp_path)
    (run / "key").write_bytes(b"k" * rendezvous.KEY_BYTES)
    run.chmod(0o777)
    with (run / "scheduler.lock").open("w") as lock, socket.socket(socket.AF_UNIX) as impostor:
        fcntl.flock(lock, fcntl.LOCK_EX)
        impostor.bind(str(run / "socket"))
        impostor.listen()
        impostor.setblocking(False)
        for look in (find_statistics, stop_scheduler):
            with pytest.raises(CannotRunError, match="open to other accounts"):
                look(tmp_path)
        with pytest.raises(CannotRunError, match="open to other accounts"):
            rendezvous.DeskProxy(run, timeout_seconds=0.3)
        with pytest.raises(BlockingIOError):
            impostor.accept()


#: Listens in our folder as another account, says so, and then what the first caller says unasked.
_OTHER_LISTENER = textwrap.dedent(
    """
    import os, socket
    listener = socket.socket(socket.AF_UNIX)
    listener.bind("socket")
    os.chmod("socket", 0o666)
    os.setgroups([]); os.setresgid(65534, 65534, 65534); os.setresuid(65534, 65534, 65534)
    listener.listen()
    print("listening", flush=True)
    caller, _ = listener.accept()
    print(caller.recv(100), flush=True)
    """
)


@as_root
def test_nothing_is_said_to_a_listener_of_another_account(tmp_path: Path) -> None:
    """Whoever answers at the socket has our own account, or not a byte is exchanged."""
    run = rendezvous.make_runtime_dir(tmp_path)
    (run / "key").write_bytes(b"k" * rendezvous.KEY_BYTES)
    impostor = subprocess.Popen([sys.executable, "-c", _OTHER_LISTENER], cwd=run, stdout=subprocess.PIPE, text=True)
    try:
        assert impostor.stdout is not None
        assert impostor.stdout.readline() == "listening\n"
        with (run / "scheduler.lock").open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            with pytest.raises(CannotRunError, match="account 65534 answers at"):
                find_statistics(tmp_path)
        assert impostor.stdout.readline() == "b''\n"
        impostor.communicate(timeout=30)
    finally:
        impostor.kill()
        impostor.wait()


@pytest.mark.parametrize("what", ["file", "link"])
def test_a_look_at_a_folder_that_cannot_be_one(tmp_path: Path, what: str) -> None:
    """`scheduler status` where the folder is a file, or the lock a link: said in words, or nobody is there."""
    if what == "file":
        (tmp_path / "run").touch()
    else:
        (rendezvous.make_runtime_dir(tmp_path) / "scheduler.lock").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(CannotRunError, match=str(tmp_path / "run")):
        find_statistics(tmp_path)
    with pytest.raises(CannotRunError, match=str(tmp_path / "run")):
        open_desk(data_dir=tmp_path, max_total_workers=1, max_workers_per_user=1, cpu_limit=1, memory_limit_bytes=10**9)


#: Connects as another account, from inside the folder, and says what comes back.
_OTHER_ACCOUNT = textwrap.dedent(
    """
    import os, socket, sys
    os.setgroups([]); os.setresgid(65534, 65534, 65534); os.setresuid(65534, 65534, 65534)
    caller = socket.socket(socket.AF_UNIX)
    caller.settimeout(10.0)
    try:
        caller.connect("socket")
        print("hung up" if caller.recv(1) == b"" else "spoken to")
    except (PermissionError, ConnectionResetError) as error:
        print(type(error).__name__)
    """
)


@as_root
@pytest.mark.parametrize("opened", [False, True])
def test_a_caller_of_another_account(tmp_path: Path, opened: bool) -> None:
    """It does not get to the socket; and if somebody has opened the folder and the socket, it is not spoken to."""
    with a_world(tmp_path) as world:
        world.scheduler()
        run = world.data_dir / "run"
        if opened:
            run.chmod(0o755)
            (run / "socket").chmod(0o666)
        said = subprocess.run(
            [sys.executable, "-c", _OTHER_ACCOUNT], cwd=run, capture_output=True, text=True, timeout=60, check=True
        )
        assert said.stdout.strip() in (("hung up", "ConnectionResetError") if opened else ("PermissionError",))
        run.chmod(0o700)
        assert ("account 65534 was refused" in (world.place / "scheduler.err").read_text()) == opened
        all_can_be_borrowed(world)


def test_a_caller_that_shows_a_wrong_key_is_not_served(tmp_path: Path) -> None:
    """It learns that it is wrong, and nothing that it sends afterwards is read."""
    with a_world(tmp_path) as world:
        world.scheduler()
        caller = socket.socket(socket.AF_UNIX)
        caller.settimeout(10.0)
        caller.connect(str(world.data_dir / "run" / "socket"))
        with caller:
            caller.sendall(b"\0\0\0\x20" + b"\0" * 32)
            # A whole, pickled request behind it: `stop`, which would end the scheduler.
            request = b"\x80\x04\x95(N\x8c\x04stop))}"
            caller.sendall(len(request).to_bytes(4, "big") + request)
            # Hung up on; the reset says that something was left unread.
            with suppress(ConnectionResetError):
                while caller.recv(4096):
                    pass
        assert find_statistics(world.data_dir) is not None
