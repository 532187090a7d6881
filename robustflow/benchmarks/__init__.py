"""What ``robustflow bench`` measures, and how.

:mod:`~robustflow.benchmarks.command` is the command. It measures every case of
:mod:`~robustflow.benchmarks.cases` beside eager and compiled PyTorch and the installed flow
libraries, each in a process of its own (:mod:`~robustflow.benchmarks.worker`). The scripts of the
folder ``benchmarks`` of the repository use the same modules for further measurements.
"""
