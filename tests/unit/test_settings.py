"""Settings: what wins, what is refused, and that all mistakes are told at once."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import fields
from pathlib import Path

import pytest

from engine import embedders
from engine.errors import SettingsError
from engine.settings import PRESETS, SETTINGS, Settings, load_settings

KEYS = [setting.key for setting in SETTINGS]


def problems_of(
    environ: Mapping[str, str], *, dotenv: Path | None = None, flags: Mapping[str, str] | None = None
) -> tuple[str, ...]:
    with pytest.raises(SettingsError) as caught:
        load_settings(environ, dotenv=dotenv, flags=flags)
    assert caught.value.exit_code == 2
    return caught.value.problems


def load_one(key: str, text: str) -> object:
    field = next(setting.field for setting in SETTINGS if setting.key == key)
    return getattr(load_settings({key: text}, dotenv=None), field)


@pytest.fixture
def dotenv(tmp_path: Path) -> Path:
    return tmp_path / ".env"


def test_the_defaults_are_those_that_were_promised(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With nothing set: 5 per user, 20 in all, ./var, English, the built-in model."""
    monkeypatch.chdir(tmp_path)
    assert load_settings({}, dotenv=tmp_path / "absent") == Settings(
        data_dir=tmp_path / "var",
        preset="small",
        max_workers_per_user=5,
        max_total_workers=20,
        cpu_limit=None,
        scaling="auto",
        memory_limit_bytes=None,
        disk_reserve_bytes=500_000_000,
        spool_limit_bytes=4_000_000_000,
        keep_days=90,
        max_text_bytes=20_000_000,
        ocr="auto",
        ocr_languages=("eng",),
        ocr_backend="auto",
        embedder="builtin",
        sandbox="auto",
        stall_seconds=120,
        unit_seconds=600,
        debug_mode=False,
        log_level="warning",
    )


def test_the_table_and_the_dataclass_name_the_same_fields() -> None:
    """Each field of Settings has its one line in the table."""
    named = [field.name for field in fields(Settings) if field.name != "origins"]
    assert sorted(setting.field for setting in SETTINGS) == sorted(named)
    assert len(set(KEYS)) == len(KEYS)


def test_flag_beats_environment_beats_file_beats_default(dotenv: Path) -> None:
    """The nearer to the person, the stronger; `describe` says which one it was."""
    dotenv.write_text("MAX_TOTAL_WORKERS=2\nMAX_WORKERS_PER_USER=3\nNIGHTMILL_OCR=off\n")
    settings = load_settings(
        {"MAX_TOTAL_WORKERS": "4", "MAX_WORKERS_PER_USER": "6"}, dotenv=dotenv, flags={"MAX_TOTAL_WORKERS": "8"}
    )
    assert (settings.max_total_workers, settings.max_workers_per_user, settings.ocr) == (8, 6, "off")
    origins = {line.key: line.origin for line in settings.describe()}
    assert origins["MAX_TOTAL_WORKERS"] == "--max-total-workers"
    assert origins["MAX_WORKERS_PER_USER"] == "environment"
    assert origins["NIGHTMILL_OCR"] == ".env"
    assert origins["NIGHTMILL_EMBEDDER"] == "default"


def test_an_empty_value_counts_as_not_set(dotenv: Path) -> None:
    """`KEY=` in a compose file means "whatever is below", not a mistake and not zero."""
    dotenv.write_text("MAX_TOTAL_WORKERS=7\nNIGHTMILL_CPU_LIMIT=\n")
    settings = load_settings({"MAX_TOTAL_WORKERS": " "}, dotenv=dotenv)
    assert (settings.max_total_workers, settings.cpu_limit) == (7, None)


def test_the_total_may_be_smaller_than_the_share_of_a_user() -> None:
    """Both limits hold by themselves; a small server sets only the total."""
    assert load_settings({"MAX_TOTAL_WORKERS": "1"}, dotenv=None).max_workers_per_user == 5


@pytest.mark.parametrize(("name", "per_user", "total"), [("small", 5, 20), ("medium", 3, 30), ("large", 2, 40)])
def test_a_preset_brings_both_numbers_and_is_named_as_their_origin(name: str, per_user: int, total: int) -> None:
    """Whoever asks where the numbers come from is led to the preset, and not to defaults that are not in force."""
    settings = load_settings({"NIGHTMILL_PRESET": name}, dotenv=None)
    assert (settings.preset, settings.max_workers_per_user, settings.max_total_workers) == (name, per_user, total)
    shown = {line.key: (line.value, line.origin) for line in settings.describe()}
    assert shown["MAX_WORKERS_PER_USER"] == (str(per_user), "NIGHTMILL_PRESET")
    assert shown["MAX_TOTAL_WORKERS"] == (str(total), "NIGHTMILL_PRESET")
    assert shown["NIGHTMILL_PRESET"] == (name, "environment")
    assert set(PRESETS) == {"small", "medium", "large"}


def test_a_number_that_is_given_wins_over_the_preset_wherever_it_is_given(dotenv: Path) -> None:
    """Even a preset by flag does not override a number in `.env`: the number says more. The other one is brought."""
    dotenv.write_text("MAX_TOTAL_WORKERS=7\n")
    settings = load_settings({}, dotenv=dotenv, flags={"NIGHTMILL_PRESET": "large"})
    assert (settings.max_workers_per_user, settings.max_total_workers) == (2, 7)
    assert settings.origins["MAX_TOTAL_WORKERS"] == ".env"
    assert settings.origins["MAX_WORKERS_PER_USER"] == "NIGHTMILL_PRESET"
    assert load_settings({"NIGHTMILL_PRESET": " ", "MAX_WORKERS_PER_USER": "5"}, dotenv=None).max_total_workers == 20


def test_without_a_preset_the_numbers_are_those_of_the_default_one() -> None:
    """The defaults of the two numbers and the default preset cannot come to say different things."""
    settings = load_settings({}, dotenv=None)
    assert PRESETS[settings.preset] == (settings.max_workers_per_user, settings.max_total_workers)
    assert settings.origins["MAX_TOTAL_WORKERS"] == settings.origins["NIGHTMILL_PRESET"] == "default"


@pytest.mark.parametrize(
    ("key", "text", "value"),
    [
        ("MAX_TOTAL_WORKERS", " 1000 ", 1000),
        ("MAX_WORKERS_PER_USER", "1", 1),
        ("DEBUG_MODE", "TRUE", True),
        ("DEBUG_MODE", "0", False),
        ("NIGHTMILL_PRESET", "Large", "large"),
        ("NIGHTMILL_SCALING", "OFF", "off"),
        ("NIGHTMILL_CPU_LIMIT", "3", 3),
        ("NIGHTMILL_MEMORY_LIMIT", "256MiB", 256 * 2**20),
        ("NIGHTMILL_MEMORY_LIMIT", "2gb", 2_000_000_000),
        ("NIGHTMILL_MEMORY_LIMIT", "1.5 GiB", 1536 * 2**20),
        ("NIGHTMILL_DISK_RESERVE", "0", 0),
        ("NIGHTMILL_OCR_LANGUAGES", "eng+deu, chi_sim_vert,eng", ("eng", "deu", "chi_sim_vert")),
        ("NIGHTMILL_OCR_BACKEND", "Tesserocr", "tesserocr"),
        ("NIGHTMILL_EMBEDDER", "none", "none"),
        ("NIGHTMILL_STALL_SECONDS", "5", 5),
        ("NIGHTMILL_UNIT_SECONDS", "86400", 86400),
        ("NIGHTMILL_LOG_LEVEL", "Error", "error"),
        ("NIGHTMILL_DATA_DIR", "/srv/a/../b", Path("/srv/b")),
    ],
)
def test_values_are_read_as_people_write_them(key: str, text: str, value: object) -> None:
    """Bounds included, case and blanks ignored."""
    assert load_one(key, text) == value


@pytest.mark.parametrize(
    ("key", "text", "wanted"),
    [
        ("MAX_TOTAL_WORKERS", "0", "must be 1 to 1000"),
        ("MAX_TOTAL_WORKERS", "1001", "must be 1 to 1000"),
        ("MAX_WORKERS_PER_USER", "-1", "must be 1 to 1000"),
        ("MAX_WORKERS_PER_USER", "1_0", "must be 1 to 1000"),
        ("MAX_WORKERS_PER_USER", "5.0", "must be 1 to 1000"),
        ("MAX_WORKERS_PER_USER", "٣", "must be 1 to 1000"),
        ("MAX_WORKERS_PER_USER", "9" * 5000, "must be 1 to 1000"),
        ("DEBUG_MODE", "perhaps", "must be on or off (1, true, yes; 0, false, no)"),
        ("NIGHTMILL_MEMORY_LIMIT", "255MiB", "must be at least 256MiB"),
        ("NIGHTMILL_MEMORY_LIMIT", "lots", "must be a size such as 2GB or 1536MiB, at least 256MiB"),
        ("NIGHTMILL_MAX_TEXT", "25MB", "must be at most 20MB"),
        ("NIGHTMILL_MAX_TEXT", "999", "must be at least 1KB"),
        ("NIGHTMILL_MAX_TEXT", "all", "must be a size from 1KB to 20MB"),
        ("NIGHTMILL_DISK_RESERVE", "-1", "must be a size such as 2GB or 1536MiB; 0 for none"),
        ("NIGHTMILL_OCR", "on", "must be auto or off"),
        ("NIGHTMILL_OCR_BACKEND", "easyocr", "must be auto, tesserocr or pytesseract"),
        ("NIGHTMILL_EMBEDDER", "bert", "must be builtin, fast or none"),
        ("NIGHTMILL_EMBEDDER", "openai", "comes with a later release; for now it must be builtin, fast or none"),
        ("NIGHTMILL_STALL_SECONDS", "4", "must be 5 to 3600"),
        ("NIGHTMILL_UNIT_SECONDS", "86401", "must be 10 to 86400"),
        ("NIGHTMILL_PRESET", "huge", "must be small, medium or large"),
        ("NIGHTMILL_SCALING", "on", "must be auto or off"),
        ("NIGHTMILL_CPU_LIMIT", "0", "must be 1 to 4096"),
        ("NIGHTMILL_LOG_LEVEL", "loud", "must be debug, info, warning or error"),
    ],
)
def test_a_mistake_names_key_value_origin_and_range(key: str, text: str, wanted: str) -> None:
    """One line has all that is needed to mend it."""
    assert problems_of({key: text}) == (f"{key} = {text[:200]} (from the environment); {wanted}",)


@pytest.mark.parametrize("text", ["../eng", "en", "eng,", "eng,,deu", "ENG", "eng/deu", "eng_", "eng_1"])
def test_a_language_is_a_name_and_nothing_else(text: str) -> None:
    """It becomes a part of a file's name, so it cannot hold anything that leaves a folder."""
    (problem,) = problems_of({"NIGHTMILL_OCR_LANGUAGES": text})
    assert "is no language" in problem


def test_all_mistakes_are_told_at_once(dotenv: Path) -> None:
    """Whoever mends one need not come back for the next: every origin, unknown keys and broken lines together."""
    dotenv.write_text('\n\nMAX_TOTAL_WORKERS=0\nA B\nNIGHTMILL_OCR_LANGUAGE=deu\nX="open\n')
    problems = problems_of({"DEBUG_MODE": "?"}, dotenv=dotenv, flags={"NIGHTMILL_OCR": "maybe"})
    assert set(problems) == {
        ".env line 4: it makes no sense; write KEY=value, and close every quote",
        ".env line 6: it makes no sense; write KEY=value, and close every quote",
        "NIGHTMILL_OCR_LANGUAGE (from .env) is no setting; did you mean NIGHTMILL_OCR_LANGUAGES?",
        "MAX_TOTAL_WORKERS = 0 (from .env); must be 1 to 1000",
        "NIGHTMILL_OCR = maybe (from --ocr); must be auto or off",
        "DEBUG_MODE = ? (from the environment); must be on or off (1, true, yes; 0, false, no)",
    }


@pytest.mark.parametrize(
    ("key", "meant"),
    [
        ("NIGHTMILL_OCR_LANGUAGE", "NIGHTMILL_OCR_LANGUAGES"),
        ("NIGHTMILL_DATADIR", "NIGHTMILL_DATA_DIR"),
        ("nightmill_data_dir", "NIGHTMILL_DATA_DIR"),
        ("NIGHTMILL_MAX_TOTAL_WORKERS", "MAX_TOTAL_WORKERS"),
        ("NIGHTMILL_DEBUG_MODE", "DEBUG_MODE"),
    ],
)
def test_an_unknown_key_is_a_mistake_with_a_guess(dotenv: Path, key: str, meant: str) -> None:
    """A misspelt key that is ignored in silence is found weeks later, if ever."""
    dotenv.write_text(f"{key}=3\n")
    guess = f"is no setting; did you mean {meant}?"
    assert problems_of({}, dotenv=dotenv) == (f"{key} (from .env) {guess}",)
    assert problems_of({key: "3"}) == (f"{key} (from the environment) {guess}",)


@pytest.mark.parametrize("key", ["MAX_WORKER_PER_USER", "MAX_TOTAL_WORKER", "DEBUGMODE", "NIGHTMIL_DATA_DIR"])
def test_a_slip_of_the_pen_in_the_file_is_found_without_our_prefix(dotenv: Path, key: str) -> None:
    """In `.env` the near miss was surely meant for us; in the environment it may be anybody's."""
    dotenv.write_text(f"{key}=3\n")
    (problem,) = problems_of({}, dotenv=dotenv)
    assert problem.startswith(f"{key} (from .env) is no setting; did you mean ")
    load_settings({key: "3"}, dotenv=None)


def test_what_belongs_to_others_is_left_alone(dotenv: Path) -> None:
    """Other programs' keys, the tests' own, and what Kubernetes puts beside a service called nightmill."""
    dotenv.write_text("OPENAI_API_KEY=x\nDEBUG=1\nMAX_RETRIES=3\nLONELY\nexport PATH=/bin\n")
    environ = {
        "NIGHTMILL_CORPUS": "/x",
        "NIGHTMILL_SERVICE_HOST": "10.0.0.1",
        "NIGHTMILL_SERVICE_PORT_HTTP": "80",
        "NIGHTMILL_PORT": "tcp://10.0.0.1:80",
        "NIGHTMILL_PORT_80_TCP_ADDR": "10.0.0.1",
    }
    load_settings(environ, dotenv=dotenv)


def test_the_file_is_read_as_other_tools_read_it(dotenv: Path) -> None:
    """export, quotes, comments, a byte order mark; the last of two lines counts; nothing is interpolated."""
    dotenv.write_bytes(
        "\ufeffNIGHTMILL_OCR=off\nexport MAX_TOTAL_WORKERS='3' # three\nMAX_TOTAL_WORKERS=4\n"
        "NIGHTMILL_DATA_DIR=/srv/${HOME}\n".encode()
    )
    settings = load_settings({}, dotenv=dotenv)
    assert (settings.ocr, settings.max_total_workers, settings.data_dir) == ("off", 4, Path("/srv/${HOME}"))


def test_a_key_of_ours_without_a_value_is_a_mistake(dotenv: Path) -> None:
    """`NIGHTMILL_OCR` alone on a line sets nothing, whatever its writer hoped."""
    dotenv.write_text("\n# off\n\nNIGHTMILL_OCR\n")
    assert problems_of({}, dotenv=dotenv) == (".env line 4: NIGHTMILL_OCR has no value; write KEY=value",)


def test_a_file_that_cannot_be_read_is_reported(tmp_path: Path, dotenv: Path) -> None:
    """A folder, or bytes of another encoding: not the same as no file."""
    assert problems_of({}, dotenv=tmp_path) == (f".env: {tmp_path} cannot be read: Is a directory",)
    dotenv.write_text("NIGHTMILL_OCR=off", encoding="utf-16")
    assert "is not UTF-8 (byte 0)" in problems_of({}, dotenv=dotenv)[0]


def test_a_broken_line_is_reported_once_and_its_text_never(
    dotenv: Path, capfd: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    """It may hold a password; and the library that reads the file has no say of its own."""
    dotenv.write_text('KEY="secret\n')
    with caplog.at_level(logging.DEBUG):
        (problem,) = problems_of({}, dotenv=dotenv)
    assert "secret" not in problem + caplog.text
    assert capfd.readouterr() == ("", "")


def test_control_characters_do_not_reach_the_terminal() -> None:
    """A value with escape sequences is shown without them."""
    (problem,) = problems_of({"NIGHTMILL_OCR": "\x1b[31mred\udc80"})
    assert problem.isprintable()
    settings = load_settings({"NIGHTMILL_DATA_DIR": "/a\x1b]0;b\x07"}, dotenv=None)
    assert all(line.value.isprintable() for line in settings.describe())


def test_the_data_directory_begins_at_home_or_here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """`~` from a `.env` file is the home folder, not a folder called `~`."""
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    assert load_one("NIGHTMILL_DATA_DIR", "~/mill") == tmp_path / "mill"
    assert load_one("NIGHTMILL_DATA_DIR", "mill") == tmp_path / "mill"
    assert load_one("NIGHTMILL_DATA_DIR", "./~") == tmp_path / "~"
    assert "nobody's home" in problems_of({"NIGHTMILL_DATA_DIR": "~no-such-account/x"})[0]
    assert "must be the path of a folder" in problems_of({}, flags={"NIGHTMILL_DATA_DIR": ""})[0]


def test_debug_mode_brings_its_log_unless_a_level_is_set() -> None:
    """A trial without its log would be half a trial; who sets a level gets it."""
    settings = load_settings({"DEBUG_MODE": "1"}, dotenv=None)
    assert (settings.log_level, settings.origins["NIGHTMILL_LOG_LEVEL"]) == ("debug", "DEBUG_MODE")
    assert load_settings({"DEBUG_MODE": "1", "NIGHTMILL_LOG_LEVEL": "error"}, dotenv=None).log_level == "error"


def test_every_embedder_that_can_be_chosen_exists() -> None:
    """The names are those of embedders.py, though settings stand below it."""
    form = next(setting.form for setting in SETTINGS if setting.key == "NIGHTMILL_EMBEDDER")
    for name in form.range.replace(" or ", ", ").split(", "):
        embedders.spec_of(name)
        assert form.parse(name) == name


def test_values_are_shown_as_they_could_be_written() -> None:
    """What `describe` says of sizes, switches and lists is accepted as a value again."""
    environ = {
        "NIGHTMILL_MEMORY_LIMIT": "1536MiB",
        "NIGHTMILL_DISK_RESERVE": "750MB",
        "NIGHTMILL_CPU_LIMIT": "2",
        "NIGHTMILL_OCR_LANGUAGES": "eng+deu",
        "DEBUG_MODE": "yes",
    }
    settings = load_settings(environ, dotenv=None)
    shown = {line.key: line.value for line in settings.describe()}
    assert list(shown) == KEYS
    assert shown["NIGHTMILL_MEMORY_LIMIT"] == "1536 MiB"
    assert load_settings(shown, dotenv=None) == settings
    unset = {line.key: line.value for line in load_settings({}, dotenv=None).describe()}
    assert (unset["NIGHTMILL_MEMORY_LIMIT"], unset["NIGHTMILL_CPU_LIMIT"]) == ("measured", "measured")
