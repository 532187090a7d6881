"""Tests of the drop-ins; each library is skipped where it is not installed."""
