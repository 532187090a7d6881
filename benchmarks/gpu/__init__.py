"""Measure every operation on a GPU, compared with the speed at which that GPU copies.

    python -m benchmarks.gpu [--quick] [--filter TEXT] [--json FILE]

Modules, each using those before it: ``calls`` makes and checks the functions to time, ``meter``
times them, ``card`` describes the GPU, ``plan`` lists the tasks in order, ``row`` is the result of
a case, ``suite`` measures the tasks within a time budget, ``targets`` compares rows with targets,
``report`` prints. Cases are those of robustflow/benchmarks/cases.py.
"""
