"""Conditional flows for inverse problems in imaging: configuration, training, sampling."""
