"""The parts of `scripts/bench scheduler`, a module each with one function `measure(quick) -> Part`."""
