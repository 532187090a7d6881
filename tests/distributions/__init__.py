"""Tests of robustflow.distributions."""
