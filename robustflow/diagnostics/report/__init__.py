"""A model's robustness in one report: numbers and a page."""
