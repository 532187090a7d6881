"""Tests that need a GPU. The contract itself, tests/conformance and tests/test_contract_*.py, runs
on GPU targets as on any other; `pytest -m gpu` selects both.

- ``properties``: the properties below as functions of a target, so that a CPU can run them too
- ``test_properties``: on the GPU targets, and what of it a CPU can show on the CPU's
- ``test_large``: tensors beyond 2^31 elements
- ``test_compile``: what Inductor makes of a call
- ``test_backends``: what "auto" and "reference" do with CUDA tensors
- ``summary``: the last lines of `pytest -m gpu`
- ``workers``: distributes such a run over processes
- ``sanitize``: `python -m tests.gpu.sanitize` runs a small call of each kernel, ``small_run``,
  under compute-sanitizer
"""
