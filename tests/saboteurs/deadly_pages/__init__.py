"""The real stages, but for one: pages of PDFs end their workers, as the words on them say."""
