"""sbi's neural-spline posterior estimator, unpatched and patched: ``python -m examples.posterior``.

- ``simulator.py``: a simulator whose posterior is known exactly.
- ``training.py``: the estimator, trained and sampled with the patch off or on.
- ``comparison.py``: whether two posteriors are the same, and whether they are right.
- ``report.py``: tables, JSON, and a pair plot.
"""

from robustflow._extras import explain_when_run

explain_when_run("sbi", {})
