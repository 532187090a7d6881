"""Tests of robustflow.experiments."""
