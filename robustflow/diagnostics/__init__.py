"""Exploding inverses: seen while a model samples, bounded, scored, and cured."""
