"""Tests of robustflow.diagnostics."""
