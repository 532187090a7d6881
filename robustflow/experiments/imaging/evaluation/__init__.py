"""Trained flows on pictures: quality, diversity, consistency, artifacts, time; one table of all."""
