"""torch.func: the same as the library's own code, which masks keep from vmap."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.func import grad, hessian, jacfwd, jacrev, jvp, vmap

from robustflow import compat
from tests.compat.served import counts

CALLS: dict[str, tuple[str, str]] = {
    "nflows": ("nflows", "nflows.transforms.splines.rational_quadratic"),
    "normflows": ("normflows", "normflows.utils.splines"),
    "zuko": ("zuko", "zuko.transforms"),
}


def loss(name: str) -> Callable[..., Tensor]:
    module = pytest.importorskip(CALLS[name][1])

    def value(x: Tensor, w: Tensor, h: Tensor, d: Tensor) -> Tensor:
        if name == "zuko":
            y, ladj = module.MonotonicRQSTransform(w, h, d, bound=3.0).call_and_ladj(x)
        else:
            y, ladj = module.unconstrained_rational_quadratic_spline(x, w, h, d, tail_bound=3.0)
        return (y.sin() + 2 * ladj).sum()

    return value


def inputs(*batch: int) -> tuple[Tensor, ...]:
    sizes = ((2,), (2, 4), (2, 4), (2, 3))
    return tuple(torch.randn(*batch, *size, dtype=torch.float64) for size in sizes)


ALL = tuple(range(4))
TRANSFORMS: dict[str, Callable[[Any, tuple[Tensor, ...]], Any]] = {
    "grad": lambda f, args: grad(f, ALL)(*args),
    "jvp": lambda f, args: jvp(f, args, tuple(torch.ones_like(a) for a in args)),
    "jacrev": lambda f, args: jacrev(f, ALL)(*args),
    "jacfwd": lambda f, args: jacfwd(f, (0, 3))(*args),
    "hessian": lambda f, args: hessian(f, (0, 3))(*args),
}


@pytest.mark.parametrize("transform", TRANSFORMS)
@pytest.mark.parametrize("name", CALLS)
def test_transform(name: str, transform: str) -> None:
    function, args = loss(name), inputs()
    # jacfwd and hessian map over masks, which the libraries cannot: loop by autograd instead.
    if transform in ("jacfwd", "hessian") and name != "zuko":
        if transform == "jacfwd":
            expected = torch.autograd.functional.jacobian(
                lambda x, d: function(x, *args[1:3], d), (args[0], args[3])
            )
        else:
            expected = torch.autograd.functional.hessian(
                lambda x, d: function(x, *args[1:3], d), (args[0], args[3])
            )
    else:
        expected = TRANSFORMS[transform](function, args)
    with compat.patch(CALLS[name][0]):
        found = TRANSFORMS[transform](function, args)
        assert compat.patched()[CALLS[name][0]] == counts(reference=1)
    torch.testing.assert_close(found, expected, rtol=1e-7, atol=1e-8)


@pytest.mark.parametrize("name", CALLS)
def test_vmap_of_grad(name: str) -> None:
    function, args = loss(name), inputs(5)
    rows = [grad(function, ALL)(*(a[i] for a in args)) for i in range(5)]
    expected = tuple(torch.stack(parts) for parts in zip(*rows, strict=True))
    with compat.patch(CALLS[name][0]):
        found = vmap(grad(function, ALL))(*args)
        assert compat.patched()[CALLS[name][0]] == counts(reference=1)
        vmap(function)(*args)
        assert compat.patched()[CALLS[name][0]] == counts(reference=1, kernel=1)
    torch.testing.assert_close(found, expected, rtol=1e-7, atol=1e-8)
