"""What a training step keeps for its backward pass: stored, recomputed, or rebuilt from outputs."""

from __future__ import annotations

from contextlib import nullcontext
from typing import Any

import pytest
import torch
from torch import Tensor

from robustflow.nn import ConditionalFlow, FlowLevel, ModifiedRQSpline, Split, Squeeze, flow_step


def steps(number: int, channels: int, context: int) -> list[Any]:
    return [
        layer
        for _ in range(number)
        for layer in flow_step(channels, context, ModifiedRQSpline(), hidden_channels=8)
    ]


def gradients(activations: Any, dtype: torch.dtype, *, autocast: bool) -> dict[str, Tensor]:
    """Of the weights, of x and of the context, with a layer of frozen weights."""
    torch.manual_seed(0)
    levels = [
        [Squeeze(2), *steps(1, 12, 4), Split(12, 4)],
        [Squeeze(2), *steps(1, 24, 4)],
    ]
    flow = ConditionalFlow(levels, activations=activations).to(dtype).train()
    x = torch.rand(2, 3, 8, 8, dtype=dtype).requires_grad_()
    contexts = [torch.rand(2, 4, side, side, dtype=dtype).requires_grad_() for side in (4, 2)]
    with torch.no_grad():
        flow.log_prob(x, contexts)  # the first batch of actnorm
        for weight in flow.parameters():
            weight.add_(0.05 * torch.randn_like(weight))
    flow.get_submodule("levels.0.layers.1").requires_grad_(False)
    with torch.autocast("cpu", torch.bfloat16) if autocast else nullcontext():
        log_prob = flow.log_prob(x, contexts)
    log_prob.sum().backward()
    found = {"x": x, "coarse": contexts[1], "fine": contexts[0], **dict(flow.named_parameters())}
    return {name: each.grad for name, each in found.items() if each.grad is not None}


@pytest.mark.parametrize("activations", ["recompute", "reversible"])
@pytest.mark.parametrize(
    ("dtype", "autocast", "error"),
    [(torch.float64, False, 1e-9), (torch.float32, True, 0.05)],
    ids=["float64", "autocast"],
)
def test_gradients_are_those_of_stored_activations(
    activations: str, dtype: torch.dtype, autocast: bool, error: float
) -> None:
    """Rebuilt inputs differ by rounding, which bfloat16 in the conditioners makes larger."""
    wanted = gradients("store", dtype, autocast=autocast)
    made = gradients(activations, dtype, autocast=autocast)
    assert set(made) == set(wanted)
    assert not any(name.startswith("levels.0.layers.1.") for name in made)
    for name, gradient in wanted.items():
        assert float(gradient.norm()) > 0, name
        assert float((made[name] - gradient).norm()) <= error * float(gradient.norm()), name


@pytest.mark.parametrize("context", [0, 3])
@pytest.mark.parametrize(("activations", "grows"), [("store", True), ("reversible", False)])
def test_what_is_kept_and_depth(activations: Any, grows: bool, context: int) -> None:
    """Projections of the context included."""

    def kept(number: int) -> int:
        """Bytes that wait for the backward pass, beside the weights."""
        torch.manual_seed(0)
        flow = ConditionalFlow([steps(number, 4, context)], activations=activations)
        x = torch.rand(2, 4, 8, 8)
        given = torch.rand(2, context, 8, 8) if context else None
        flow.log_prob(x, given)
        weights = {weight.data_ptr() for weight in flow.parameters()}
        saved: dict[int, int] = {}

        def keep(tensor: Tensor) -> Tensor:
            if tensor.data_ptr() not in weights:
                saved[tensor.data_ptr()] = tensor.untyped_storage().nbytes()
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
            log_prob = flow.log_prob(x, given)
        log_prob.sum().backward()
        return sum(saved.values())

    few, many = kept(2), kept(8)
    assert (many > 3 * few) if grows else (many == few)


@pytest.mark.parametrize("activations", ["recompute", "reversible"])
def test_a_condition_made_for_training_can_be_sampled_from(activations: Any) -> None:
    """It holds the features themselves; one context of several, too."""
    torch.manual_seed(0)
    flow = ConditionalFlow([steps(2, 4, 3)], activations=activations).eval()
    with torch.no_grad():
        for weight in flow.parameters():
            weight.add_(0.05 * torch.randn_like(weight))
    context = torch.rand(3, 3, 8, 8)
    lazy = flow.condition(context)
    with torch.no_grad():
        wanted = flow.condition(context)
    z = torch.randn(1, 4, 8, 8)
    for made, right in ((lazy, wanted), (lazy[1], wanted[1])):
        latents = [z.expand(len(made), -1, -1, -1)]
        with torch.no_grad():
            found, expected = (flow.inverse(latents, condition=each)[0] for each in (made, right))
        torch.testing.assert_close(found, expected, rtol=0, atol=1e-5)


def test_a_level_names_the_choices() -> None:
    for build in (
        lambda: FlowLevel(steps(1, 4, 0), "stored"),  # type: ignore[arg-type]
        lambda: ConditionalFlow([steps(1, 4, 0)], activations="stored"),  # type: ignore[arg-type]
    ):
        with pytest.raises(ValueError, match="activations must be one of"):
            build()
