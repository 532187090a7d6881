"""Invertible 1x1 convolution: a learned mixing of the channels, plain or in LU form."""

from __future__ import annotations

import math
from contextlib import nullcontext
from typing import ClassVar

import torch
from torch import Tensor, nn

from robustflow._backend import is_onnx_export
from robustflow.nn._checks import check_counts, check_flags, check_shape
from robustflow.nn.precision import upcast_half


class InvertibleConv1x1(nn.Module):
    """``z -> W z`` at every position; W starts as a random rotation.

    In LU form, ``W = P L (U + diag(s))``: the determinant is the product of s, and the inverse
    two triangular solves of a C x C matrix. P and the signs of s stay as they are at first, so W
    stays invertible. The plain form learns W itself. Its determinant and its inverse each factorise
    a C x C matrix, and training must keep W from becoming singular (both are then infinite or NaN,
    which is not checked). Neither form synchronises with the device.

    z is mixed in its own precision even under autocast, which would round it to half in each
    layer and leave a flow that does not invert.

    Args:
        channels: channels of z.
        lu: the LU form; False for the plain one.

    Raises:
        TypeError, ValueError: no whole number of channels.

    Source: Kingma and Dhariwal, Glow, 2018 (arXiv:1807.03039), section 3.2.

    Example:
        >>> mix = InvertibleConv1x1(12)
        >>> z = torch.randn(2, 12, 8, 8)
        >>> y, logabsdet = mix(z)
        >>> bool((mix(y, inverse=True)[0] - z).abs().max() < 1e-4)
        True
    """

    context_channels: ClassVar[int] = 0

    permutation: Tensor
    sign: Tensor

    def __init__(self, channels: int, *, lu: bool = True) -> None:
        super().__init__()
        check_counts(channels=channels)
        check_flags(lu=lu)
        self.channels = channels
        self.lu = lu
        # In float64, which not every device has: on the CPU.
        random = torch.randn(channels, channels, dtype=torch.float64, device="cpu")
        rotation, _ = torch.linalg.qr(random)
        if not lu:
            self.matrix = nn.Parameter(_by_default(rotation))
            return
        permutation, lower, upper = torch.linalg.lu(rotation)
        diagonal = upper.diagonal()
        self.register_buffer("permutation", _by_default(permutation))
        self.register_buffer("sign", _by_default(diagonal.sign()))
        self.log_diagonal = nn.Parameter(_by_default(diagonal.abs().log()))
        self.lower = nn.Parameter(_by_default(lower.tril(-1)))
        self.upper = nn.Parameter(_by_default(upper.triu(1)))

    def weight(self, *, inverse: bool = False) -> Tensor:
        """W or its inverse, (channels, channels), in float32 at least."""
        if not self.lu:
            matrix = upcast_half(self.matrix)
            if inverse and is_onnx_export():
                return _iterated_inverse(matrix)
            # inv_ex and slogdet do not check the factorisation, so they do not synchronise.
            return torch.linalg.inv_ex(matrix).inverse if inverse else matrix
        lower, upper = upcast_half(self.lower), upcast_half(self.upper)
        permutation = self.permutation.to(lower.dtype)
        eye = torch.eye(self.channels, dtype=lower.dtype, device=lower.device)
        lower = lower.tril(-1) + eye
        diagonal = self.sign * upcast_half(self.log_diagonal).exp()
        upper = torch.where(eye.bool(), diagonal, upper.triu(1))
        if not inverse:
            return permutation @ lower @ upper
        if is_onnx_export():
            return _iterated_inverse(permutation @ lower @ upper)
        solved = torch.linalg.solve_triangular(
            lower, permutation.T, upper=False, unitriangular=True
        )
        return torch.linalg.solve_triangular(upper, solved, upper=True)

    def forward(
        self, z: Tensor, context: Tensor | None = None, *, inverse: bool = False
    ) -> tuple[Tensor, Tensor]:
        """z (N, channels, \\*S) -> (z, logabsdet (N,)); the context is not used."""
        check_shape("z", z, self.channels)
        positions = math.prod(z.shape[2:])
        device = z.device.type  # the meta device has no autocast to switch off
        autocasts = torch.amp.is_autocast_available(device)
        with torch.autocast(device, enabled=False) if autocasts else nullcontext():
            weight = self.weight(inverse=inverse)
            dtype = torch.promote_types(z.dtype, next(self.parameters()).dtype)
            columns = z.reshape(z.shape[0], self.channels, positions).to(dtype)
            mixed = torch.matmul(weight.to(dtype), columns).reshape(z.shape)
            logabsdet = (self._logabsdet() * positions).expand(z.shape[0])
        return mixed, -logabsdet if inverse else logabsdet

    def _logabsdet(self) -> Tensor:
        if self.lu:
            return upcast_half(self.log_diagonal).sum()
        weight = self.weight()
        if is_onnx_export():  # ONNX has the determinant alone: take that of a matrix near 1
            size = weight.square().mean(0).sum().sqrt()
            return torch.linalg.det(weight / size).abs().log() + self.channels * size.log()
        return torch.linalg.slogdet(weight).logabsdet

    def extra_repr(self) -> str:
        return f"{self.channels}, lu={self.lu}"


def _iterated_inverse(matrix: Tensor) -> Tensor:
    """The inverse by matrix products alone, since ONNX has no other way to one.

    Newton's iteration, X <- X (2 - A X) from A^T / |A|^2, in float64. 64 steps serve condition
    numbers to 1e7. A runtime that folds constants does them once, when it loads the program. On the
    CPU, since not every device has float64.

    Source: Schulz 1933; Ben-Israel and Cohen 1966.
    """
    precise = matrix.cpu().double()
    inverse = precise.T / precise.square().sum()
    twice = 2 * torch.eye(len(precise), dtype=precise.dtype, device=precise.device)
    for _ in range(64):
        inverse = inverse @ (twice - precise @ inverse)
    return inverse.to(matrix.dtype).to(matrix.device)


def _by_default(tensor: Tensor) -> Tensor:
    """In the default dtype, on the default device."""
    return tensor.to(torch.get_default_dtype()).to(torch.get_default_device())
