"""The real stage."""

from engine.workers.embed import open_stage as open_stage
