"""Tests of robustflow.convert_affine."""
