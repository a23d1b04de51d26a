"""The real stage."""

from engine.workers.index import open_stage as open_stage
