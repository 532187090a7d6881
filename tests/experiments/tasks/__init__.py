"""Tests of robustflow.experiments.tasks."""
