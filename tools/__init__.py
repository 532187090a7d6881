"""Scripts for the documentation."""
