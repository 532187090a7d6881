"""Tests of robustflow.diagnostics.describe."""
