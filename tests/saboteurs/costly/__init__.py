"""Stages as they are, but for some files that cost their worker its life, or all of its memory, each time."""
