"""Stages as they are, but for extraction, which never ends writing about a file that is called so."""
