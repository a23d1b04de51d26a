"""The real stage."""

from engine.workers.ocr import open_stage as open_stage
