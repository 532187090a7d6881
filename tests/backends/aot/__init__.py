"""GPU kernels judged ahead of time, without a GPU; the machinery is ``benchmarks.aot``."""
