"""A model's robustness in one report: numbers, a page, and how they are found."""
