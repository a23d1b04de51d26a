"""The real stage."""

from engine.workers.extract import open_stage as open_stage
