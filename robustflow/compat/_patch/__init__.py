"""How :func:`robustflow.compat.patch` works: one module for each library, and what they share."""
