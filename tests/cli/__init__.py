"""Tests of robustflow.cli."""
