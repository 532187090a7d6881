"""Tests of robustflow.benchmarks and of benchmarks."""
