"""The real stages, but for files that are called so: they make their worker write more than there can be."""
