"""The transforms of torch.distributions: values, log-determinants, shapes, gradients, errors."""

from __future__ import annotations

import copy
import pickle
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import pytest
import torch
from torch import Size, Tensor
from torch.distributions import AffineTransform, constraints

from robustflow import functional as F
from robustflow import reference
from robustflow._transforms import default_clamp
from robustflow.distributions import (
    ConditionalAffineTransform,
    CubicBSplineTransform,
    ModifiedRQSplineTransform,
    RQSplineTransform,
)
from robustflow.distributions.elementwise import ElementwiseTransform
from robustflow.ops.registry import Transform

BINS = 5


@dataclass(frozen=True)
class Case:
    """A transform: its constructor, the parameters an element takes, and its reference."""

    name: str
    make: Callable[..., ElementwiseTransform]
    trailing: tuple[tuple[int, ...], ...]
    reference: Callable[..., tuple[Tensor, Tensor]]
    low: float = -2.0  # where x is drawn from
    high: float = 2.0

    def parameters(self, *batch: int) -> tuple[Tensor, ...]:
        return tuple(
            torch.randn((*batch, *trailing), dtype=torch.float64).requires_grad_()
            for trailing in self.trailing
        )

    def x(self, *shape: int) -> Tensor:
        return self.low + (self.high - self.low) * torch.rand(shape, dtype=torch.float64)


def modified_reference(
    x: Tensor, params: Tensor, inverse: bool, *, half: float, derivative: str
) -> tuple[Tensor, Tensor]:
    return reference.modified_rq(x, params, inverse, -half, half, 1e-3, 1e-3, derivative, x.dim())


def rq_reference(
    x: Tensor,
    widths: Tensor,
    heights: Tensor,
    derivatives: Tensor,
    inverse: bool,
    *,
    tails: Any,
    kind: Any,
    box: tuple[float, float, float, float],
) -> tuple[Tensor, Tensor]:
    return reference.rq(
        x,
        widths,
        heights,
        derivatives,
        None,
        BINS,
        inverse,
        tails,
        kind,
        *box,
        1e-3,
        1e-3,
        1e-3,
        1.0,
        x.dim(),
    )


def affine_reference(
    x: Tensor, params: Tensor, *rest: Any, scale: str, reciprocal: bool
) -> tuple[Tensor, Tensor]:
    *log_scale, inverse = rest
    clamp = default_clamp(scale)
    shift, logits = params, None
    if log_scale:
        shift, logits = params.unsqueeze(-1), log_scale[0].unsqueeze(-1)
    return reference.affine(
        x, shift, logits, inverse, scale, 1e-4, clamp, True, reciprocal, x.dim()
    )


def rq_case(tails: Any, extra: int, kind: Any, **settings: Any) -> Case:
    box = (-1.5, 1.5, -1.5, 1.5)
    if tails is None:
        box = (0.0, 1.0, -1.0, 3.0)
    else:
        settings["tail_bound"] = 1.5
    return Case(
        f"rq-{tails}-{kind}",
        partial(RQSplineTransform, tails=tails, parametrization=kind, **settings),
        ((BINS,), (BINS,), (BINS + extra,)),
        partial(rq_reference, tails=tails, kind=kind, box=box),
        *((0.0, 1.0) if tails is None else ()),
    )


CASES = [
    Case(
        "modified",
        ModifiedRQSplineTransform,
        ((4,),),
        partial(modified_reference, half=0.5, derivative="exp"),
    ),
    Case(
        "modified-softclip",
        partial(ModifiedRQSplineTransform, interval=(-1.5, 1.5), derivative="softclip"),
        ((4,),),
        partial(modified_reference, half=1.5, derivative="softclip"),
    ),
    rq_case("linear", -1, "softmax"),
    rq_case("circular", 0, "softclip"),
    rq_case(None, 1, "softmax", left=0.0, right=1.0, bottom=-1.0, top=3.0),
    Case(
        "affine",
        ConditionalAffineTransform,
        ((2,),),
        partial(affine_reference, scale="sigmoid", reciprocal=False),
    ),
    Case(
        "affine-separate",
        partial(ConditionalAffineTransform, scale="softclip_exp", reciprocal=True),
        ((), ()),
        partial(affine_reference, scale="softclip_exp", reciprocal=True),
    ),
    Case(
        "cubic_bspline",
        partial(CubicBSplineTransform, interval=(-1.5, 1.5)),
        ((11,),),
        lambda x, params, inverse: reference.cubic_bspline(
            x, params, inverse, -1.5, 1.5, 1e-2, x.dim()
        ),
    ),
]
each_case = pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
each_kind = pytest.mark.parametrize(
    "case", [CASES[0], CASES[2], CASES[5]], ids=lambda case: case.name
)


def close(actual: Any, expected: Any, tolerance: float = 1e-9) -> None:
    torch.testing.assert_close(actual, expected, atol=tolerance, rtol=tolerance)


@each_case
def test_values_are_the_references_in_both_directions(case: Case) -> None:
    parameters, x = case.parameters(4, 3), case.x(7, 4, 3)
    transform = case.make(*parameters)
    y, ladj = transform.call_and_ladj(x)
    close((y, ladj), case.reference(x, *parameters, False))
    back, minus = transform.inv.call_and_ladj(y.detach())
    close((back, minus), case.reference(y.detach(), *parameters, True))
    close((transform(x), transform.inv(y)), (y, x))
    close(transform.log_abs_det_jacobian(x, y), ladj)
    close(transform.inv.log_abs_det_jacobian(y, x), -ladj)


@each_case
def test_log_determinant_is_autograds(case: Case) -> None:
    transform, x = case.make(*case.parameters(6)), case.x(6).requires_grad_()
    y, ladj = transform.call_and_ladj(x)
    (derivative,) = torch.autograd.grad(y.sum(), x)
    assert (derivative > 0).all()  # as sign and bijective say
    assert transform.sign == 1 and transform.bijective
    close(ladj, derivative.log())
    y = y.detach().requires_grad_()
    back, ladj = transform.inv.call_and_ladj(y)
    (derivative,) = torch.autograd.grad(back.sum(), y)
    close(ladj, derivative.log())


@each_case
@pytest.mark.parametrize(
    ("batch", "shape"),
    [
        ((), (3,)),
        ((3,), ()),
        ((3,), (6, 3)),
        ((1, 3), (4, 3)),
        ((4, 1), (2, 4, 3)),
        ((4, 1), (3,)),
        ((2, 1, 3), (1, 4, 1)),
        ((0,), (2, 1)),
        ((), ()),
    ],
    ids=str,
)
@pytest.mark.parametrize("inverse", [False, True], ids=["forward", "inverse"])
def test_broadcasting_equals_expanding(
    case: Case, batch: tuple[int, ...], shape: tuple[int, ...], inverse: bool
) -> None:
    parameters, x = case.parameters(*batch), case.x(*shape)
    full = torch.broadcast_shapes(batch, shape)
    transform = case.make(*parameters)
    assert transform.batch_shape == batch
    assert transform.forward_shape(x.shape) == transform.inverse_shape(x.shape) == full
    if inverse:  # of values in the codomain
        x = transform(x).detach()
    x.requires_grad_()

    def outcome(x: Tensor, *parameters: Tensor) -> list[Tensor]:
        made = case.make(*parameters)
        value, ladj = (made.inv if inverse else made).call_and_ladj(x)
        assert value.shape == ladj.shape == full
        loss = (value * value.cos()).sum() + ladj.sin().sum()
        return [value, ladj, *torch.autograd.grad(loss, (given, *leaves))]

    given, leaves = x, parameters
    expanded = (
        parameter.expand((*full, *trailing))
        for parameter, trailing in zip(parameters, case.trailing, strict=True)
    )
    close(outcome(x, *parameters), outcome(x.expand(full), *(e.clone() for e in expanded)))


def test_separate_parameters_broadcast_against_each_other() -> None:
    widths, heights, derivatives = (torch.randn(*s) for s in ((4, 1, 5), (3, 5), (2, 1, 1, 4)))
    transform = RQSplineTransform(widths, heights, derivatives, tail_bound=torch.full((3,), 2.0))
    assert transform.batch_shape == (2, 4, 3)
    x = torch.randn(3)
    y, ladj = transform.call_and_ladj(x)
    full = (2, 4, 3)
    expected = F.rq_spline(
        x.expand(full),
        widths.expand(*full, 5).contiguous(),
        heights.expand(*full, 5).contiguous(),
        derivatives.expand(*full, 4).contiguous(),
        tail_bound=2.0,
    )
    close((y, ladj), expected, 1e-6)
    shift = ConditionalAffineTransform(torch.randn(3), torch.randn(4, 1))
    assert shift.batch_shape == (4, 3) and shift(torch.randn(3)).shape == (4, 3)


@each_kind
def test_shared_parameters_reach_the_operator_as_they_are(
    case: Case, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[Tensor] = []
    original = Transform.apply

    def spy(transform: Transform, x: Tensor, *args: Any) -> Any:
        seen.extend(arg for arg in args if isinstance(arg, Tensor))
        return original(transform, x, *args)

    monkeypatch.setattr(Transform, "apply", spy)
    parameters = case.parameters(3)
    case.make(*parameters)(case.x(50, 20, 3))
    assert [s.data_ptr() for s in seen] == [p.data_ptr() for p in parameters]
    assert [s.numel() for s in seen] == [p.numel() for p in parameters]


@pytest.mark.parametrize("shift_first", [False, True])
def test_affine_is_torchs(shift_first: bool) -> None:
    params, x = torch.randn(3, 2, dtype=torch.float64), torch.randn(5, 3, dtype=torch.float64)
    shift, scale = params[:, 0], params[:, 1].exp()
    ours = ConditionalAffineTransform(params, scale="exp", shift_first=shift_first)
    theirs = AffineTransform(shift * scale if shift_first else shift, scale)
    y = theirs(x)
    close(ours(x), y)
    close(ours.inv(y), theirs.inv(y))
    close(ours.log_abs_det_jacobian(x, y), theirs.log_abs_det_jacobian(x, y))
    close(ours.inv.log_abs_det_jacobian(y, x), theirs.inv.log_abs_det_jacobian(y, x))
    assert ours.forward_shape(Size([5, 1])) == theirs.forward_shape(Size([5, 1]))
    assert (ours.domain, ours.codomain) == (theirs.domain, theirs.codomain)


@each_case
def test_half_precision_has_a_float32_log_determinant(case: Case) -> None:
    parameters, x = case.parameters(4), case.x(4).bfloat16()
    low = [p.detach().bfloat16() for p in parameters]
    y, ladj = case.make(*low).call_and_ladj(x)
    assert (y.dtype, ladj.dtype) == (torch.bfloat16, torch.float32)
    expected, expected_ladj = case.reference(x.double(), *(p.double() for p in low), False)
    close(y.double(), expected, 1e-2)
    close(ladj.double(), expected_ladj, 1e-4)


def test_constraints() -> None:
    parameters = CASES[4].parameters(3)
    box = CASES[4].make(*parameters)
    constraint: Any
    for constraint, bounds in ((box.domain, (0.0, 1.0)), (box.codomain, (-1.0, 3.0))):
        assert constraint.event_dim == 0
        assert (constraint.lower_bound, constraint.upper_bound) == bounds
    assert [str(box.inv.domain), str(box.inv.codomain)] == [str(box.codomain), str(box.domain)]
    # The edges belong to both, and a value of the domain is mapped into the codomain.
    ends = torch.tensor([[0.0], [1.0], [0.5]])
    assert box.domain.check(ends).all() and box.codomain.check(box(ends)).all()
    close(box(ends)[:2].detach().double(), torch.tensor([[-1.0], [3.0]]).double().expand(2, 3))

    edges = [0.1, 2.0, 3.0]  # 0.1 is no float
    symmetric = RQSplineTransform(*parameters, tails=None, tail_bound=edges)
    edge = torch.tensor(edges, dtype=torch.float64)
    assert symmetric.domain.check(edge).all() and symmetric.domain.check(-edge).all()
    assert not symmetric.domain.check(edge * (1 + 1e-15)).any()
    close(symmetric(edge), edge)
    for case in (*CASES[:4], CASES[5]):
        transform = case.make(*case.parameters())
        assert transform.domain is transform.codomain is constraints.real
        assert transform.event_dim == 0


@each_case
def test_equality_pickle_and_copies(case: Case) -> None:
    parameters, x = case.parameters(3), case.x(3)
    transform = case.make(*parameters)
    transform(x)  # what it keeps must not travel
    assert transform == case.make(*parameters)
    assert transform == case.make(*(p.detach().clone() for p in parameters), cache_size=1)
    assert transform != case.make(*(p + 1 for p in parameters))
    assert transform != case.make(*(p.float() for p in parameters))
    assert transform != case.make(*case.parameters(3, 3))
    assert transform.inv == case.make(*parameters).inv
    assert transform.inv != transform and transform != AffineTransform(0.0, 1.0)
    assert transform.inv.inv is transform
    for cache_size in (0, 1):
        cached = transform.with_cache(cache_size)
        y = cached(x)
        for twin in (pickle.loads(pickle.dumps(cached)), copy.deepcopy(cached)):
            assert twin == cached and type(twin) is type(cached)
            close(twin(x), y)
            assert twin.inv(y) is not x
        twin = copy.deepcopy(cached.inv)
        assert twin == cached.inv
        close(twin(y), x)


def test_settings_count_in_equality() -> None:
    params = torch.randn(3, 4)
    one = ModifiedRQSplineTransform(params)
    assert one != ModifiedRQSplineTransform(params, interval=(-1, 1))
    parameters = CASES[2].parameters(3)
    bound = torch.tensor([1.0, 2.0, 3.0])
    spline = RQSplineTransform(*parameters, tail_bound=bound)
    assert spline == RQSplineTransform(*parameters, tail_bound=bound.clone())
    assert spline != RQSplineTransform(*parameters, tail_bound=bound + 1)
    assert spline != RQSplineTransform(*parameters, tail_bound=1.0)


def test_representation() -> None:
    assert repr(ModifiedRQSplineTransform(torch.zeros(3, 1, 4)).inv) == (
        "Inverse(ModifiedRQSplineTransform(batch_shape=(3, 1)))"
    )
    assert repr(RQSplineTransform(*CASES[2].parameters(3))) == (
        "RQSplineTransform(batch_shape=(3,), num_bins=5, tails='linear')"
    )


def wrong(value: Any) -> Any:
    """A value of a kind that the type checker would refuse."""
    return value


def test_errors_name_the_argument() -> None:
    spline, affine = ModifiedRQSplineTransform, ConditionalAffineTransform
    widths, derivatives = torch.zeros(3, 5), torch.zeros(3, 4)
    calls: list[tuple[Any, type[Exception], str]] = [
        (lambda: spline(torch.zeros(3, 5)), ValueError, "params must have the 4 parameters"),
        (lambda: spline(torch.zeros(())), ValueError, "params must have the 4 parameters"),
        (lambda: spline(torch.zeros(4).long()), TypeError, "params must be float64"),
        (lambda: affine(torch.zeros(3)), ValueError, "params must have the 2 parameters"),
        (lambda: affine(widths, wrong(1.0)), TypeError, "log_scale must be a torch.Tensor"),
        (
            lambda: affine(widths, torch.zeros(5, device="meta")),
            ValueError,
            "log_scale is on meta",
        ),
        (
            lambda: RQSplineTransform(widths, widths, widths),
            ValueError,
            "unnormalized_derivatives must have a last dimension of 4",
        ),
        (
            lambda: RQSplineTransform(widths, widths, derivatives, tails=wrong("cubic")),
            ValueError,
            "tails must be one of",
        ),
        (
            lambda: RQSplineTransform(widths, widths[:2], derivatives).batch_shape,
            ValueError,
            r"parameters of batch shape \(3,\), \(2,\), \(3,\)",
        ),
        (lambda: spline(torch.zeros(4), cache_size=2), ValueError, "cache_size must be 0 or 1"),
        (lambda: spline(torch.zeros(4)).with_cache(2), ValueError, "cache_size must be 0 or 1"),
        (
            lambda: spline(torch.zeros(3, 4))(torch.zeros(2)),
            ValueError,
            r"input of shape \(2,\) and parameters of batch shape \(3,\)",
        ),
        (lambda: spline(torch.zeros(4))(wrong(0.5)), TypeError, "x must be a torch.Tensor"),
        (lambda: spline(torch.zeros(4)).inv(wrong(0.5)), TypeError, "y must be a torch.Tensor"),
        (
            lambda: spline(torch.zeros(4), interval=(1, -1))(torch.zeros(2)),
            ValueError,
            "interval must be finite and increasing",
        ),
    ]
    for call, error, message in calls:
        with pytest.raises(error, match=message):
            call()
