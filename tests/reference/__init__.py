"""Tests of robustflow.reference, against 100-digit arithmetic."""
