"""Which backend serves a call: the choice, its scope, and what is refused."""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys

import pytest
import torch

import robustflow
import robustflow.functional as F
from robustflow import _backend, _native, _triton
from tests.conformance.layouts import ROWS
from tests.conformance.operations import RQ
from tests.conformance.samples import sample
from tests.conformance.targets import Target


def _call(device: str = "cpu") -> tuple[torch.Tensor, torch.Tensor]:
    x = torch.linspace(-0.4, 0.4, 6, device=device).reshape(2, 3)
    return F.modified_rq_spline(x, torch.ones(2, 12, device=device))


def _operators(device: str = "cpu") -> set[str]:
    """Names of all operators that _call runs."""
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as profiler:
        _call(device)
    return {event.key for event in profiler.key_averages()}


def test_every_backend_is_named_with_a_reason() -> None:
    found = robustflow.backends()
    assert {"cpu", "cuda", "triton", "reference"} <= set(found)
    assert found["reference"] is True
    for name, reason in found.items():
        assert reason is True or (isinstance(reason, str) and reason.endswith(".")), name


def test_reference_runs_no_operator() -> None:
    with robustflow.use_backend("reference"):
        found = _operators()
    assert "aten::sigmoid" in found
    assert not any(name.startswith("robustflow") for name in found)


def test_a_kernel_serves_the_call(native_device: Target) -> None:
    """One operator of robustflow, or a function called without one; nothing of the reference."""
    found = _operators(native_device.device)
    assert "aten::sigmoid" not in found and "aten::where" not in found
    if native_device.backend in ("cpu", "cuda"):
        assert {name for name in found if name.startswith("robustflow")} == {
            "robustflow::modified_rq"
        }


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


def test_kernels_refuse_another_device(native_device: Target) -> None:
    name = native_device.backend
    x, params = torch.zeros(2, 3, device="meta"), torch.zeros(2, 12, device="meta")
    with pytest.raises(RuntimeError, match=rf"'{name}' serves .*tensors, got one on meta"):
        F.modified_rq_spline(x, params)


@pytest.mark.parametrize("name", ["cuda", "triton"])
def test_gpu_kernels_refuse_cpu_tensors(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also where there is no GPU: the choice is made as if there were one."""
    if _triton.INTERPRETED:
        pytest.skip("under TRITON_INTERPRET=1 triton serves CPU tensors")
    monkeypatch.setattr(_backend, "_choice", name)
    with pytest.raises(
        RuntimeError,
        match=rf"'{name}' serves CUDA tensors, got one on cpu: .*use_backend\('auto'\)",
    ):
        _call()


@pytest.mark.parametrize(
    ("cuda", "triton", "expected"),
    [
        (True, True, _backend.GPU_BACKENDS[0]),
        (True, False, "cuda"),
        (False, True, "triton"),
        (False, False, "reference"),
    ],
)
def test_auto_on_a_gpu(
    cuda: bool, triton: bool, expected: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(_native, "cuda_loaded", lambda: cuda)
    monkeypatch.setattr(_triton, "load", lambda: triton)
    assert _backend.backend_on_gpu() == expected


def test_why_there_is_no_gpu_backend() -> None:
    """A torch without CUDA is the first reason, and the sentence says what to install."""
    if torch.version.cuda or torch.version.hip or _triton.INTERPRETED:
        pytest.skip("this torch has a GPU backend")
    for name in ("cuda", "triton"):
        reason = str(robustflow.backends()[name])
        assert "was built without CUDA: install one with it" in reason


@pytest.mark.parametrize("name", ["cuda", "triton"])
def test_no_gpu_is_a_reason(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Kernels that are loaded do not help where torch sees no GPU."""
    if _triton.INTERPRETED:
        pytest.skip("under TRITON_INTERPRET=1 triton needs no GPU")
    monkeypatch.setattr(_native, "_cuda_failure", None)
    monkeypatch.setattr(_triton, "_error", None)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(RuntimeError, match="torch sees no GPU: check that nvidia-smi lists one"):
        robustflow.use_backend(name)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    assert robustflow.backends()[name] is True


def test_triton_serves_cpu_tensors_in_its_interpreter() -> None:
    """And without it the choice is refused, or needs a GPU."""
    code = "import robustflow._backend as b; print(b._BACKENDS['triton'].devices)"
    if importlib.util.find_spec("triton") is None:
        pytest.skip("triton is not installed: pip install triton")
    assert "'cpu'" in _python(code, TRITON_INTERPRET="1").stdout
    assert "'cpu'" not in _python(code, TRITON_INTERPRET="0").stdout


def _python(code: str, **variables: str) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, **variables}
    command = [sys.executable, "-c", code]
    return subprocess.run(command, capture_output=True, text=True, env=environment, timeout=600)


def test_environment_variable() -> None:
    code = "import robustflow; print(robustflow.current_backend())"
    run = _python(code, ROBUSTFLOW_BACKEND="reference")
    assert run.stdout.strip() == "reference", run.stderr
    assert _python(code, ROBUSTFLOW_BACKEND="").stdout.strip() == "auto"


CALL = """
import torch, robustflow
call = lambda: robustflow.functional.modified_rq_spline(torch.zeros(2, 3), torch.zeros(2, 12))
try:
    call()
except RuntimeError as error:
    print(error)
robustflow.use_backend("auto")
print("then", call()[0].shape)
print("code", __import__("robustflow.cli").cli.main(["doctor"]))
"""


@pytest.mark.parametrize(
    ("variable", "value", "words"),
    [
        ("ROBUSTFLOW_BACKEND", "gpu", "backend must be one of auto, cpu"),
        ("ROBUSTFLOW_BACKEND", "cuda", "The backend 'cuda' is not available."),
        ("ROBUSTFLOW_ISA", "mmx", "this library has no instruction set 'mmx'"),
    ],
)
def test_a_wrong_variable_stops_calls_and_not_the_import(
    variable: str, value: str, words: str
) -> None:
    if (value == "cuda" and torch.cuda.is_available()) or (value == "mmx" and not _native.load()):
        pytest.skip("what it asks for is there, or nothing asks")
    run = _python(CALL, **{variable: value})
    assert run.returncode == 0, run.stderr
    assert run.stdout.startswith(f"{variable}={value}: {words}") and run.stderr == ""
    assert "\nthen torch.Size([2, 3])" in run.stdout
    assert f"problem: {variable}={value}: {words}" in run.stdout
    assert run.stdout.endswith("not healthy\ncode 1\n")


def test_instruction_set_variable() -> None:
    """ROBUSTFLOW_ISA forces a set at load."""
    if not _native.load():
        pytest.skip("about the CPU kernels, which are not built")
    code = "import robustflow; print(robustflow.build_info()['isa'])"
    slowest = robustflow.build_info()["isa_supported"][-1]
    assert _python(code, ROBUSTFLOW_ISA=slowest).stdout.strip() == slowest


def test_instruction_sets_agree() -> None:
    """To a few roundings: they share the formulas, but not contraction nor the order of sums."""
    if not _native.load():
        pytest.skip("about the CPU kernels, which are not built")
    call = sample(RQ(8, "linear", "softmax"), layout=ROWS)
    found = []
    for isa in robustflow.build_info()["isa_supported"]:
        with Target("cpu", isa=isa).chosen():
            found.append(call.gradients())
    for other in found[1:]:
        torch.testing.assert_close(other, found[0], rtol=2e-5, atol=2e-5)
