"""Handles: nesting, threads, errors, counts."""

from __future__ import annotations

import importlib
import logging
import threading
from contextlib import nullcontext
from dataclasses import dataclass
from types import ModuleType
from typing import Any

import pytest
import torch

import robustflow
from robustflow import compat
from robustflow._transforms import MAX_BINS
from tests.compat.served import counts

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
    with pytest.raises(
        ValueError, match="got 'empty'"
    ):  # it was not patched, so its name is unknown
        compat.unpatch("empty")


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


@pytest.mark.parametrize("why", ["chosen", "no native library", "too many bins"])
def test_the_reference_is_counted_as_such(why: str, monkeypatch: pytest.MonkeyPatch) -> None:
    bins = MAX_BINS + 1 if why == "too many bins" else 5
    if why == "no native library":
        monkeypatch.setattr("robustflow._native._library", None)
    choice = robustflow.use_backend("reference") if why == "chosen" else nullcontext()
    options = {"min_bin_width": 1e-4, "min_bin_height": 1e-4}
    tensors = [torch.randn(7, *size) for size in ((), (bins,), (bins,), (bins - 1,))]
    expected = FUNCTION(*tensors, **options)
    with compat.patch("nflows"), choice:
        found = FUNCTION(*tensors, **options)
        assert compat.patched() == {"nflows": counts(reference=1)}
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)


@dataclass
class Faulty:
    """A change whose undo fails for as long as it is told to."""

    fails: bool = True
    undone: int = 0

    def apply(self) -> None:
        pass

    def undo(self) -> None:
        if self.fails:
            raise ZeroDivisionError
        self.undone += 1


@pytest.fixture
def faulty(monkeypatch: pytest.MonkeyPatch) -> Faulty:
    """In the middle of nflows' changes, some of which are undone before and some after it."""
    nflows = importlib.import_module("robustflow.compat._patch.nflows")
    change, changes = Faulty(), nflows.changes

    def with_fault() -> list[Any]:
        made = changes()
        return [made[0], change, *made[1:]]

    monkeypatch.setattr(nflows, "changes", with_fault)
    return change


def test_an_undo_that_fails_stops_no_other(faulty: Faulty) -> None:
    functions = [change.function for change in nflows_changes()]
    own = [function.__code__ for function in functions]
    handle = compat.patch("nflows")
    with pytest.raises(ZeroDivisionError):
        handle.restore()
    assert [function.__code__ for function in functions] == own
    assert compat.patched() == {"nflows": counts()}  # something of it is still in force
    with compat.patch("nflows"):  # all of it again
        FUNCTION(*arguments())
        assert compat.patched() == {"nflows": counts(kernel=1)}
        faulty.fails = False
    assert faulty.undone == 1 and compat.patched() == {}
    assert [function.__code__ for function in functions] == own


def test_unpatch_tries_again(faulty: Faulty) -> None:
    handle = compat.patch("nflows")
    FUNCTION(*arguments())
    with pytest.raises(ZeroDivisionError):
        compat.unpatch("nflows")
    with compat.patch("nflows"):
        handle.restore()  # of the patch before: not of this one
        FUNCTION(*arguments())
        assert compat.patched() == {"nflows": counts(kernel=1)}
        compat.patch("nflows")
    with pytest.raises(ZeroDivisionError):
        compat.unpatch("nflows")
    faulty.fails = False
    compat.unpatch("nflows")
    assert compat.patched() == {} and faulty.undone == 1


def test_a_change_that_cannot_be_made_leaves_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    changes = nflows_changes()
    functions = [change.function for change in changes]
    own = [function.__code__ for function in functions]

    def fail() -> None:
        raise ZeroDivisionError

    monkeypatch.setattr(changes[-1], "apply", fail)
    nflows = importlib.import_module("robustflow.compat._patch.nflows")
    monkeypatch.setattr(nflows, "changes", lambda: changes)
    with pytest.raises(ZeroDivisionError):
        compat.patch("nflows")
    assert [function.__code__ for function in functions] == own and compat.patched() == {}


def nflows_changes() -> list[Any]:
    made: list[Any] = importlib.import_module("robustflow.compat._patch.nflows").changes()
    return [change for change in made if hasattr(change, "function")]


def test_a_fallback_is_counted_and_logged_once(caplog: pytest.LogCaptureFixture) -> None:
    compat._patch.counts._logged.clear()
    tensors = arguments(derivatives=6)  # K + 1, which nflows' own tests pass with linear tails
    expected = FUNCTION(*tensors, tail_bound=3.0)
    with compat.patch("nflows"), caplog.at_level(logging.DEBUG, "robustflow.compat"):
        for _ in range(3):
            found = FUNCTION(*tensors, tail_bound=3.0)
        assert compat.patched() == {"nflows": counts(fallback=3)}
    torch.testing.assert_close(found, expected, rtol=0, atol=0)
    assert len(caplog.records) == 1
    assert "nflows: the library's own unconstrained_rational_quadratic_spline" in caplog.text
