"""A stage that tries what no stage should."""
