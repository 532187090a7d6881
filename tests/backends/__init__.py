"""Tests of one backend each, in an environment of its own."""
