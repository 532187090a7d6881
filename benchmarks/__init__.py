"""Scripts that measure speed, memory and accuracy beyond ``robustflow bench``.

Each is ``python -m benchmarks.NAME``. What they share with ``robustflow bench`` is
:mod:`robustflow.benchmarks`; ``pytest benchmarks`` runs its cases under pytest-benchmark.
``python -m benchmarks.foundation`` holds the large cases to their targets, and
``python -m benchmarks.accuracy`` compares float32 results with the float64 oracle.
``benchmarks/results/README.md`` has the notes of method.
"""
