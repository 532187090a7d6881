"""Adapters that describe each flow library's layers, one module for each library.

Each has ``find(module)``, the module as a layer or a block, None where it is neither; and
``flips(module)``, whether the layers inside run against the direction of the module.
"""
