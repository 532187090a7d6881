"""Tests of the scripts of examples/."""
