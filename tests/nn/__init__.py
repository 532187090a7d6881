"""Tests of the layers and flows of robustflow.nn."""
