"""GPU kernels judged without a GPU: compiled ahead of time, disassembled, counted.

    python -m benchmarks.aot [--arch 90] [--json FILE] [--filter NAME]

Modules, in the order in which they use each other: ``sass`` reads a disassembly, ``flow`` finds
the loops in it and what one pass costs, ``pipes`` says which unit executes an instruction and how
fast, ``occupancy`` how many threads a multiprocessor holds, ``toolchain`` finds the compilers and
runs them, ``catalogue`` says what each kernel computes, ``predict`` puts it all together.
"""
