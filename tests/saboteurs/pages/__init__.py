"""The real stages, but for one: no page survives OCR, and no worker a page."""
