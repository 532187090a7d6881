"""The last layer of a conditioner: found by its output tensor, and replaced."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from robustflow._versions import Unchanged

PLAIN: tuple[type[nn.Module], ...] = (nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d)


@dataclass(frozen=True)
class Head:
    """A last layer, and the outputs that it is to have.

    Attributes:
        module: the layer.
        channels: the number of channels whose parameters it outputs.
        num_params: parameters for each.
    """

    module: nn.Module
    channels: int
    num_params: int

    @property
    def obstacle(self) -> str | None:
        """Why it cannot be replaced."""
        weight = self.module._parameters.get("weight")
        if weight is None or nn.utils.parametrize.is_parametrized(self.module):
            return "its conditioner's last layer is parametrised (weight or spectral norm)"
        if weight.shape[0] % self.channels:
            return (
                f"its conditioner's last layer makes {weight.shape[0]} outputs for "
                f"{self.channels} channels"
            )
        for buffer in self._rows():
            by_channel = buffer.unflatten(0, (self.channels, -1))
            if not torch.equal(by_channel, by_channel[:, :1].expand_as(by_channel)):
                return "its conditioner's last layer is masked in an order that is not known"
        return None

    def remake(self) -> None:
        """Give it ``channels * num_params`` outputs, all zero, those of a channel side by side."""
        rows = self._num_rows()
        module, outputs = self.module, self.channels * self.num_params
        for name, parameter in module._parameters.items():
            if parameter is not None:
                zeros = parameter.detach().new_zeros((outputs, *parameter.shape[1:]))
                module._parameters[name] = nn.Parameter(zeros)
        for name, buffer in module._buffers.items():
            if buffer is not None and buffer.shape[:1] == (rows,):
                first = buffer.unflatten(0, (self.channels, -1))[:, 0]
                module._buffers[name] = first.repeat_interleave(self.num_params, dim=0)
        for attribute in ("out_features", "out_channels"):
            if hasattr(module, attribute):
                setattr(module, attribute, outputs)

    def _num_rows(self) -> int:
        return int(self.module.get_parameter("weight").shape[0])

    def _rows(self) -> Iterable[Tensor]:
        """Buffers with one row for each output, such as an autoregressive mask."""
        rows = self._num_rows()
        return [
            buffer
            for buffer in self.module._buffers.values()
            if buffer is not None and buffer.shape[:1] == (rows,)
        ]


class HeadWatch:
    """Until :meth:`close`, records which layer computed which tensor.

    Args:
        modules: whose layers are watched.
        kinds: types of layers that can be replaced.
    """

    def __init__(self, modules: Iterable[nn.Module], kinds: tuple[type[nn.Module], ...]) -> None:
        self._outputs: dict[nn.Module, Unchanged] = {}
        layers = {
            layer: None
            for module in modules
            for layer in module.modules()
            if nn.utils.parametrize.type_before_parametrizations(layer) in kinds
        }
        self._handles: list[RemovableHandle] = [
            layer.register_forward_hook(self._note) for layer in layers
        ]

    def _note(self, layer: nn.Module, inputs: Any, output: Any) -> None:
        if isinstance(output, Tensor):
            self._outputs[layer] = Unchanged(output)

    def maker(self, tensor: Tensor) -> nn.Module | None:
        """The layer whose output this is; None if there is none or it was modified in place."""
        for layer, output in self._outputs.items():
            if output.holds(tensor):
                return layer
        return None

    def close(self) -> None:
        for handle in self._handles:
            handle.remove()
