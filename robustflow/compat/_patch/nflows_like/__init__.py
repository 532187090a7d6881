"""What nflows, normflows, glasflow and copies of nflows' functions have in common."""
