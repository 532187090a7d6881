"""Pictures to train on: folders, pairs, and the photographs that packages ship."""
