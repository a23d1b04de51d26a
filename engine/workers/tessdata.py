"""Where the language data of Tesseract is.

Rule: looks at file names only and imports nothing heavy, so that `nightmill doctor` and the settings may ask too.
"""

from __future__ import annotations

import os
import re
import site
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

from engine.ports import StageFailed
from engine.reasons import Reason


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


def find_tessdata(languages: Sequence[str], folders: Sequence[Path] | None = None) -> Path:
    """The first folder with data for all of `languages` ("eng", "deu", "chi_sim", ...): Tesseract reads from one only.

    Raises StageFailed(OCR_LANGUAGE_MISSING), whose detail says which are missing and where was looked.
    """
    looked = tessdata_folders() if folders is None else list(folders)
    wrong = [language for language in languages if not re.fullmatch(r"[A-Za-z][A-Za-z0-9_/-]{0,40}", language)]
    if wrong or not languages:
        raise StageFailed(Reason.OCR_LANGUAGE_MISSING, f"{', '.join(wrong) or '(none)'} is no name of a language")
    for folder in looked:
        if all((folder / f"{language}.traineddata").is_file() for language in languages):
            return folder
    missing = [
        language
        for language in languages
        if not any((folder / f"{language}.traineddata").is_file() for folder in looked)
    ]
    where = ", ".join(map(str, looked)) or "no folder exists"
    if missing:
        raise StageFailed(Reason.OCR_LANGUAGE_MISSING, f"no data for {', '.join(missing)}; looked in {where}")
    raise StageFailed(Reason.OCR_LANGUAGE_MISSING, f"no single folder has {', '.join(languages)}; looked in {where}")
