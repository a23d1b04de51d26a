"""The parts of `scripts/bench memory`: limits of the kernel, scans to read, the pool to compare with, runs watched."""
