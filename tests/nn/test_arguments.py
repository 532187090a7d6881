"""Wrong arguments are told at once, in one sentence that names the argument."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn

from robustflow import compat, distributions
from robustflow import functional as F
from robustflow import nn as rnn

D, CONTEXT = 3, 2
x, params, context = torch.randn(4, D), torch.randn(4, D * 4), torch.randn(4, CONTEXT)
knots = [torch.randn(4, D, number) for number in (5, 5, 4)]
spline: Any = rnn.RQSpline()


def flow() -> Any:
    return rnn.ConditionalFlow([[rnn.RQSplineCoupling(D, CONTEXT, spatial_dims=0)]])


def pictures() -> Any:
    return rnn.ConditionalFlow(
        [[rnn.Squeeze(2), rnn.ActNorm(12)], [rnn.Squeeze(2), rnn.ActNorm(48)]]
    )


layers: Any = rnn  # whose annotations the calls below do not keep
functional: Any = F
transforms: Any = distributions
patching: Any = compat

# (error, what the sentence says, the call)
Case = tuple[type[Exception], str, Callable[[], Any]]
CASES: list[Case] = [
    # settings of transforms
    (
        ValueError,
        "interval must be finite and increasing, got (3.0, -3.0)",
        lambda: layers.ModifiedRQSpline(interval=(3, -3)),
    ),
    (TypeError, "interval must be a pair", lambda: layers.ModifiedRQSpline(interval=3)),
    (ValueError, "min_bin must lie in (0, 1/2)", lambda: layers.ModifiedRQSpline(min_bin=0.5)),
    (ValueError, "derivative must be one of", lambda: layers.ModifiedRQSpline(derivative="x")),
    (ValueError, "eps must be a number of at least 0, got -1", lambda: layers.Affine(eps=-1)),
    (ValueError, "scale must be one of", lambda: layers.Affine(scale="x")),
    (ValueError, "clamp must be a positive number", lambda: layers.Affine(clamp=-1)),
    (TypeError, "shift_first must be True or False", lambda: layers.Affine(shift_first="no")),
    (
        ValueError,
        "min_bin_width must lie in (0, 1/8)",
        lambda: layers.RQSpline(min_bin_width=0.2),
    ),
    (ValueError, "num_bins must be a whole number", lambda: layers.RQSpline(num_bins=2.5)),
    (ValueError, "tails must be one of", lambda: layers.RQSpline(tails="x")),
    (ValueError, "eps must be", lambda: layers.ConditionalAffineCoupling(4, eps=-1)),
    # layers
    (ValueError, "factor must be a whole number of at least 1", lambda: layers.Squeeze(1.5)),
    (TypeError, "factor must be a whole number of at least 1", lambda: layers.Squeeze("2")),
    (ValueError, "channels must be a whole number", lambda: layers.ActNorm(0)),
    (ValueError, "eps must be a number of at least 0", lambda: layers.ActNorm(3, eps=-1)),
    (ValueError, "channels must be a whole number", lambda: layers.InvertibleConv1x1(2.5)),
    (
        ValueError,
        "hidden_channels must be a whole number of at least 1, got 0",
        lambda: layers.Coupling(4, 2, hidden_channels=0),
    ),
    (ValueError, "kernel_size must be", lambda: layers.Coupling(4, 2, kernel_size=0)),
    (ValueError, "spatial_dims must be", lambda: layers.Coupling(4, 2, spatial_dims="2")),
    (ValueError, "context_channels must be", lambda: layers.Coupling(4, -1)),
    (
        TypeError,
        "context_channels must be a whole number of at least 0, got a RQSpline",
        lambda: layers.Coupling(4, spline),
    ),
    (
        TypeError,
        "transform must be an elementwise transform such as ModifiedRQSpline(), got the class "
        "RQSpline: write RQSpline()",
        lambda: layers.Coupling(4, 2, layers.RQSpline),
    ),
    (TypeError, "got the class Affine", lambda: layers.Injector(4, 2, layers.Affine)),
    (TypeError, "got the class Affine", lambda: layers.Autoregressive(4, 2, layers.Affine)),
    (TypeError, "got the class Affine", lambda: layers.flow_step(4, 2, layers.Affine)),
    (TypeError, "transform must be", lambda: layers.Coupling(4, 2, "modified_rq")),
    (
        TypeError,
        "conditioner must be a torch.nn.Module, got the class Linear: write Linear(...)",
        lambda: layers.Coupling(4, 2, conditioner=nn.Linear),
    ),
    (TypeError, "conditioner must be", lambda: layers.Autoregressive(4, conditioner=len)),
    (TypeError, "reverse must be True or False", lambda: layers.Coupling(4, reverse="no")),
    (ValueError, "log_scale_bound must be", lambda: layers.Split(4, log_scale_bound=-1)),
    (
        ValueError,
        "hidden_features must be a whole number",
        lambda: layers.Autoregressive(4, hidden_features=0),
    ),
    (
        ValueError,
        "out_features must be a multiple of features",
        lambda: layers.MaskedConditioner(3, 0, 10),
    ),
    # one dimension: what to use instead
    (
        ValueError,
        "channels must be at least 2 for a RQSplineCoupling, which transforms one half given the "
        "other, got 1. Transform a single channel by an Injector, given a context, or over (N, 1) "
        "by an Autoregressive layer",
        lambda: layers.RQSplineCoupling(1, 2),
    ),
    (ValueError, "by an Autoregressive layer", lambda: layers.flow_step(1, 2, spline)),
    (ValueError, "2 for a Split", lambda: layers.Split(1)),
    # flows
    (
        TypeError,
        "levels[0] must be a list of layers, got a Squeeze",
        lambda: layers.ConditionalFlow([layers.Squeeze(2), layers.ActNorm(12)]),
    ),
    (TypeError, "levels must be a list", lambda: layers.ConditionalFlow(layers.ActNorm(12))),
    (
        TypeError,
        "levels[0][1] must be a layer, got a list: put the layers of a flow_step",
        lambda: layers.ConditionalFlow([[layers.ActNorm(4), layers.flow_step(4, 2, spline)]]),
    ),
    (
        TypeError,
        "levels[0][0] must be a torch.nn.Module, got the class ActNorm",
        lambda: layers.ConditionalFlow([[layers.ActNorm]]),
    ),
    (
        TypeError,
        "encoder must be a torch.nn.Module",
        lambda: layers.ConditionalFlow([[layers.Coupling(4, 2)]], len),
    ),
    (
        ValueError,
        "levels[1][1], an ActNorm, has 24 channels, and gets 48",
        lambda: layers.ConditionalFlow(
            [[layers.ActNorm(12)], [layers.Squeeze(2), layers.ActNorm(24)]]
        ),
    ),
    (
        ValueError,
        "makes multiples of 4 channels, and the layers after it have 10",
        lambda: layers.ConditionalFlow([[layers.Squeeze(2), layers.ActNorm(10)]]),
    ),
    (
        ValueError,
        "layers[0], a Split, must be the last layer of its level",
        lambda: layers.ConditionalFlow([[layers.Split(4), layers.ActNorm(2)]]),
    ),
    # calls of flows
    (
        TypeError,
        "num_samples must be a number, got a tensor of shape (4, 2): it comes before the context",
        lambda: flow().sample(context, 5),
    ),
    (TypeError, "num_samples must be a whole number", lambda: flow().sample("2", context)),
    (
        TypeError,
        "temperature must be a number, got '0.8'",
        lambda: flow().sample(2, context, temperature="0.8"),
    ),
    (TypeError, "size must be a sequence", lambda: flow().sample(2, context, size=4)),
    (TypeError, "context must be a tensor, or a list", lambda: flow().sample(2, 5)),
    (
        TypeError,
        "is torch.float64 and the weights are torch.float32: convert x",
        lambda: flow().log_prob(x.double(), context),
    ),
    (
        TypeError,
        "The context is torch.float64 and the weights are torch.float32",
        lambda: flow().log_prob(x, context.double()),
    ),
    (TypeError, "x must be float64", lambda: flow().log_prob(x.long(), context)),
    (TypeError, "x must be a torch.Tensor", lambda: flow().log_prob([1.0], context)),
    (ValueError, "x must have shape (N, C, *S)", lambda: flow().log_prob(x[0], context)),
    (ValueError, "x must have 3 channels", lambda: flow().log_prob(context, x)),
    (TypeError, "latents must be a tuple of tensors", lambda: flow().inverse(x, context)),
    (
        ValueError,
        "x must have sides that are multiples of 4 for this flow, got (30, 46)",
        lambda: pictures().log_prob(torch.randn(2, 3, 30, 46)),
    ),
    (
        ValueError,
        "size must have sides that are multiples of 4 for this flow, got (30, 46)",
        lambda: pictures().sample(2, size=(30, 46)),
    ),
    # functions and distributions
    (
        TypeError,
        "interval must be a pair of numbers",
        lambda: functional.modified_rq_spline(x, params, interval=3),
    ),
    (
        TypeError,
        "tail_bound must be a number, or a sequence or tensor of numbers, got '3'",
        lambda: functional.rq_spline(x, *knots, tail_bound="3"),
    ),
    (
        TypeError,
        "left must be a number, or a sequence or tensor of numbers, got a list",
        lambda: functional.rq_spline(x, *knots, left=[0.0, "a", 1.0]),
    ),
    (
        ValueError,
        "tail_bound[1] must be a positive number, got -2.0",
        lambda: functional.rq_spline(x, *knots, tail_bound=[1.0, -2.0, 3.0]),
    ),
    (
        TypeError,
        "tail_bound must be a number, or a sequence",
        lambda: transforms.RQSplineTransform(*knots, tail_bound="3"),
    ),
    (
        ValueError,
        "interval must be finite and increasing",
        lambda: transforms.ModifiedRQSplineTransform(torch.randn(3, 4), interval=(3, -3)),
    ),
    (
        ValueError,
        "eps must be a number of at least 0",
        lambda: transforms.ConditionalAffineTransform(torch.randn(3, 2), eps=-1),
    ),
    (
        ValueError,
        "min_bin_width must lie in (0, 1/5)",
        lambda: transforms.RQSplineTransform(*knots, min_bin_width=0.2),
    ),
    # drop-ins
    (
        TypeError,
        "name must be the name of one library, such as 'zuko', got a list",
        lambda: patching.patch(["zuko"]),
    ),
    (ValueError, "name must be one of 'nflows'", lambda: patching.unpatch("zzz")),
    (TypeError, "name must be the name of one library", lambda: patching.unpatch(["zuko"])),
]


@pytest.mark.parametrize("case", CASES, ids=[case[1][:40] for case in CASES])
def test_one_sentence(case: Case) -> None:
    error, sentence, call = case
    with pytest.raises(error, match=re.escape(sentence)) as caught:
        call()
    message = str(caught.value)
    assert "\n" not in message and "tensor([" not in message and message.endswith(".")
    assert caught.value.__cause__ is None


def test_one_dimension_without_a_coupling() -> None:
    """What the error recommends works."""
    one = torch.randn(4, 1)
    for layer, given in (
        (rnn.RQSplineInjector(1, CONTEXT, spatial_dims=0), context),
        (rnn.RQSplineAutoregressive(1, CONTEXT), context),
        (rnn.RQSplineAutoregressive(1), None),
    ):
        torch.testing.assert_close(layer(one, given)[0], one, atol=1e-5, rtol=0)


def test_mixed_precision_that_works_still_does() -> None:
    double, half = flow().double(), flow().bfloat16()
    assert double.log_prob(x.double(), context.double()).dtype == torch.float64
    assert half.log_prob(x.bfloat16(), context.bfloat16()).dtype == torch.float32
    with torch.autocast("cpu", torch.bfloat16):
        assert flow().log_prob(x, context.bfloat16()).dtype == torch.float32
    wider = rnn.ConditionalFlow([[rnn.ActNorm(D), rnn.RQSplineCoupling(D, spatial_dims=0)]])
    assert wider.double().log_prob(x).dtype == torch.float64  # z is float64 behind the ActNorm


def test_unpatch_knows_libraries_that_are_not_patched() -> None:
    compat.unpatch("zuko")
    assert "zuko" not in compat.patched()


def test_containers_are_levels_too() -> None:
    level = nn.Sequential(rnn.ActNorm(D), rnn.RQSplineCoupling(D, spatial_dims=0))
    for levels in ([level], nn.ModuleList([level]), ((*level,),)):
        found: Any = rnn.ConditionalFlow(levels)  # type: ignore[arg-type]
        assert found.channels == D and found.size_multiple == 1
        assert found.log_prob(x).shape == (4,)
