"""How the tensors of a call lie in memory.

A layout turns canonical float64 data, x of shape S and parameters (*S, P), into the tensors that a
user would hold: packed (N, C*P, *S), or one tensor a group with the bins last.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

Placement = Callable[[Tensor], Tensor]


def contiguous(tensor: Tensor) -> Tensor:
    return tensor.contiguous()


def channels_last(tensor: Tensor) -> Tensor:
    return tensor.contiguous(memory_format=torch.channels_last)


def reversed_axes(tensor: Tensor) -> Tensor:
    """The last dimension slowest and the first fastest."""
    order = tuple(reversed(range(tensor.dim())))
    return tensor.permute(order).contiguous().permute(order)


def transposed(tensor: Tensor) -> Tensor:
    """The last two dimensions swapped in memory."""
    return tensor.transpose(-1, -2).contiguous().transpose(-1, -2)


def params_first(tensor: Tensor) -> Tensor:
    """The last dimension slowest: planes of parameters under a parameters-last shape."""
    return tensor.movedim(-1, 0).contiguous().movedim(0, -1)


def sliced(tensor: Tensor) -> Tensor:
    """Every other element of a larger tensor whose rest is NaN: one that is read shows."""
    larger = [size + 2 for size in tensor.shape[:-1]] + [2 * tensor.shape[-1] + 3]
    buffer = torch.full(larger, float("nan"), dtype=tensor.dtype, device=tensor.device)
    inner = (*(slice(1, -1) for _ in larger[:-1]), slice(1, -2, 2))
    return buffer[inner].copy_(tensor)


def chunked(tensor: Tensor) -> Tensor:
    """The second half of dimension 1 of a tensor twice as wide, as ``z.chunk(2, 1)[1]`` is."""
    return torch.cat([torch.full_like(tensor, float("nan")), tensor], dim=1).chunk(2, dim=1)[1]


def unaligned(tensor: Tensor) -> Tensor:
    """Contiguous, but starting one element into its storage."""
    buffer = torch.full(
        (tensor.numel() + 1,), float("nan"), dtype=tensor.dtype, device=tensor.device
    )
    return buffer[1:].view(tensor.shape).copy_(tensor)


@dataclass(frozen=True)
class Layout:
    """Where x and the parameters lie.

    ``shared``: dimensions (of x) along which the parameters have size 1.
    ``expanded``: those are then expanded to full size, with a stride of 0.
    ``x_expanded``: dimensions along which x repeats, with a stride of 0.
    ``params_last``: packed parameters are (N, C, *S, P) rather than (N, C*P, *S).
    ``param_order``: which index runs faster in the packed dimension.
    ``one_cotangent``: the cotangent is one number, expanded, as ``y.sum().backward()`` makes it.
    """

    name: str
    shape: tuple[int, ...]
    place_x: Placement = contiguous
    place_params: Placement = contiguous
    shared: tuple[int, ...] = ()
    expanded: bool = False
    x_expanded: tuple[int, ...] = ()
    params_last: bool = False
    param_order: str = "channel"
    one_cotangent: bool = False

    def __str__(self) -> str:
        return self.name

    def data(self, x: Tensor, params: Tensor) -> tuple[Tensor, Tensor]:
        """Canonical data as this layout can hold it: repeated along x_expanded, 1 along shared."""
        for dim in self.x_expanded:
            x = x.narrow(dim, 0, 1).expand(x.shape)
        for dim in self.shared:
            params = params.narrow(dim, 0, 1)
        return x, params

    def lay_x(self, x: Tensor) -> Tensor:
        full = x.shape
        for dim in self.x_expanded:
            x = x.narrow(dim, 0, 1)
        return self.place_x(x).expand(full)

    def lay_params(self, params: Tensor, parts: tuple[int, ...]) -> tuple[Tensor, ...]:
        """Canonical (*S, P) with 1 along ``shared`` as the user's tensors."""
        if len(parts) == 1 and not self.params_last:
            groups: tuple[Tensor, ...] = (self.pack(params),)
        else:
            groups = params.split(parts, dim=-1)
        groups = tuple(self.place_params(group) for group in groups)
        if not self.expanded:
            return groups
        return tuple(group.expand(self._expanded_shape(group)) for group in groups)

    def _expanded_shape(self, group: Tensor) -> list[int]:
        return [
            self.shape[dim] if dim in self.shared else size for dim, size in enumerate(group.shape)
        ]

    def pack(self, params: Tensor) -> Tensor:
        """(N, C, *S, P) to (N, C*P, *S)."""
        if self.param_order == "channel":
            return params.movedim(-1, 2).flatten(1, 2)
        return params.movedim(-1, 1).flatten(1, 2)

    def canonical(self, groups: tuple[Tensor, ...], parts: tuple[int, ...]) -> Tensor:
        """The user's tensors, or their gradients, as (*S, P) again."""
        if len(parts) > 1:
            return torch.cat(groups, dim=-1)
        if self.params_last:
            return groups[0]
        if self.param_order == "channel":
            return groups[0].unflatten(1, (-1, parts[0])).movedim(2, -1)
        return groups[0].unflatten(1, (parts[0], -1)).movedim(1, -1)


# 9 x 11: more than one pack of any lane type, and a remainder. 201 rows: the same for rows.
_IMAGE = (2, 3, 9, 11)
_ROWS = (67, 3)

PLANAR = Layout("planar", _IMAGE)
ROWS = Layout("rows", _ROWS)
PACKED = (
    PLANAR,
    ROWS,
    Layout("channels_last", _IMAGE, channels_last, channels_last),
    Layout("x_channels_last", _IMAGE, channels_last, contiguous),
    Layout("params_channels_last", _IMAGE, contiguous, channels_last),
    Layout("transposed", _IMAGE, transposed, transposed),
    Layout("x_transposed", _IMAGE, transposed, contiguous),
    Layout("reversed_axes", _IMAGE, reversed_axes, reversed_axes),
    Layout("sliced", _IMAGE, sliced, sliced),
    Layout("chunked", _IMAGE, chunked, contiguous),
    Layout("unaligned", _IMAGE, unaligned, unaligned),
    Layout("sequence", (3, 2, 37)),
    Layout("video", (2, 2, 3, 4, 5)),
    Layout("rows_sliced", _ROWS, sliced, sliced),
    Layout("rows_unaligned", _ROWS, unaligned, unaligned),
    Layout("params_last", _ROWS, params_last=True),
    Layout("image_params_last", _IMAGE, params_last=True),
    Layout("params_last_1d", (131,), params_last=True),
    Layout("parameter_major", _IMAGE, param_order="parameter"),
    Layout("rows_parameter_major", _ROWS, param_order="parameter"),
    Layout("shared_by_batch", _IMAGE, shared=(0,)),
    Layout("shared_by_space", _IMAGE, shared=(2, 3)),
    Layout("shared_by_row", _IMAGE, shared=(2,)),
    Layout("shared_by_column", _IMAGE, shared=(3,)),
    Layout("shared_by_all", _IMAGE, shared=(0, 2, 3)),
    Layout("rows_shared_by_batch", _ROWS, shared=(0,)),
    Layout("shared_channels_last", _IMAGE, channels_last, channels_last, shared=(0,)),
    Layout("expanded_batch", _IMAGE, shared=(0,), expanded=True),
    Layout("expanded_space", _IMAGE, shared=(2, 3), expanded=True),
    Layout("x_expanded", _IMAGE, x_expanded=(0,)),
    Layout("x_expanded_space", _IMAGE, x_expanded=(2, 3)),
    Layout("rows_x_expanded", _ROWS, x_expanded=(0,)),
    Layout("one_cotangent", _IMAGE, one_cotangent=True),
    Layout("rows_one_cotangent", _ROWS, one_cotangent=True),
)
SEPARATE_ROWS = Layout("separate_rows", _ROWS)
SEPARATE = (
    SEPARATE_ROWS,
    Layout("separate_1d", (131,)),
    Layout("separate_0d", ()),
    Layout("separate_image", _IMAGE),
    Layout("separate_slices", _ROWS, sliced, sliced),
    Layout("separate_unaligned", _ROWS, unaligned, unaligned),
    Layout("separate_params_first", _ROWS, contiguous, params_first),
    Layout("separate_reversed", _ROWS, reversed_axes, reversed_axes),
    Layout("separate_shared_batch", _ROWS, shared=(0,)),
    Layout("separate_shared_space", _IMAGE, shared=(2, 3)),
    Layout("separate_shared_all", _ROWS, shared=(0, 1)),
    Layout("separate_expanded", _ROWS, shared=(0,), expanded=True),
    Layout("separate_x_expanded", _ROWS, x_expanded=(0,)),
    Layout("separate_one_cotangent", _ROWS, one_cotangent=True),
)
# Long enough for several blocks of a kernel, for blocks read and written in place, and for a sample
# whose sum is made of parts; with a remainder (59 x 71) and without.
_LARGE_IMAGE = (2, 2, 59, 71)
LARGE_PACKED = (
    Layout("large_whole", (2, 2, 64, 64)),
    Layout("large_planar", _LARGE_IMAGE),
    Layout("large_rows", (2503, 3)),
    Layout("large_rows_sliced", (2503, 3), sliced, contiguous),
    Layout("large_channels_last", _LARGE_IMAGE, channels_last, channels_last),
    Layout("large_chunked", _LARGE_IMAGE, chunked, contiguous),
    Layout("large_shared_by_batch", _LARGE_IMAGE, shared=(0,)),
    Layout("large_shared_by_space", _LARGE_IMAGE, shared=(2, 3)),
    Layout("large_one_cotangent", _LARGE_IMAGE, one_cotangent=True),
)
LARGE_SEPARATE = (Layout("large_separate", (2503, 3)),)
# What a conditioner usually makes: for these every configuration is run.
USUAL_PACKED = (PLANAR, ROWS)
USUAL_SEPARATE = (SEPARATE_ROWS,)
