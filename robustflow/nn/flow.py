"""Conditional flow: levels under one encoder, with log_prob and sample."""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from robustflow._checks import check_at_least_zero, check_tensor, describe
from robustflow.nn._checks import (
    check_batch_fits,
    check_counts,
    check_layers,
    check_module,
    check_one_batch_size,
    check_shape,
)
from robustflow.nn.base import Base, LatentBase, StandardNormal, as_base
from robustflow.nn.condition import Condition
from robustflow.nn.level import Activations, FlowLevel, States
from robustflow.nn.precision import zero_logabsdet
from robustflow.nn.sampling import Gathered, Order, SamplingOptions, block_size
from robustflow.nn.upsampled import Upsampled

if TYPE_CHECKING:
    from typing_extensions import Unpack

Context = Tensor | Upsampled | Sequence[Tensor | Upsampled]
Latents = tuple[Tensor, ...]


class ConditionalFlow(nn.Module):
    r"""A density over x, given a context if a layer takes one, and samples of it.

    x passes through the levels in order. A level that ends with a :class:`~robustflow.nn.Split`
    returns half of its channels as a latent and passes the other half to the next level; a level
    without one passes all of them. The output of the last level is the last latent. All latents
    are standard normal, unless ``base`` says otherwise.

    x has shape (N, C, \\*S), or (N, D). Each call takes a context: one for each x, or a single one
    for all. For reuse, pass in its place a ``condition`` that :meth:`condition` made from it. If no
    layer takes a context, pass neither.

    To train with several processes, wrap :class:`~robustflow.nn.LogProb` of the flow in
    ``DistributedDataParallel``, because that wraps only a module's ``forward``.

    Args:
        levels: for each level its layers: modules called as
            ``layer(z, context, inverse=...) -> (z, logabsdet (N,))``.
        encoder: from the context to one feature tensor per level (a single tensor will do for one
            level), of the spatial size that z has in that level's conditional layers, or 1.
            Smaller features that are to be enlarged to that size are best given as
            :class:`Upsampled`. None: the context itself is these features.
        base: the distribution of the latents; None: standard normal. A
            ``torch.distributions`` Distribution whose batch and event shape expand to a latent's
            shape without N; a :class:`~robustflow.nn.CircularBase`; a pair of functions
            ``sample(number) -> (number, C, \\*S)`` and ``log_prob(z) -> (N,)``, or an object with
            such methods (a module is then trained and moved with the flow). One for all latents, or
            a list with one for each.
        activations: what a training step keeps for its backward pass. ``"store"``: all that
            autograd asks for. ``"recompute"``: z between the layers; each layer runs again.
            ``"reversible"``: z at the end of each level; layers are inverted and run again, and
            memory does not grow with their number. The gradients are then as accurate as the
            inverses, whose rounding errors are multiplied by the local gains, layer after layer.
            With the last two, each layer projects the context itself, each time it runs in a
            training step.

    Attributes:
        channels: of x; None if no layer declares its channels.
        size_multiple: the sides of x must be multiples of this number.

    Raises:
        TypeError: an argument is not of the types above.
        ValueError: there are no levels or layers, a Split at the end, layers whose channels do not
            fit, or an encoder although no layer takes a context. In a call: a context is missing,
            does not fit, or is given although no layer takes one; a context and a condition are
            both given; x has another shape.

    Example:
        >>> from robustflow.nn import ModifiedRQSpline, Squeeze, flow_step
        >>> flow = ConditionalFlow([[Squeeze(2), *flow_step(12, 16, ModifiedRQSpline())]])
        >>> x, context = torch.randn(4, 3, 16, 16), torch.randn(4, 16, 8, 8)
        >>> flow.log_prob(x, context).shape
        torch.Size([4])
        >>> flow.sample(5, context, temperature=0.9).shape
        torch.Size([4, 5, 3, 16, 16])

        Without a context, over (N, D):

        >>> from robustflow.nn import RQSplineCoupling
        >>> halves = [RQSplineCoupling(6, spatial_dims=0, reverse=turn) for turn in (False, True)]
        >>> ConditionalFlow([halves]).sample(100).shape
        torch.Size([100, 6])
    """

    def __init__(
        self,
        levels: Sequence[Sequence[nn.Module]],
        encoder: nn.Module | None = None,
        *,
        base: Base | Sequence[Base | None] | None = None,
        activations: Activations = "store",
    ) -> None:
        super().__init__()
        if not isinstance(levels, Sequence | nn.ModuleList) or isinstance(levels, str):
            raise TypeError(f"levels must be a list of lists of layers, got {describe(levels)}.")
        if not levels:
            raise ValueError("levels must have at least one level, got none.")
        for i, layers in enumerate(levels):
            check_layers(layers, f"levels[{i}]")
        self.levels = nn.ModuleList(FlowLevel(layers, activations) for layers in levels)
        if self._flow_levels()[-1].split is not None:
            raise ValueError(
                "The last of the levels must not end with a Split: nothing follows it."
            )
        self._check_channels()
        channels: int | None = None
        for level in reversed(self._flow_levels()):
            channels = level.input_channels(channels)
        self.channels = channels
        self.size_multiple = math.prod(level.size_multiple for level in self._flow_levels())
        self.bases = self._make_bases(base)
        if encoder is not None:
            check_module("encoder", encoder)
        self.encoder = encoder
        if encoder is not None and not self._may_take_context():
            raise ValueError(
                "encoder was given, but no layer takes a context: build the layers with "
                "context_channels equal to the number of the encoder's output channels."
            )

    def condition(self, context: Context) -> Condition:
        """Encode and project a context once, for any number of calls with ``condition=``.

        Raises:
            ValueError: no layer takes a context; or the features are not one tensor for each
                level, all of one batch size.
        """
        self._check_takes_context("context")
        features = context if self.encoder is None else self.encoder(context)
        what = "context" if self.encoder is None else "The output of encoder"
        per_level = [features] if isinstance(features, Tensor | Upsampled) else features
        if not isinstance(per_level, list | tuple):
            raise TypeError(
                f"{what} must be a tensor, or a list of one for each level, got "
                f"{describe(features)}."
            )
        for feature in per_level:
            if not isinstance(feature, Upsampled):
                check_tensor(what, feature)
        if len(per_level) != len(self.levels):
            raise ValueError(
                f"The flow has {len(self.levels)} level(s) and needs one feature tensor for each, "
                f"got {len(per_level)}."
            )
        check_one_batch_size("The features of all levels", per_level)
        return Condition(
            tuple(
                level.project(feature)
                for level, feature in zip(self._flow_levels(), per_level, strict=True)
            ),
            tuple(feature.shape[2:] for feature in per_level),
            per_level[0].shape[0],
        )

    def forward(
        self, x: Tensor, context: Context | None = None, *, condition: Condition | None = None
    ) -> tuple[Latents, Tensor]:
        """From x (N, C, \\*S) and N contexts, or one, to the latents and logabsdet (N,)."""
        self._check_x(x)
        every_state = self._states(context, condition, x.shape[0])
        latents = []
        total = zero_logabsdet(x)
        z = x
        for level, states in zip(self._flow_levels(), every_state, strict=True):
            z, latent, logabsdet = level(z, states)
            total = total + logabsdet
            if latent is not None:
                latents.append(latent)
        return (*latents, z), total

    def inverse(
        self,
        latents: Sequence[Tensor],
        context: Context | None = None,
        *,
        condition: Condition | None = None,
    ) -> tuple[Tensor, Tensor]:
        """From latents as :meth:`forward` returns them to x and this direction's logabsdet (N,)."""
        self._check_latents(latents)
        every_state = self._states(context, condition, latents[-1].shape[0])
        *left, z = latents
        total = zero_logabsdet(z)
        for level, states in zip(reversed(self._flow_levels()), reversed(every_state), strict=True):
            latent = left.pop() if level.split is not None else None
            z, logabsdet = level.inverse(z, latent, states)
            total = total + logabsdet
        return z, total

    def log_prob(
        self, x: Tensor, context: Context | None = None, *, condition: Condition | None = None
    ) -> Tensor:
        """log p(x | context) in nats, (N,); float32, or float64 if x or a weight is."""
        latents, logabsdet = self(x, context, condition=condition)
        return logabsdet + self.latent_log_prob(latents)

    def latent_log_prob(self, latents: Sequence[Tensor]) -> Tensor:
        """Log-density in nats, (N,), of the latents of :meth:`forward` under the flow's base.

        Summed in float32, or in float64 if a latent is float64.
        """
        self._check_latents(latents)
        total = zero_logabsdet(latents[0])
        for base, latent in zip(self._latent_bases(), latents, strict=True):
            total = total + base.log_prob(latent)
        return total

    def bits_per_dim(
        self, x: Tensor, context: Context | None = None, *, condition: Condition | None = None
    ) -> Tensor:
        """``-log_prob`` in bits for each value of x, (N,).

        For integer data, such as 8-bit pictures, begin the flow with
        :class:`~robustflow.nn.Dequantize`. Then this is an upper bound on the bits per integer.
        """
        dimensions = math.prod(x.shape[1:])
        return -self.log_prob(x, context, condition=condition) / (dimensions * math.log(2))

    def sample(
        self,
        num_samples: int,
        context: Context | None = None,
        *,
        condition: Condition | None = None,
        temperature: float | Sequence[float] = 1.0,
        generator: torch.Generator | None = None,
        size: Sequence[int] | None = None,
        batch_size: int | None = None,
    ) -> Tensor:
        """Samples of each context, (N, num_samples, C, \\*S); without one, (num_samples, C, \\*S).

        This method computes no gradients; :meth:`rsample` does.

        Each context is projected once, and projections are never copied. The samples of one context
        are computed together, with its projection at batch size 1. If there are more contexts than
        samples, one sample of every context is computed at a time instead, num_samples times.

        Samples go through the flow in blocks. Their size depends only on the shape of x and on the
        device: about 2**18 values on a CPU, 2**21 on a GPU, and at least one sample. So the same
        seed gives the same bits whatever ``batch_size`` is. The peak memory is that of the result,
        the condition, the latents of ``batch_size`` samples, and one block.

        Args:
            num_samples: samples per context, at least 1.
            context: N contexts; or None, with ``condition``, or if no layer takes one.
            condition: what :meth:`condition` returned for them.
            temperature: factor on the standard normal latents, and so their standard deviation; at
                least 0. One for all latents, or one for each of :meth:`forward`'s, in order.
            generator: random generator for the latents, on the parameters' device.
            size: the spatial size of x. None: it follows from the size of the features in each
                level, so give it if features of size 1 serve every position; without a context
                ``()``, for x of shape (N, D).
            batch_size: number of samples whose latents are in memory at a time, rounded up to whole
                blocks. None: all, which takes as much memory as the result.

        Raises:
            TypeError, ValueError: a number, temperature or size has the wrong type or is out of
                range, or a context is missing.
        """
        with torch.no_grad():
            options: SamplingOptions = {
                "condition": condition,
                "temperature": temperature,
                "generator": generator,
                "size": size,
            }
            return self._sample(num_samples, context, options, batch_size)[0]

    def rsample(
        self,
        num_samples: int,
        context: Context | None = None,
        **options: Unpack[SamplingOptions],
    ) -> Tensor:
        """:meth:`sample` with gradients to the weights and the context, through the inverse.

        Args:
            num_samples, context: as for :meth:`sample`.
            options: ``condition``, ``temperature``, ``generator`` and ``size``, as there.
        """
        return self._sample(num_samples, context, options)[0]

    def sample_and_log_prob(
        self,
        num_samples: int,
        context: Context | None = None,
        *,
        batch_size: int | None = None,
        **options: Unpack[SamplingOptions],
    ) -> tuple[Tensor, Tensor]:
        """:meth:`sample`, and :meth:`log_prob` of the samples, (N, num_samples) or (num_samples,).

        The density is that of the flow at temperature 1, whatever the temperature of the samples.
        It comes from the same pass. This method computes no gradients;
        :meth:`rsample_and_log_prob` does.

        Args:
            num_samples, context, batch_size: as for :meth:`sample`.
            options: ``condition``, ``temperature``, ``generator`` and ``size``, as there.
        """
        with torch.no_grad():
            samples, density = self._sample(num_samples, context, options, batch_size, density=True)
            return samples, density

    def rsample_and_log_prob(
        self,
        num_samples: int,
        context: Context | None = None,
        **options: Unpack[SamplingOptions],
    ) -> tuple[Tensor, Tensor]:
        """:meth:`sample_and_log_prob` with gradients, to train with a reverse KL divergence.

        Args:
            num_samples, context: as for :meth:`sample`.
            options: ``condition``, ``temperature``, ``generator`` and ``size``, as there.
        """
        samples, density = self._sample(num_samples, context, options, density=True)
        return samples, density

    def latent_shapes(self, size: Sequence[int] = ()) -> list[tuple[int, ...]]:
        """The shapes of :meth:`forward`'s latents without the batch, for x of this spatial size.

        Raises:
            ValueError: the size is not a multiple of ``size_multiple``, or no layer declares its
                channels.
        """
        return self._latent_shapes(self._sizes(size, None))

    def _sample(
        self,
        num_samples: int,
        context: Context | None,
        options: SamplingOptions,
        batch_size: int | None = None,
        *,
        density: bool = False,
    ) -> list[Tensor]:
        """Samples and, with ``density``, their log-density."""
        if isinstance(num_samples, Tensor):
            raise TypeError(
                f"num_samples must be a number, got {describe(num_samples)}: it comes before the "
                "context, as in sample(num_samples, context)."
            )
        check_counts(num_samples=num_samples)
        if batch_size is not None:
            check_counts(batch_size=batch_size)
        condition = self._choose_condition(context, options.get("condition"))
        shapes = self._latent_shapes(self._sizes(options.get("size"), condition))
        temperatures = self._temperatures(options.get("temperature", 1.0), len(shapes))
        like = next(self.parameters(), torch.empty(0))
        order = Order(num_samples, condition, block_size(shapes, like.device))
        results = [Gathered(order) for _ in range(2 if density else 1)]
        for piece in order.pieces(batch_size):
            drawn = deque(
                self._draw(block.stop - block.start, shapes, temperatures, options.get("generator"))
                for block in piece
            )
            for block in piece:
                latents = drawn.popleft()
                x, logabsdet = self.inverse(latents, condition=block.condition)
                results[0].add(block, x)
                if density:
                    results[1].add(block, self.latent_log_prob(latents) - logabsdet)
        return [each.result() for each in results]

    @property
    def needs_context(self) -> bool:
        """Whether there is an encoder, or a layer that declares channels of a context."""
        return self.encoder is not None or any(level.needs_context for level in self._flow_levels())

    def _make_bases(self, base: Base | Sequence[Base | None] | None) -> nn.ModuleList:
        """One base for each latent; several latents may share one."""
        channels = self._latent_channels()
        per_latent = base if isinstance(base, list) else [base] * len(channels)
        if len(per_latent) != len(channels):
            raise ValueError(
                f"base must be one distribution, or a list of {len(channels)}, one for each "
                f"latent, got {len(per_latent)}."
            )
        modules = {id(each): as_base(each) for each in per_latent}
        bases = [modules[id(each)] for each in per_latent]
        for each, expected in zip(bases, channels, strict=True):
            actual = getattr(each, "channels", None)
            if None not in (actual, expected) and actual != expected:
                raise ValueError(f"base has {actual} channels, but its latent has {expected}.")
        return nn.ModuleList(bases)

    def _check_channels(self) -> None:
        """Check that the channels of neighbouring layers fit, as far as layers declare them."""
        channels: int | None = None
        for i, level in enumerate(self._flow_levels()):
            for j, layer in enumerate(level.layers):
                own = getattr(layer, "channels", None)
                if channels is not None and own is not None and own != channels:
                    raise ValueError(
                        f"levels[{i}][{j}], {describe(layer)}, has {own} channels, and gets "
                        f"{channels} from the layers before it."
                    )
                change = getattr(layer, "output_channels", None)
                if own is not None or change is None:  # without both the number is not known
                    channels = own
                if change is not None and channels is not None:
                    channels = change(channels)
            if level.split is not None:
                channels = level.split.kept_channels

    def _check_x(self, x: Tensor) -> None:
        check_tensor("x", x)
        if x.dim() < 2:
            raise ValueError(f"x must have shape (N, C, *S) or (N, D), got {tuple(x.shape)}.")
        if self.channels is not None:
            check_shape("x", x, self.channels)
        self._checked_size("x", x.shape[2:])

    def _checked_size(self, name: str, size: Sequence[int]) -> torch.Size:
        """The spatial size of x, checked to be a multiple of ``size_multiple``."""
        if not isinstance(size, Sequence):
            raise TypeError(f"{name} must be a sequence such as (32, 32), got {describe(size)}.")
        if any(side % self.size_multiple for side in size):
            raise ValueError(
                f"{name} must have sides that are multiples of {self.size_multiple} for this flow, "
                f"got {tuple(size)}: crop or pad."
            )
        return torch.Size(size)

    def _check_latents(self, latents: Sequence[Tensor]) -> None:
        if not isinstance(latents, list | tuple):
            raise TypeError(f"latents must be a tuple of tensors, got {describe(latents)}.")
        number = 1 + sum(level.split is not None for level in self._flow_levels())
        if len(latents) != number:
            raise ValueError(
                f"latents must be a tuple of {number}, one for each level that ends with a Split "
                f"and one for the last level, got {len(latents)}."
            )
        for i, latent in enumerate(latents):
            check_tensor(f"latents[{i}]", latent)
        check_one_batch_size("latents", latents)

    def _check_takes_context(self, name: str) -> None:
        if not self._may_take_context():
            raise ValueError(
                f"{name} was given, but no layer of this flow takes one: leave it out, or build "
                "the layers with the context's number of channels as their context_channels."
            )

    def _may_take_context(self) -> bool:
        """Whether some layer takes a context, or does not declare whether it does."""
        return any(level.may_take_context for level in self._flow_levels())

    def _sizes(self, size: Sequence[int] | None, condition: Condition | None) -> list[torch.Size]:
        """The spatial size of z at the end of each level."""
        if size is None and condition is not None:
            return list(condition.sizes)
        sizes = []
        current = self._checked_size("size", () if size is None else size)
        for level in self._flow_levels():
            current = level.output_size(current)
            sizes.append(current)
        return sizes

    def _latent_shapes(self, sizes: Sequence[torch.Size]) -> list[tuple[int, ...]]:
        """The shape of each latent without the batch, for z of these sizes in the levels."""
        ends = [level.split is not None for level in self._flow_levels()]
        ends[-1] = True
        sizes = [size for size, end in zip(sizes, ends, strict=True) if end]
        shapes: list[tuple[int, ...]] = []
        for channels, size in zip(self._latent_channels(), sizes, strict=True):
            if channels is None:
                raise ValueError("To sample, at least one layer must have an attribute channels.")
            shapes.append((channels, *size))
        return shapes

    def _latent_channels(self) -> list[int | None]:
        """Channels of each latent; None if no layer declares them."""
        split_off: list[int | None] = []
        channels: int | None = None
        for level in self._flow_levels():
            channels = level.output_channels(channels)
            if level.split is not None:
                channels = level.split.kept_channels
                split_off.append(level.split.channels - channels)
        return [*split_off, channels]

    @staticmethod
    def _temperatures(temperature: float | Sequence[float], number: int) -> list[float]:
        """One temperature for each latent."""
        if not isinstance(temperature, Sequence) or isinstance(temperature, str):
            check_at_least_zero("temperature", temperature)
            return [temperature] * number
        for i, each in enumerate(temperature):
            check_at_least_zero(f"temperature[{i}]", each)
        if len(temperature) != number:
            raise ValueError(
                f"temperature must be a number, or {number} of them, one for each latent of this "
                f"flow, got {len(temperature)}."
            )
        return list(temperature)

    def _draw(
        self,
        number: int,
        shapes: Sequence[tuple[int, ...]],
        temperatures: Sequence[float],
        generator: torch.Generator | None,
    ) -> Latents:
        like = next(self.parameters(), torch.empty(0))
        latents = []
        for base, shape, temperature in zip(
            self._latent_bases(), shapes, temperatures, strict=True
        ):
            latent = base.draw((number, *shape), generator, like)
            if isinstance(base, StandardNormal):
                latent = temperature * latent
            elif temperature != 1:
                raise ValueError(
                    "temperature must be 1 unless every base is a standard normal: it is the "
                    "standard deviation of the latents."
                )
            latents.append(latent)
        return tuple(latents)

    def _latent_bases(self) -> list[LatentBase]:
        return [base for base in self.bases if isinstance(base, LatentBase)]

    def _flow_levels(self) -> list[FlowLevel]:
        return [level for level in self.levels if isinstance(level, FlowLevel)]

    def _states(
        self, context: Context | None, condition: Condition | None, batch_size: int
    ) -> tuple[States, ...]:
        """What each level's layers need, for z of this batch size."""
        condition = self._choose_condition(context, condition)
        if condition is None:
            return tuple(level.project(None) for level in self._flow_levels())
        check_batch_fits("The context", condition.batch_size, batch_size)
        return condition.states

    def _choose_condition(
        self, context: Context | None, condition: Condition | None
    ) -> Condition | None:
        """The condition of a call: given, or made from the context; None if the flow takes none."""
        if context is not None and condition is not None:
            raise ValueError("Give either a context or a condition, not both: they may differ.")
        if context is not None:
            return self.condition(context)
        if condition is not None:
            self._check_condition(condition)
        elif self.needs_context:
            raise ValueError(
                "This flow needs a context, or a condition made from one by condition(context)."
            )
        return condition

    def _check_condition(self, condition: Condition) -> None:
        if not isinstance(condition, Condition):
            raise TypeError(
                "condition must be what flow.condition(context) returned, got "
                f"{type(condition).__name__}: a context itself is given as context=."
            )
        self._check_takes_context("condition")
        layers = [len(level.layers) for level in self._flow_levels()]
        if [len(states) for states in condition.states] != layers:
            raise ValueError(
                "condition was made by another flow: its levels have "
                f"{[len(states) for states in condition.states]} layers, those of this flow "
                f"{layers}."
            )
