"""Tests that need a GPU. The contract itself, tests/conformance and tests/contract, runs on GPU
targets as on any other; `pytest -m gpu` selects both.

- ``properties``: the properties below as functions of a target, so that a CPU can run them too
- ``test_properties``: on the GPU targets, and what of it a CPU can show on the CPU's
- ``test_large``: tensors beyond 2^31 elements
- ``test_compile``: what Inductor makes of a call
- ``test_backends``: what "auto" and "reference" do with CUDA tensors
- ``sanitize``: `python -m tests.backends.gpu.sanitize` runs a small call of each kernel,
  ``small_run``, under compute-sanitizer
- ``traced``: what torch.compile sees of the Triton operators; like ``test_sanitize`` without a GPU
"""
