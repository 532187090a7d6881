"""Tests of robustflow.ops."""
