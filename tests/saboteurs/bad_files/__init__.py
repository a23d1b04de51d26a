"""The real stages, but for extraction: a file that begins with the word DO has what it says done to its worker."""
