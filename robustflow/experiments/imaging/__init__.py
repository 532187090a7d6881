"""Conditional flows for inverse problems in imaging: configured, built, trained, sampled, kept."""
