"""Tests of robustflow.compat.srflow."""
