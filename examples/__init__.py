"""Programs that use robustflow: run them from the root of a checkout."""
