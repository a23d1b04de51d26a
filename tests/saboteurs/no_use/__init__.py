"""The real stages, but for extraction, which loads and then dies of whatever it is given: a broken library."""
