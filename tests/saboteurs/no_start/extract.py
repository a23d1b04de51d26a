"""A stage that does not load."""

raise ImportError("libstages.so.7: cannot open shared object file")
