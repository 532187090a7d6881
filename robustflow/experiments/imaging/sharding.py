"""Shards a flow's weights, gradients and optimiser state over processes (FSDP2).

Each block of a trained RRDB is a shard unit, and the rest of the flow is another. The weights of a
unit are gathered for its passes and freed after them. A frozen encoder is not sharded, since each
process computes features at its own time.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard, register_fsdp_forward_method
from torch.distributed.tensor import DTensor, distribute_tensor

from robustflow.experiments.encoders.rrdb import ResidualBlock
from robustflow.experiments.imaging.model import ImagingFlow


def shard(flow: ImagingFlow, processes: int, device: torch.device) -> None:
    """Keep a part of the weights, which must be the same in all processes.

    Args:
        flow: whose ``forward`` and ``sample`` all processes then call together. Its actnorms must
            have been set: what a pass writes into gathered weights is lost.
        processes: how many there are.
        device: of the flow.
    """
    mesh = init_device_mesh(device.type, (processes,))
    whole = set(flow.encoder.parameters()) if flow.encoder_is_frozen else set()
    if not whole:
        for block in flow.encoder.modules():
            if isinstance(block, ResidualBlock):
                fully_shard(block, mesh=mesh)
    fully_shard(flow, mesh=mesh, ignored_params=whole or None)
    register_fsdp_forward_method(flow, "sample")


def whole(tensors: Mapping[str, Tensor], *, keep: bool) -> dict[str, Tensor]:
    """Tensors gathered from all processes, which must all call this; kept on the CPU, or freed.

    Args:
        tensors: sharded or not.
        keep: whether this process wants them; else an empty dictionary.
    """
    gathered = {}
    for name, tensor in tensors.items():
        full = tensor.full_tensor() if isinstance(tensor, DTensor) else tensor
        if keep:
            gathered[name] = full.cpu()
    return gathered


def like(tensor: Tensor, weight: nn.Parameter) -> Tensor:
    """A whole tensor, the same in all processes, sharded as a weight of its shape is."""
    if isinstance(weight, DTensor) and tensor.shape == weight.shape:
        return distribute_tensor(tensor.to(weight.device), weight.device_mesh, weight.placements)
    return tensor


def total(norm: Tensor) -> Tensor:
    """A norm over all processes, as an ordinary tensor."""
    return norm.full_tensor() if isinstance(norm, DTensor) else norm
