"""Which backend serves a call: the choice, its scope, and what is refused."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest
import torch

import robustflow
import robustflow.functional as F
from conformance.layouts import ROWS
from conformance.operations import RQ
from conformance.samples import sample
from conformance.targets import Target


def _call() -> tuple[torch.Tensor, torch.Tensor]:
    return F.modified_rq_spline(torch.linspace(-0.4, 0.4, 6).reshape(2, 3), torch.ones(2, 12))


def _operators() -> set[str]:
    """Names of the operators of robustflow that _call runs."""
    with torch.profiler.profile() as profiler:
        _call()
    return {e.key for e in profiler.key_averages() if e.key.startswith("robustflow::")}


def test_every_backend_is_named_with_a_reason() -> None:
    found = robustflow.backends()
    assert set(found) == {"cpu", "cuda", "triton", "reference"}
    assert found["reference"] is True
    for name, reason in found.items():
        assert reason is True or (isinstance(reason, str) and reason.endswith(".")), name


def test_reference_runs_no_operator() -> None:
    with robustflow.use_backend("reference"):
        assert _operators() == set()


def test_native_runs_its_operator(native_device: Target) -> None:
    assert _operators() == {"robustflow::modified_rq"}


def test_context_manager_restores_the_choice() -> None:
    before = robustflow.current_backend()
    with robustflow.use_backend("reference"):
        assert robustflow.current_backend() == "reference"
        with robustflow.use_backend("auto"):
            assert robustflow.current_backend() == "auto"
        assert robustflow.current_backend() == "reference"
    assert robustflow.current_backend() == before
    with pytest.raises(ZeroDivisionError), robustflow.use_backend("reference"):
        raise ZeroDivisionError
    assert robustflow.current_backend() == before


def test_a_call_keeps_the_choice() -> None:
    before = robustflow.current_backend()
    try:
        robustflow.use_backend("reference")
        assert robustflow.current_backend() == "reference"
    finally:
        robustflow.use_backend(before)


def test_unknown_backend() -> None:
    with pytest.raises(ValueError, match=r"backend must be one of .*reference.*, got 'gpu'"):
        robustflow.use_backend("gpu")
    assert robustflow.current_backend() != "gpu"


@pytest.mark.parametrize("name", ["cpu", "cuda", "triton"])
def test_missing_backend_says_why(name: str) -> None:
    reason = robustflow.backends()[name]
    if reason is True:
        with robustflow.use_backend(name):
            assert robustflow.current_backend() == name
    else:
        with pytest.raises(RuntimeError) as caught:
            robustflow.use_backend(name)
        assert str(reason) in str(caught.value)


def test_cpu_kernels_refuse_another_device(native_device: Target) -> None:
    if native_device.device != "cpu":
        pytest.skip("about the CPU kernels")
    x, params = torch.zeros(2, 3, device="meta"), torch.zeros(2, 12, device="meta")
    with pytest.raises(RuntimeError, match=r"'cpu' serves CPU tensors, got one on meta"):
        F.modified_rq_spline(x, params)


def _python(code: str, **variables: str) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, **variables}
    command = [sys.executable, "-c", code]
    return subprocess.run(command, capture_output=True, text=True, env=environment, timeout=120)


def test_environment_variable() -> None:
    code = "import robustflow; print(robustflow.current_backend())"
    run = _python(code, ROBUSTFLOW_BACKEND="reference")
    assert run.stdout.strip() == "reference", run.stderr
    run = _python(code, ROBUSTFLOW_BACKEND="gpu")
    assert run.returncode != 0 and "backend must be one of" in run.stderr


def test_instruction_set_variable(native_device: Target) -> None:
    """ROBUSTFLOW_ISA forces a set at load, and an unknown one is an error that lists the known."""
    if native_device.device != "cpu":
        pytest.skip("about the CPU kernels")
    code = "import robustflow; print(robustflow.build_info()['isa'])"
    slowest = robustflow.build_info()["isa_supported"][-1]
    assert _python(code, ROBUSTFLOW_ISA=slowest).stdout.strip() == slowest
    run = _python(code, ROBUSTFLOW_ISA="mmx")
    assert run.returncode != 0 and "mmx" in run.stderr and slowest in run.stderr


def test_instruction_sets_agree(native_device: Target) -> None:
    """To a few roundings: they share the formulas, but not contraction nor the order of sums."""
    if native_device.device != "cpu":
        pytest.skip("about the CPU kernels")
    call = sample(RQ(8, "linear", "softmax"), layout=ROWS)
    found = []
    for isa in robustflow.build_info()["isa_supported"]:
        with Target("cpu", isa=isa).chosen():
            found.append(call.gradients())
    for other in found[1:]:
        torch.testing.assert_close(other, found[0], rtol=2e-5, atol=2e-5)
