"""Tests of robustflow.compat.patch."""
