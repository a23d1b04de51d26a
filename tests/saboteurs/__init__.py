"""Stages that do what no stage should: they fail, crash, hang, leak and lie, each in a worker process of its own."""
