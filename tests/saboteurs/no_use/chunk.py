"""The real stage."""

from engine.workers.chunk import open_stage as open_stage
