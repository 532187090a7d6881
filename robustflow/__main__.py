"""`python -m robustflow`: the command line, where no script `robustflow` is on the path."""

import sys

from robustflow.cli import main

sys.exit(main())
