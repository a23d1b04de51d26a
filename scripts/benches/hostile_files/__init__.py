"""The part of `scripts/bench hostile` that looks at workers from outside."""
