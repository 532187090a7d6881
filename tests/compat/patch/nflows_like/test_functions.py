"""nflows' two functions and normflows' copies of them, case by case."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor

from robustflow import compat
from tests.compat.served import counts

MODULES = {
    "nflows": "nflows.transforms.splines.rational_quadratic",
    "glasflow": "glasflow.nflows.transforms.splines.rational_quadratic",
    "normflows": "normflows.utils.splines",
}
BOUND = 3.0


@pytest.fixture(params=MODULES)
def library(request: pytest.FixtureRequest) -> tuple[str, Any]:
    pytest.importorskip(request.param)
    return request.param, pytest.importorskip(MODULES[request.param])


def double(*shape: int, scale: float = 1.0) -> Tensor:
    return (scale * torch.randn(*shape, dtype=torch.float64)).requires_grad_()


def groups(shape: tuple[int, ...], num_derivatives: int, num_bins: int = 5) -> list[Tensor]:
    return [double(*shape, size, scale=1.5) for size in (num_bins, num_bins, num_derivatives)]


def with_gradients(function: Any, *tensors: Tensor, **options: Any) -> tuple[Tensor, ...]:
    y, logabsdet = function(*tensors, **options)
    cotangents = [torch.linspace(-1, 2, y.numel(), dtype=y.dtype).view_as(y)] * 2
    return y, logabsdet, *torch.autograd.grad((y, logabsdet), tensors, cotangents)


def compare(name: Any, function: Any, *tensors: Tensor, kernel: Any = 1, **options: Any) -> None:
    expected = with_gradients(function, *tensors, **options)
    with compat.patch(name):
        found = with_gradients(function, *tensors, **options)
        assert compat.patched()[name] == counts(kernel=kernel, fallback=1 - kernel)
    torch.testing.assert_close(found, expected, rtol=1e-7, atol=1e-8)


@pytest.mark.parametrize("inverse", [False, True])
def test_linear_tails(library: tuple[str, Any], inverse: bool) -> None:
    name, module = library
    function = module.unconstrained_rational_quadratic_spline
    settings = {"min_bin_width": 2e-3, "min_bin_height": 3e-3, "min_derivative": 4e-3}
    tensors = [double(40, 3, scale=2.0), *groups((40, 3), 4)]
    compare(name, function, *tensors, inverse=inverse, tail_bound=BOUND, **settings)


@pytest.mark.parametrize("inverse", [False, True])
def test_a_box(library: tuple[str, Any], inverse: bool) -> None:
    name, module = library
    low, high = (-1.0, 1.5) if inverse else (-2.0, 2.0)
    x = (low + (high - low) * torch.rand(40, dtype=torch.float64)).requires_grad_()
    edges = {"left": -2.0, "right": 2.0, "bottom": -1.0, "top": 1.5}
    function = module.rational_quadratic_spline
    compare(name, function, x, *groups((40,), 6), inverse=inverse, **edges)


@pytest.mark.parametrize("edges", [0.7, torch.tensor([0.7])], ids=["number", "tensor"])
def test_a_box_holds_a_chain_in_half_precision(library: tuple[str, Any], edges: Any) -> None:
    """0.7 becomes 0.7002 in float16, and what is rounded to that is inside."""
    name, module = library
    x = torch.linspace(0.0, 0.7, 200).half()
    box = {"left": 0.0, "right": edges, "bottom": 0.0, "top": edges}
    with compat.patch(name):
        for _ in range(4):
            tensors = [2 * torch.randn(200, size).half() for size in (5, 5, 6)]
            x, logabsdet = module.rational_quadratic_spline(x, *tensors, **box)
            assert bool(x.isfinite().all() and logabsdet.isfinite().all())
        assert compat.patched()[name] == {"kernel": 4, "reference": 0, "fallback": 0}


def test_the_defaults(library: tuple[str, Any]) -> None:
    name, module = library
    tensors = [double(40), *groups((40,), 4)]
    compare(name, module.unconstrained_rational_quadratic_spline, *tensors)
    x = torch.rand(40, dtype=torch.float64).requires_grad_()
    compare(name, module.rational_quadratic_spline, x, *groups((40,), 6))


def test_an_input_outside_a_box_raises_what_the_library_raises(library: tuple[str, Any]) -> None:
    name, module = library
    x = torch.tensor([0.5, 1.5], dtype=torch.float64)
    tensors = [x, *groups((2,), 6)]
    with pytest.raises(Exception) as own:
        module.rational_quadratic_spline(*tensors)
    with compat.patch(name), pytest.raises(type(own.value)) as patched:
        module.rational_quadratic_spline(*tensors)
    assert str(patched.value) == str(own.value)
    if name != "normflows":
        assert own.type.__name__ == "InputOutsideDomain"


def test_an_inverse_outside_the_image_of_the_box(library: tuple[str, Any]) -> None:
    """Inside [left, right], which nflows asks about, and outside [bottom, top], where y lives."""
    name, module = library
    x = torch.tensor([0.2, 1.8], dtype=torch.float64)
    options = {"inverse": True, "left": -2.0, "right": 2.0, "bottom": -1.0, "top": 1.5}
    with compat.patch(name):
        with pytest.raises(RuntimeError, match="out of bounds"):
            module.rational_quadratic_spline(x, *groups((2,), 6), **options)
        assert compat.patched()[name] == counts(fallback=1)


def test_documented_errors_stay(library: tuple[str, Any]) -> None:
    name, module = library
    function = module.unconstrained_rational_quadratic_spline
    tensors = [double(4), *groups((4,), 4)]
    with compat.patch(name):
        with pytest.raises(RuntimeError, match="cubic tails are not implemented"):
            function(*tensors, tails="cubic")
        with pytest.raises(ValueError, match="Minimal bin width too large"):
            function(*tensors, min_bin_width=0.3)
        with pytest.raises(ValueError, match="Minimal bin height too large"):
            function(*tensors, min_bin_height=0.3)


def test_linear_tails_with_too_many_derivatives(library: tuple[str, Any]) -> None:
    """K + 1, as in the libraries' own tests: no error, and not the first K - 1 either."""
    name, module = library
    tensors = [double(40), *groups((40,), 6)]
    function = module.unconstrained_rational_quadratic_spline
    compare(name, function, *tensors, tail_bound=BOUND, kernel=0)


@pytest.mark.parametrize("inverse", [False, True])
def test_circular_tails(inverse: bool) -> None:
    splines = pytest.importorskip(MODULES["normflows"])
    tensors = [double(40, scale=2.0), *groups((40,), 5)]
    with torch.no_grad():
        tensors[0][:2] = torch.tensor([-math.pi, math.pi])  # which belong to the spline
    options = {"inverse": inverse, "tails": "circular", "tail_bound": math.pi}
    compare("normflows", splines.unconstrained_rational_quadratic_spline, *tensors, **options)


@pytest.mark.parametrize("tails", [["linear", "circular"], ["linear"] * 2, ["circular"] * 2])
@pytest.mark.parametrize("inverse", [False, True])
def test_a_list_of_tails(tails: list[str], inverse: bool) -> None:
    splines = pytest.importorskip(MODULES["normflows"])
    x = (5.8 * torch.rand(40, 2, dtype=torch.float64) - 2.9).requires_grad_()
    options = {"inverse": inverse, "tails": tails, "tail_bound": BOUND}
    function = splines.unconstrained_rational_quadratic_spline
    compare("normflows", function, x, *groups((40, 2), 6), **options)


def test_a_list_of_tails_is_the_identity_outside() -> None:
    """normflows gives 0 there, which no inverse brings back."""
    splines = pytest.importorskip(MODULES["normflows"])
    tensors = [torch.full((1, 2), 10.0), *(torch.randn(1, 2, size) for size in (5, 5, 6))]
    options = {"tails": ["linear", "circular"], "tail_bound": BOUND}
    y, _ = splines.unconstrained_rational_quadratic_spline(*tensors, **options)
    assert y.tolist() == [[0.0, 0.0]]
    with compat.patch("normflows"):
        y, logabsdet = splines.unconstrained_rational_quadratic_spline(*tensors, **options)
    assert y.tolist() == [[10.0, 10.0]] and logabsdet.tolist() == [[0.0, 0.0]]


def test_a_bound_for_each_dimension() -> None:
    splines = pytest.importorskip(MODULES["normflows"])
    tensors = [double(40, 2, scale=2.0), *groups((40, 2), 4)]
    options = {"tail_bound": torch.tensor([1.5, 4.0], dtype=torch.float64)}
    compare("normflows", splines.unconstrained_rational_quadratic_spline, *tensors, **options)


def between_steep_knots(count: int = 20000) -> list[Tensor]:
    """Middle bins [-1, 1] whose derivatives are 7e4 and 150, near the y where both weigh the same.

    The library's discriminant is there the difference of two large numbers.
    """
    first, second = 7e4, 150.0
    share = first / (first + second) * (1 + 1e-4 * (torch.rand(count) - 0.5))
    widths = torch.randn(count, 3)
    return [
        2 * share - 1,
        widths,
        torch.zeros(count, 3),
        torch.tensor([first, second]).expand(count, 2),
    ]


def test_the_assertion_on_the_discriminant_goes(library: tuple[str, Any]) -> None:
    name, module = library
    function = module.unconstrained_rational_quadratic_spline
    tensors = between_steep_knots()
    options = {"inverse": True, "tail_bound": BOUND}
    with pytest.raises(AssertionError):
        function(*tensors, **options)
    with compat.patch(name):
        x, logabsdet = function(*tensors, **options)
        back, _ = function(x, *tensors[1:], tail_bound=BOUND)
    assert bool(logabsdet.isfinite().all()) and bool((x.abs() < BOUND).all())
    torch.testing.assert_close(back, tensors[0], rtol=0, atol=1e-6)


def test_nan_stays_nan(library: tuple[str, Any]) -> None:
    """Theirs returns a log-determinant of 0 for it."""
    name, module = library
    x = torch.tensor([math.nan, 0.5])
    tensors = [torch.randn(2, size) for size in (5, 5, 4)]
    with compat.patch(name):
        y, logabsdet = module.unconstrained_rational_quadratic_spline(x, *tensors)
    assert y.isnan().tolist() == [True, False]
    assert logabsdet.isnan().tolist() == [True, False]


def test_gradients_outside_the_box_are_the_tails(library: tuple[str, Any]) -> None:
    name, module = library
    x = torch.tensor([-1e30, -4.0, 4.0, 1e30]).requires_grad_()
    tensors = [(100 * torch.randn(4, size)).requires_grad_() for size in (5, 5, 4)]
    with compat.patch(name):
        y, logabsdet = module.unconstrained_rational_quadratic_spline(x, *tensors)
        gradients = torch.autograd.grad(y.sum() + logabsdet.sum(), [x, *tensors])
    assert gradients[0].tolist() == [1.0] * 4
    assert all(not gradient.any() for gradient in gradients[1:])


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_dtypes_are_the_librarys(library: tuple[str, Any], dtype: torch.dtype) -> None:
    name, module = library
    x, *rest = (torch.rand(9, *size).to(dtype) for size in ((), (5,), (5,), (4,), (6,)))
    calls = [
        (module.unconstrained_rational_quadratic_spline, (x, *rest[:3])),
        (module.rational_quadratic_spline, (x, *rest[:2], rest[3])),
    ]
    for function, tensors in calls:
        expected = [result.dtype for result in function(*tensors)]
        with compat.patch(name):
            assert [result.dtype for result in function(*tensors)] == expected


@pytest.mark.parametrize("change", ["min_bin_width", "min_derivative", "integers", "shapes"])
def test_what_the_kernels_do_not_support_is_left_to_the_library(change: str) -> None:
    splines = pytest.importorskip(MODULES["normflows"])
    tensors: list[Tensor] = [torch.randn(6, *size) for size in ((), (5,), (5,), (4,))]
    options: dict[str, Any] = {}
    if change == "integers":
        tensors[0] = torch.tensor([0, 1, -1, 0, 1, 0])
        tensors[0] = tensors[0].half().to(torch.int64)
    elif change == "shapes":
        tensors[1] = tensors[1][:1]
    else:
        options[change] = 0.0
    function = splines.unconstrained_rational_quadratic_spline

    def outcome() -> Any:
        try:
            return function(*tensors, **options)
        except Exception as error:
            return repr(error)

    expected = outcome()
    with compat.patch("normflows"):
        found = outcome()
        assert compat.patched()["normflows"] == counts(fallback=1)
    if isinstance(expected, str):
        assert found == expected
    else:
        torch.testing.assert_close(found, expected, rtol=0, atol=0)


def test_no_inputs(library: tuple[str, Any]) -> None:
    name, module = library
    tensors = [torch.randn(0, *size) for size in ((), (5,), (5,), (4,))]
    with compat.patch(name):
        y, logabsdet = module.unconstrained_rational_quadratic_spline(*tensors)
    assert y.shape == logabsdet.shape == (0,)


@pytest.mark.filterwarnings("ignore::torch.jit.TracerWarning")
def test_a_traced_call_runs_without_robustflow() -> None:
    splines = pytest.importorskip(MODULES["nflows"])

    def draw(size: int) -> tuple[Tensor, ...]:
        return tuple(2 * torch.randn(size, *shape) for shape in ((), (5,), (5,), (4,)))

    def call(*args: Tensor) -> Any:
        return splines.unconstrained_rational_quadratic_spline(*args)

    with compat.patch("nflows"):
        traced = torch.jit.trace(call, draw(6))
    assert "robustflow::" not in str(traced.graph)
    tensors = draw(9)  # another size than it was traced with
    torch.testing.assert_close(traced(*tensors), call(*tensors), rtol=1e-4, atol=1e-5)
