"""The version of each stage. Raising one makes the next run redo that stage, and those after it, for every item.

Rule: a change of what a stage writes raises its number here, in the same commit, with a line in CHANGELOG.md.
"""

from __future__ import annotations

from typing import Final

#: What extraction and OCR find in the same bytes. Raised: items are fetched and read again.
EXTRACT: Final = 4
#: How documents are cut, summarised and tokenised. Raised: stored documents are cut again; nothing is fetched.
CHUNK: Final = 3
