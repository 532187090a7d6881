"""The CUDA kernels' own sources on the host, without a GPU.

- ``shim``: ``cuda/device.h`` for a host, and the emulator below it (blocks, threads, memory)
- ``ops_emulated.cpp``: the operators, on CPU tensors, by the CUDA driver on that emulator
- ``build``: compiles all of it, with AddressSanitizer
- ``process``: pytest in a process of its own, into which the sanitizer's library is preloaded
- ``backend``: what such a process does first: a backend "emulated" beside the package's own
- ``suite``: the tests that it runs; pytest collects it only by name
- ``probes``: small kernels with faults, for the tests of the emulator itself
"""
