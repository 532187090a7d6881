"""Handles: nesting, threads, errors, counts."""

from __future__ import annotations

import logging
import threading
from types import ModuleType
from typing import Any

import pytest
import torch

from robustflow import compat

splines = pytest.importorskip("nflows.transforms.splines.rational_quadratic")
FUNCTION = splines.unconstrained_rational_quadratic_spline


def arguments(count: int = 7, derivatives: int = 4) -> list[torch.Tensor]:
    return [torch.randn(count, *size) for size in ((), (5,), (5,), (derivatives,))]


def test_nested_uses_are_counted() -> None:
    own = FUNCTION.__code__
    outer = compat.patch("nflows")
    with compat.patch("nflows") as inner:
        assert inner.name == "nflows"
        FUNCTION(*arguments())
    assert FUNCTION.__code__ is not own and compat.patched()["nflows"]["kernel"] == 1
    inner.restore()  # a second time: nothing
    assert FUNCTION.__code__ is not own
    outer.restore()
    assert FUNCTION.__code__ is own and compat.patched() == {}


def test_unpatch_ends_every_use() -> None:
    own = FUNCTION.__code__
    handles = [compat.patch("nflows") for _ in range(3)]
    compat.unpatch("nflows")
    assert FUNCTION.__code__ is own and compat.patched() == {}
    with compat.patch("nflows"):
        handles[0].restore()  # of an earlier patch: not of this one
        assert "nflows" in compat.patched()
    compat.unpatch("nflows")


def test_an_exception_inside_restores() -> None:
    own = FUNCTION.__code__
    with pytest.raises(KeyError), compat.patch("nflows"):
        raise KeyError
    assert FUNCTION.__code__ is own


def test_threads_patch_call_and_restore() -> None:
    own = FUNCTION.__code__
    tensors = arguments(64)
    expected = FUNCTION(*tensors)
    failures: list[BaseException] = []

    def work() -> None:
        try:
            for _ in range(15):
                with compat.patch("nflows"):
                    found = FUNCTION(*tensors)
                torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)
        except BaseException as error:
            failures.append(error)

    threads = [threading.Thread(target=work) for _ in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not failures
    assert FUNCTION.__code__ is own and compat.patched() == {}


def test_libraries_that_share_a_function_share_the_change(monkeypatch: Any) -> None:
    """As glasflow does with GLASFLOW_USE_NFLOWS: two names, one set of functions."""
    own = FUNCTION.__code__
    first = compat.patch("nflows")
    second = compat.patch_module(splines)
    first.restore()
    FUNCTION(*arguments())
    assert compat.patched()[splines.__name__]["kernel"] == 1
    second.restore()
    assert FUNCTION.__code__ is own


def test_unknown_and_missing_libraries() -> None:
    with pytest.raises(ValueError, match=r"'nflows', 'normflows'.*got 'nflow'"):
        compat.patch("nflow")
    with pytest.raises(TypeError, match="module"):
        compat.patch_module("nflows")  # type: ignore[arg-type]
    with pytest.raises(compat.PatchError, match="defines neither"):
        compat.patch_module(ModuleType("empty"))


def test_a_missing_library_says_what_to_install(monkeypatch: Any) -> None:
    import sys

    monkeypatch.setitem(sys.modules, "glasflow", None)
    with pytest.raises(compat.PatchError, match=r"cannot be imported.*install it"):
        compat.patch("glasflow")


def test_another_signature_is_refused(monkeypatch: Any) -> None:
    def rational_quadratic_spline(inputs: Any, widths: Any, heights: Any) -> Any:
        return inputs, widths, heights

    own = FUNCTION.__code__
    monkeypatch.setattr(splines, "rational_quadratic_spline", rational_quadratic_spline)
    with pytest.raises(compat.PatchError, match="has the parameters"):
        compat.patch("nflows")
    assert FUNCTION.__code__ is own and compat.patched() == {}


def test_a_fallback_is_counted_and_logged_once(caplog: pytest.LogCaptureFixture) -> None:
    compat._registry._logged.clear()
    tensors = arguments(derivatives=6)  # K + 1, which nflows' own tests pass with linear tails
    expected = FUNCTION(*tensors, tail_bound=3.0)
    with compat.patch("nflows"), caplog.at_level(logging.DEBUG, "robustflow.compat"):
        for _ in range(3):
            found = FUNCTION(*tensors, tail_bound=3.0)
        assert compat.patched() == {"nflows": {"kernel": 0, "fallback": 3}}
    torch.testing.assert_close(found, expected, rtol=0, atol=0)
    assert len(caplog.records) == 1
    assert "nflows: the library's own unconstrained_rational_quadratic_spline" in caplog.text
