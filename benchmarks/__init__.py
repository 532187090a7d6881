"""Benchmarks: what robustflow's speed, memory and accuracy are measured with.

``robustflow bench`` (:mod:`~.command`) measures every workload of :mod:`~.workloads` beside eager
and compiled PyTorch and the installed flow libraries; ``pytest benchmarks`` runs the same under
pytest-benchmark. ``python -m benchmarks.foundation`` holds the large cases to their targets, and
``python -m benchmarks.accuracy`` compares float32 results with the float64 oracle.
``benchmarks/results/README.md`` has the notes of method.

In a checkout this package is ``benchmarks``; installed with robustflow it is
``robustflow_benchmarks``, a name that no other project takes. So imports inside it are relative.
"""
