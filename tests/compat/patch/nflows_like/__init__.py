"""The three layers and two functions of nflows, and of its copies."""
