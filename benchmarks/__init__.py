"""Benchmarks: what robustflow's speed, memory and accuracy are measured with.

``python -m benchmarks.foundation`` times the transforms against eager PyTorch, compiled PyTorch
and the installed peers; ``python -m benchmarks.accuracy`` compares float32 results with the
float64 oracle. ``benchmarks/results/README.md`` has the notes of method.
"""
