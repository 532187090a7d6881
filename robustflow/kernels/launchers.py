"""The transforms as functions on tensors, built from their specs, for the operators to call.

Tensors are in canonical form (robustflow/ops).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import triton
from torch import Tensor

from robustflow._checks import once
from robustflow._spec import Spec
from robustflow.kernels.launch import launch
from robustflow.kernels.loops import gradient_kernel, transform_kernel
from robustflow.kernels.run import NO_SINK, Call, Sink, gradient, transform

MAX_BINS_IN_REGISTERS = 32
"""3 K values and what is computed from them fill a thread's 255 registers a little beyond."""

# Number of arguments that the kernels of loops.py have for groups and for settings.
_NUM_GROUPS = 3
_NUM_SETTINGS = 9

Group = tuple[int, int, int, int, int]  # of READS and WRITES: loops.py


@dataclass(frozen=True)
class Settings:
    """A configuration, sorted for the kernels: their settings, and OPTIONS of loops.py.

    ``counts`` are the parameters of each group, ``size`` is the configuration's, or 0.
    """

    floats: tuple[float, ...]
    options: tuple[Any, ...]
    inverse: bool
    batch_dims: int
    size: int
    counts: tuple[int, ...]

    @property
    def in_registers(self) -> bool:
        return self.size <= MAX_BINS_IN_REGISTERS


@dataclass(frozen=True)
class Launches:
    """How a transform's kernels are launched. Nothing here has been measured on a GPU yet.

    Attributes:
        block, half_block, gradient_block, half_gradient_block: elements of a tile, and those of one
            whose parameters are of a half type.
        derived: further settings, after those of the schema that are floating-point numbers.
        together: parameters of all groups in one tensor are read together.
    """

    block: int
    half_block: int
    gradient_block: int
    half_gradient_block: int
    derived: Callable[[Mapping[str, Any]], tuple[float, ...]] = lambda settings: ()
    together: bool = False
    num_warps: int = 4


def _inverse_bound(settings: Mapping[str, Any]) -> tuple[float, ...]:
    """For the soft clipping of derivatives: one over the bound on their logarithms."""
    return (-1.0 / math.log(settings["min_derivative"]),)


# One element a thread, with everything in the thread's registers.
_ONE_A_THREAD = Launches(128, 128, 128, 128)

# Launches of the transforms that differ from that.
LAUNCHES = {
    # Accesses of 16 bytes: of four elements a thread in float32, of eight in half types. Gradients
    # take twice the registers an element: four of any type.
    "modified_rq": Launches(512, 1024, 512, 512, _inverse_bound),
    "affine": Launches(512, 1024, 512, 1024, together=True),
    "rq": replace(_ONE_A_THREAD, derived=_inverse_bound),  # 3 K logits and sizes an element
}


class Function:
    """A transform, forward and backward, with the positional arguments of its operators."""

    def __init__(self, spec: Spec) -> None:
        self.spec = spec
        self._num_groups = len(spec.groups)
        self._num_tensors = len(spec.tensors)
        self._config_schema = tuple(argument.split() for argument in spec.config_schema)
        self._settings = once(self._sort)

    @property
    def _launches(self) -> Launches:
        return LAUNCHES.get(self.spec.name, _ONE_A_THREAD)

    def _sort(self, *config: Any) -> Settings:
        settings = dict(
            zip(self.spec.config_names, self.spec.with_choice_names(config), strict=True)
        )
        if self.spec.size:  # a kernel has one size: torch.compile must specialise on it
            settings[self.spec.size] = int(settings[self.spec.size])
        own = tuple(settings[name] for kind, name in self._config_schema if kind == "float")
        floats = (*own, *self._launches.derived(settings))
        separate = ("inverse", "batch_dims")
        others = [
            name for kind, name in self._config_schema if kind != "float" and name not in separate
        ]
        return Settings(
            floats + (0.0,) * (_NUM_SETTINGS - len(floats)),
            tuple(settings[name] for name in others),
            settings["inverse"],
            settings["batch_dims"],
            settings.get(self.spec.size, 0),
            self.spec.counts(settings),
        )

    def forward(self, x: Tensor, *arguments: Any) -> tuple[Tensor, Tensor]:
        """(y, logabsdet): the reference of the same name, by a Triton kernel."""
        groups, constant, settings = self._split(arguments)
        launches, params = self._launches, _nonempty(groups, settings)

        def run(call: Call, y: Tensor, logabsdet: Sink) -> None:
            arguments = (
                *(call.x, *_padded(call.params), call.constant, y, logabsdet.data),
                *settings.floats,
                *call.plan.geometry(),
                *call.strides(call.x),
                *(s for each in _padded(call.params) for s in call.planes(each)),
                *call.planes(call.constant),
                *call.strides(y),
                *call.sums(logabsdet),
            )
            reads = self._groups(groups, settings, [call.rows(p) for p in call.params])
            constants = self._constants(settings, reads, call)
            launch(transform_kernel, call.plan.programs, arguments, constants, launches.num_warps)

        half = groups[0].element_size() == 2
        block = launches.half_block if half else launches.block
        return transform(x, params, constant, settings.batch_dims, block, run)

    def backward(
        self, grad_y: Tensor | None, grad_logabsdet: Tensor | None, x: Tensor, *arguments: Any
    ) -> tuple[Tensor, ...]:
        """Gradients by x and each group, empty where its bit of the last argument is not set."""
        *others, needed = arguments
        groups, constant, settings = self._split(others)
        launches, params = self._launches, _nonempty(groups, settings)

        def run(
            call: Call,
            grad_y: Tensor | None,
            grad_logabsdet: Tensor | None,
            grad_x: Tensor | None,
            sinks: tuple[Sink, ...],
        ) -> None:
            outs = _padded(sinks, NO_SINK)
            arguments = (
                *(call.x, *_padded(call.params), call.constant, grad_y, grad_logabsdet, grad_x),
                *(sink.data for sink in outs),
                *settings.floats,
                *call.plan.geometry(),
                *call.strides(call.x),
                *(s for each in _padded(call.params) for s in call.planes(each)),
                *call.planes(call.constant),
                *call.strides(grad_y),
                *call.strides(grad_logabsdet),
                *call.strides(grad_x),
                *(s for sink in outs for s in call.plane_sums(sink)),
            )
            reads = self._groups(groups, settings, [call.rows(p) for p in call.params])
            writes = self._groups(groups, settings, [call.rows(sink) for sink in sinks])
            constants = {**self._constants(settings, reads, call), "WRITES": writes}
            launch(gradient_kernel, call.plan.programs, arguments, constants, launches.num_warps)

        half = groups[0].element_size() == 2
        block = launches.half_gradient_block if half else launches.gradient_block
        needs_grad = tuple(bool(needed >> i & 1) for i in range(1 + len(params)))
        grad_x, *grads = gradient(
            grad_y, grad_logabsdet, x, params, constant, needs_grad, block, run,
            settings.in_registers,
        )  # fmt: skip
        for i in range(len(params), self._num_groups):
            group = groups[i]
            if group is not None and needed >> (1 + i) & 1:
                grads.append(group.new_empty(group.shape))  # of no elements
            else:
                grads.append(x.new_empty(0))
        return (grad_x, *grads)

    def _split(self, arguments: Sequence[Any]) -> tuple[tuple[Any, ...], Tensor | None, Settings]:
        """Groups of parameters, the constant tensor, and the configuration."""
        count = self._num_groups
        constant = arguments[count] if self._num_tensors > count else None
        settings = self._settings(*arguments[self._num_tensors :])
        return tuple(arguments[:count]), constant, settings

    def _groups(
        self, groups: Sequence[Tensor | None], settings: Settings, rows: Sequence[int]
    ) -> tuple[Group, ...]:
        """READS, or WRITES, with ROWS of each tensor."""
        counts: Sequence[int] = settings.counts
        if len(counts) > 1 and groups[-1] is None:  # all lie in the first tensor
            if self._launches.together:
                counts = [sum(counts)]
            firsts = [sum(counts[:i]) for i in range(len(counts))]
            slots = [0] * len(counts)
        else:
            firsts, slots = [0] * len(counts), list(range(len(counts)))
        return tuple(
            (slot, first, count, triton.next_power_of_2(count), rows[slot] if count > 1 else 0)
            for slot, first, count in zip(slots, firsts, counts, strict=True)
        )

    def _constants(
        self, settings: Settings, reads: tuple[Group, ...], call: Call
    ) -> dict[str, Any]:
        return {
            "TRANSFORM": self.spec.name,
            "INVERSE": settings.inverse,
            "OPTIONS": (*settings.options, *settings.counts),
            "READS": reads,
            "IN_REGISTERS": settings.in_registers,
            **call.constants(),
        }


def _nonempty(groups: Sequence[Tensor | None], settings: Settings) -> tuple[Tensor, ...]:
    """The parameter tensors that are not empty."""
    return tuple(
        group
        for group, count in zip(groups, settings.counts, strict=True)
        if group is not None and count > 0
    )


def _padded(values: Sequence[Any], absent: Any = None) -> list[Any]:
    return [*values, *[absent] * (_NUM_GROUPS - len(values))]


def functions(spec: Spec) -> tuple[Callable[..., Any], Callable[..., Any]]:
    """A transform and its backward: the functions around which its operators are made."""
    function = Function(spec)
    return function.forward, function.backward
