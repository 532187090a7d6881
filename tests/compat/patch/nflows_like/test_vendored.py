"""patch_module: copies of nflows' functions, and what only looks like one."""

from __future__ import annotations

import inspect
from types import FunctionType, ModuleType
from typing import Any

import pytest
import torch
from torch import Tensor

from robustflow import compat
from tests.compat.served import counts

splines = pytest.importorskip("nflows.transforms.splines.rational_quadratic")
NAMES = ("unconstrained_rational_quadratic_spline", "rational_quadratic_spline")


def copy_of(source: str) -> Any:
    """A package's own copy, made of nflows' source."""
    module = ModuleType("vendored")
    exec(source, vars(module))
    return module


def source() -> str:
    return inspect.getsource(splines)


def tensors(count: int = 40) -> list[Tensor]:
    return [torch.randn(count, *size).double() for size in ((), (5,), (5,), (4,))]


def test_a_copy() -> None:
    module = copy_of(source())
    arguments = tensors()
    function = module.unconstrained_rational_quadratic_spline
    expected = function(*arguments, tail_bound=3.0)
    with compat.patch_module(module) as handle:
        assert handle.name == "vendored"
        torch.testing.assert_close(function(*arguments, tail_bound=3.0), expected)
        assert compat.patched() == {"vendored": counts(kernel=1)}
        compat.unpatch("vendored")
        assert compat.patched() == {}
    assert isinstance(function, FunctionType)


def test_another_function_of_that_name_and_signature_is_refused() -> None:
    """As in madnis: other derivatives."""
    module = copy_of(source().replace("F.softplus(", "torch.exp("))
    code = [getattr(module, name).__code__ for name in NAMES]
    with pytest.raises(compat.PatchError, match=r"differ by up to [0-9.]+\.") as refused:
        compat.patch_module(module)
    assert float(str(refused.value).split()[-1].rstrip(".")) > 0.01
    assert [getattr(module, name).__code__ for name in NAMES] == code


def test_a_function_that_differs_in_one_direction_only_is_refused() -> None:
    module = copy_of(source().replace("return outputs, -logabsdet", "return outputs, logabsdet"))
    with pytest.raises(compat.PatchError, match="differ by up to"):
        compat.patch_module(module)


def test_identity_init_of_the_main_branch() -> None:
    """A parameter that changes the softplus: served by the library's own code where it is on."""
    text = source()
    text = text.replace(
        "min_derivative=DEFAULT_MIN_DERIVATIVE,\n):",
        "min_derivative=DEFAULT_MIN_DERIVATIVE,\n    enable_identity_init=False,\n):",
    )
    text = text.replace(
        "min_derivative=min_derivative,\n        )",
        "min_derivative=min_derivative,\n            enable_identity_init=enable_identity_init,\n"
        "        )",
    )
    text = text.replace(
        "F.softplus(unnormalized_derivatives)",
        "F.softplus(unnormalized_derivatives, "
        "beta=np.log(2) / (1 - min_derivative) if enable_identity_init else 1)",
    )
    module = copy_of(text)
    arguments = tensors()
    function = module.unconstrained_rational_quadratic_spline
    for on in (False, True):
        expected = function(*arguments, enable_identity_init=on)
        with compat.patch_module(module):
            found = function(*arguments, enable_identity_init=on)
            assert compat.patched()["vendored"] == counts(kernel=int(not on), fallback=int(on))
        torch.testing.assert_close(found, expected)


def test_a_copy_without_one_of_the_two() -> None:
    module = copy_of(source())
    del module.unconstrained_rational_quadratic_spline
    x = torch.rand(9).double()
    with compat.patch_module(module):
        module.rational_quadratic_spline(x, *(torch.randn(9, n).double() for n in (5, 5, 6)))
        assert compat.patched()["vendored"]["kernel"] == 1
