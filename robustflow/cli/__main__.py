"""`python -m robustflow.cli`, for where the script `robustflow` is not on the path."""

import sys

from robustflow.cli import main

sys.exit(main())
