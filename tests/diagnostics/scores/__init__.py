"""Tests of robustflow.diagnostics.scores."""
