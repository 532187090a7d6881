"""Tests of robustflow.experiments.imaging."""
