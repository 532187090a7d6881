"""A pytest plugin: the Triton kernels, interpreted, are the only backend under test."""

from __future__ import annotations

import numpy as np

from tests.conformance.targets import Target, replace_targets

TARGET = Target("triton", grid="thin")
replace_targets(TARGET)
# The interpreter is numpy, which would warn where an element is not a number, as some tests want.
np.seterr(all="ignore")
