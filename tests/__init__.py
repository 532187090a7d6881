"""Tests of robustflow: a folder for each subpackage, a file for each module; and

- ``contract``: what every backend promises for every transform
- ``conformance``: every transform, layout and dtype on every backend, against the float64 oracle
- ``backends``: what one backend needs in addition: a GPU, an emulator, an interpreter, a compiler
- ``docs``: the documentation's examples and links
- ``support``: helpers that several folders share
"""
