"""One suite that every backend passes: each operation against the float64 oracle.

A new backend is one entry of :data:`tests.conformance.targets.TARGETS`; nothing else changes.

- ``targets``: the backends and devices that the suite runs on
- ``operations``: every configuration of every public function, with its oracle
- ``layouts``: how the tensors of a call lie in memory
- ``compare``: the bounds, and where they come from
- ``knots``: the splines with their knots moved by a rounding, which those bounds need
- ``poison``: fills what an operator allocates, so that an element it forgets shows
- ``cases``: which combinations are run
- ``samples``: small ready-made calls, for the tests of one property beside this folder
"""
