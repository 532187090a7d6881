"""What every layer of a flow must do, and modules in float64 to see it on."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

import torch
from torch import Tensor, nn

from robustflow.nn import Affine, ConditionalFlow, ModifiedRQSpline

ModuleT = TypeVar("ModuleT", bound=nn.Module)

SPLINES = [ModifiedRQSpline(), ModifiedRQSpline.published()]
TRANSFORMS = [Affine(), Affine(reciprocal=True), *SPLINES]


def perturbed(module: ModuleT, size: float = 0.3) -> ModuleT:
    """The module in float64 with parameters that are no special case."""
    module = module.double()
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.add_(size * torch.randn_like(parameter))
    return module


def normal(*shape: int) -> Tensor:
    return torch.randn(shape, dtype=torch.float64)


def assert_is_a_flow_layer(layer: nn.Module, z: Tensor, context: Tensor | None) -> None:
    """Round trip, and the log-determinant against that of autograd's Jacobian."""
    y, logabsdet = layer(z, context)
    assert y.shape == z.shape and logabsdet.shape == (len(z),)
    back, minus = layer(y, context, inverse=True)
    torch.testing.assert_close(back, z, atol=1e-9, rtol=1e-9)
    torch.testing.assert_close(minus, -logabsdet, atol=1e-9, rtol=1e-9)
    assert_logabsdet(
        lambda one: layer(one, None if context is None else context[:1])[0], z, logabsdet
    )


def assert_is_a_flow(flow: ConditionalFlow, x: Tensor, context: Tensor | None = None) -> None:
    """Round trip, and the normal density by the change of variables with autograd's Jacobian."""
    latents, logabsdet = flow(x, context)
    back, minus = flow.inverse(latents, context)
    torch.testing.assert_close((back, minus), (x, -logabsdet), atol=1e-9, rtol=1e-9)

    def flat(one: Tensor) -> Tensor:
        found, _ = flow(one, None if context is None else context[:1])
        return torch.cat([latent.flatten() for latent in found])

    assert_logabsdet(flat, x, logabsdet)
    assert flat(x[:1]).numel() == x[0].numel()
    density = torch.distributions.Normal(0.0, 1.0).log_prob(flat(x[:1])).sum()
    torch.testing.assert_close(flow.log_prob(x, context)[0], density + logabsdet[0])


def assert_logabsdet(function: Callable[[Tensor], Tensor], z: Tensor, logabsdet: Tensor) -> None:
    jacobian = torch.autograd.functional.jacobian(
        lambda flat: function(flat.view(1, *z.shape[1:])).flatten(), z[0].flatten()
    )
    expected = torch.linalg.slogdet(jacobian).logabsdet
    torch.testing.assert_close(logabsdet[0], expected, atol=1e-9, rtol=1e-9)
