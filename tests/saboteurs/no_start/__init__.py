"""No stage loads: a library is missing."""
