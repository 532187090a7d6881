"""Helpers that several folders of tests share, and tests of them."""
