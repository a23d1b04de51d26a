"""The parts of `scripts/bench extract`."""
