"""A stage that does not load."""

raise ImportError("libtesseract.so.5: cannot open shared object file")
