"""GPU kernels checked without a GPU: compiled ahead of time, their registers and spills counted.

    python -m benchmarks.aot [--arch 90]

``toolchain`` finds the compilers and runs them, ``sass`` reads a disassembly, ``triton_launches``
records how each Triton kernel is launched, ``kernels`` compiles every kernel, ``occupancy`` says
how many of its threads a multiprocessor holds, and ``report`` prints. ``tests/backends/aot`` holds
the kernels to limits.
"""
