"""Measurements: what is printed here goes into docs/, and no test depends on a timing."""
