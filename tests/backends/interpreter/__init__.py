"""The Triton kernels in Triton's interpreter, on the CPU, in a process of their own.

Triton reads ``TRITON_INTERPRET`` where a kernel is defined, so this process cannot have both.

- ``test_interpreter``: starts that process, and reports its failures
- ``backend``: what that process loads first: its only target is the interpreter
- ``suite``: what it runs, beside tests of the contract that every backend runs
"""
