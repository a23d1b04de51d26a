"""Stages that do nothing, for runs in which only the engine itself costs anything."""
