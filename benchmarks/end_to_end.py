"""``python -m benchmarks.end_to_end``: only the whole flows of ``robustflow bench``."""

from __future__ import annotations

import sys

from robustflow.benchmarks.end_to_end import main

if __name__ == "__main__":
    sys.exit(main())
