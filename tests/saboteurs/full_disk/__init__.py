"""Stages as they are, but for OCR, which finds no room for what it has read."""
