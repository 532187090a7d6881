"""The GPU suite: every operation on one card, against the speed at which that card copies.

    python -m benchmarks.gpu [--quick] [--filter TEXT] [--json FILE]

Modules, in the order in which they use each other: ``cases`` is what there is to measure,
``calls`` makes the tensors and the functions and checks them, ``meter`` is the stopwatch, ``card``
describes the GPU, ``plan`` puts the work in order, ``row`` is what is measured of a case, ``suite``
does the work within a budget of time, ``targets`` are what the rows are held against, ``report``
prints.
"""
