"""The documentation: its examples run, its links resolve, and what it names exists."""
