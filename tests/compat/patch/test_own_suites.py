"""normflows ships its tests: they pass with the patch on wherever they pass with it off.

Those of nflows, zuko and FrEIA lie in their repositories; :mod:`tools.library_suite` runs them.
"""

from __future__ import annotations

import importlib.util
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from tools.library_suite import MARK

ROOT = Path(__file__).resolve().parents[3]
SPLINES = ("utils/splines_test.py", "flows/neural_spline")


def run(package: Path, patch: bool) -> tuple[dict[str, int], str]:
    command = [sys.executable, "-m", "pytest", "-q", "-W", "ignore", "-p", "no:cacheprovider"]
    command += ["-p", "tools.library_suite"] * patch
    command += ["--rootdir", str(package), *(str(package / tests) for tests in SPLINES)]
    command += ["-o", "python_files=*_test.py"]
    environment = {**os.environ, "ROBUSTFLOW_PATCH": "normflows", "OMP_NUM_THREADS": "1"}
    environment["PYTHONPATH"] = str(ROOT)
    finished = subprocess.run(
        command, capture_output=True, text=True, env=environment, cwd=package.parent
    )
    counts = re.findall(r"(\d+) (passed|failed|error)", finished.stdout)
    return {outcome: int(number) for number, outcome in counts}, finished.stdout


@pytest.mark.slow
def test_normflows_own_tests() -> None:
    spec = importlib.util.find_spec("normflows")
    if spec is None or spec.origin is None:
        pytest.skip("normflows is not installed")
    package = Path(spec.origin).parent
    expected, _ = run(package, patch=False)
    found, output = run(package, patch=True)
    assert expected.get("passed", 0) > 0 and found == expected, output
    served = json.loads(output.split(MARK)[1].splitlines()[0])
    assert served["normflows"]["kernel"] > 0
