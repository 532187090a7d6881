"""The published conditioner: conv3x3 + actnorm, ReLU, conv1x1 + actnorm, ReLU, zero conv3x3.

Its module names are those of the published state_dict: ``0.weight``, ``0.actnorm.bias``,
``0.actnorm.logs``, ``2.weight``, ``2.actnorm.bias``, ``2.actnorm.logs``, ``4.weight``,
``4.bias``, ``4.logs``. An actnorm and the factor of the last layer are folded into the weights
where these are smaller than what they make, so that no second tensor of that size exists.
"""

from __future__ import annotations

from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn import functional

from robustflow._call_state import is_plain_eager
from robustflow.compat.srflow._once import once
from robustflow.nn.actnorm import standardisation


class ActNorm(nn.Module):
    """Parameters of ``(x + bias) * exp(logs)``, both (1, channels, 1, 1).

    Whether the first batch has set them is a plain attribute, ``inited``: the published
    checkpoints have no such buffer. Loading sets it, unless what is loaded was never set either.
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.bias = nn.Parameter(torch.zeros(1, channels, 1, 1))
        self.logs = nn.Parameter(torch.zeros(1, channels, 1, 1))
        self.inited = False

    @torch.no_grad()
    def initialise(self, x: Tensor) -> None:
        """Set both so that x comes out with mean 0 and standard deviation 1 a channel.

        As far as x tells them, and as soon as it tells any: see
        :class:`robustflow.nn.ActNorm`.
        """
        constants = standardisation(x)
        if constants is None:
            return
        self.bias.copy_(constants[0].view_as(self.bias))
        self.logs.copy_(constants[1].view_as(self.logs))
        self.inited = True

    def forward(self, x: Tensor) -> Tensor:
        return (x + self.bias) * torch.exp(self.logs)

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *args: Any) -> None:
        super()._load_from_state_dict(state_dict, prefix, *args)
        if prefix + "bias" in state_dict and prefix + "logs" in state_dict:
            self.inited = bool(self.bias.any() or self.logs.any())


class NormalisedConv2d(nn.Conv2d):
    """A convolution without bias, then an actnorm, which the first batch in training sets."""

    def __init__(self, in_channels: int, out_channels: int, kernel_size: int) -> None:
        super().__init__(
            in_channels, out_channels, kernel_size, padding=kernel_size // 2, bias=False
        )
        self.actnorm = ActNorm(out_channels)

    def initialise_from(self, *parts: Tensor) -> None:
        """Set the actnorm, if it is not, from a batch: the concatenation of the parts."""
        if self.training and not self.actnorm.inited:
            with torch.no_grad():
                x = torch.cat([_as_weight(part, self.weight) for part in parts], dim=1)
                self.actnorm.initialise(self._convolve(x, self.weight))

    def forward(self, x: Tensor) -> Tensor:
        self.initialise_from(x)
        scale = torch.exp(self.actnorm.logs)
        bias = (self.actnorm.bias * scale).flatten()
        return self._convolve(x, self.weight * scale.view(-1, 1, 1, 1), bias)

    def of_first(self, x: Tensor) -> Tensor:
        """The first channels' term of :meth:`forward`, for few of them: folded into the weight."""
        scale = torch.exp(self.actnorm.logs).view(-1, 1, 1, 1)
        return self._convolve(x, self.weight[:, : x.shape[1]] * scale)

    def of_last(self, x: Tensor) -> Tensor:
        """The last channels' term and the bias; with :meth:`of_first` it sums to forward."""
        return self.actnorm(self._convolve(x, self.weight[:, -x.shape[1] :]))

    def weights(self) -> tuple[Tensor, ...]:
        """All that the results depend on besides x."""
        return self.weight, self.actnorm.bias, self.actnorm.logs

    def _convolve(self, x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
        return functional.conv2d(_as_weight(x, weight), weight, bias, padding=self.padding)


class ScaledConv2d(nn.Conv2d):
    """A convolution times ``exp(3 logs)``, zero at first; logs (out_channels, 1, 1)."""

    def __init__(self, in_channels: int, out_channels: int, kernel_size: int = 3) -> None:
        super().__init__(in_channels, out_channels, kernel_size, padding=kernel_size // 2)
        self.logs = nn.Parameter(torch.zeros(out_channels, 1, 1))
        for parameter in self.parameters():
            nn.init.zeros_(parameter)

    def forward(self, x: Tensor) -> Tensor:
        scale = torch.exp(3 * self.logs)
        weight = self.weight * scale.unsqueeze(-1)
        bias = cast(Tensor, self.bias) * scale.flatten()
        return functional.conv2d(_as_weight(x, weight), weight, bias, padding=self.padding)


class Conditioner(nn.Sequential):
    """From ``[z1, context]``, or the context alone, to the parameters of a transform.

    As in :class:`robustflow.nn.Conditioner` the context's part is apart from the rest,
    ``conv([z1, context]) = conv_z(z1) + conv_context(context)``; here both are slices of the one
    published weight.

    Args:
        z_channels: channels of z1; 0 for a conditioner that reads the context alone.
        context_channels, out_channels, hidden_channels: of the context, the parameters, between.
    """

    def __init__(
        self, z_channels: int, context_channels: int, out_channels: int, hidden_channels: int
    ) -> None:
        super().__init__(
            NormalisedConv2d(z_channels + context_channels, hidden_channels, 3),
            nn.ReLU(),
            NormalisedConv2d(hidden_channels, hidden_channels, 1),
            nn.ReLU(),
            ScaledConv2d(hidden_channels, out_channels),
        )

    def of_context(self, context: Tensor) -> Tensor:
        """The parameters, of the context alone; remembered within ``condition_once``."""
        return once(self, context, self._weights, self)

    def of_both(self, z1: Tensor, context: Tensor) -> Tensor:
        """The parameters; the context's part, remembered likewise, may have a batch size of 1."""
        first, _, _ = self._layers()
        if first.training and not first.actnorm.inited:
            first.initialise_from(z1, context.expand(z1.shape[0], *context.shape[1:]))
        projected = once(self, context, first.weights, first.of_last)
        hidden = first.of_first(z1)
        # In place on what no one else holds; not under vmap, where one may be batched alone.
        hidden = hidden.add_(projected) if is_plain_eager() else hidden + projected
        return self._after_first(hidden)

    def forward(self, x: Tensor) -> Tensor:
        return self._after_first(self._layers()[0](x))

    def _after_first(self, hidden: Tensor) -> Tensor:
        """The rest; a ReLU in place, which the convolution before it does not mind."""
        _, second, head = self._layers()
        return head(torch.relu_(second(torch.relu_(hidden))))

    def _layers(self) -> tuple[NormalisedConv2d, NormalisedConv2d, ScaledConv2d]:
        modules: Any = self._modules  # shorter than an index into a Sequential, which walks it
        return modules["0"], modules["2"], modules["4"]

    def _weights(self) -> tuple[Tensor, ...]:
        first, second, head = self._layers()
        return *first.weights(), *second.weights(), head.weight, cast(Tensor, head.bias), head.logs


def _as_weight(x: Tensor, weight: Tensor) -> Tensor:
    """x in the weight's dtype, which is left to autocast where that is on."""
    if x.dtype == weight.dtype or torch.is_autocast_enabled(x.device.type):
        return x
    return x.to(weight.dtype)
