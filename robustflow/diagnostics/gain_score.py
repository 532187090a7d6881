"""A score of conditions that needs no training set: the gain while inverting the latents' mean."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn

from robustflow._modes import evaluating
from robustflow.diagnostics._find import find_layers
from robustflow.diagnostics._gains import largest_gains, watching
from robustflow.diagnostics._sampling import Contexts, Run, check_contexts, sample_mean
from robustflow.diagnostics.scores.conformal import Calibrated


class GainScore(Calibrated):
    """The largest inverse derivative of any layer while the latents' mean is inverted.

    An affine coupling whose scale collapses for an unfamiliar condition multiplies by one over
    it, and the score is that factor. It needs no training set, and one sampling pass. A healthy
    spline may pass 1e3 inside its box without moving any value far: compare scores of one model,
    not of models with different transforms. :func:`robustflow.diagnostics.certify` gives an upper
    bound for all scores of a model.

    Args:
        model: a flow that takes a context, of :mod:`robustflow.nn`, nflows, glasflow, normflows
            (``ConditionalNormalizingFlow``), zuko, or FrEIA's ``SequenceINN``; any other with
            layers of these or of :mod:`robustflow.compat.srflow`, with ``run``.
        run: how to sample once for each context, ``run(model, contexts)``, with the latents at
            their mean.
        layers: names of the layers to ask; None: all.

    Raises:
        ValueError, TypeError: no flow layer in the model, names that it does not have; in a call,
            contexts that are none, a model that is not known how to sample from.

    Example:
        >>> from robustflow import nn as rnn
        >>> flow = rnn.ConditionalFlow([rnn.flow_step(2, 3, rnn.Affine(), spatial_dims=0)])
        >>> score = GainScore(flow).calibrate(torch.randn(99, 3))
        >>> alarms = score.score(torch.randn(5, 3)) > score.threshold(alpha=0.05)
        >>> alarms.shape
        torch.Size([5])
    """

    def __init__(
        self, model: nn.Module, *, run: Run | None = None, layers: Iterable[str] | None = None
    ) -> None:
        if run is not None and not callable(run):
            raise TypeError(
                f"run must be called as run(model, contexts), got {type(run).__name__}."
            )
        self.layers = None if layers is None else tuple(layers)
        find_layers(model, self.layers)
        self.model = model
        self.run = run or sample_mean

    @torch.no_grad()
    def __call__(self, context: Contexts) -> Tensor:
        """N contexts -> (N,), the largest inverse derivative of each; infinite where it is NaN.

        Args:
            context: a tensor, or what the model takes for N contexts (a sequence of tensors).
        """
        number = len(check_contexts("context", context)[0])
        with evaluating(self.model), watching(self.model, self.layers) as watcher:
            self.run(self.model, context)
        logs: Any = largest_gains(watcher, number)
        return logs.amax(dim=0).exp().nan_to_num(nan=torch.inf, posinf=torch.inf)

    def score(self, context: Contexts) -> Tensor:
        """The same as calling it: N contexts -> (N,)."""
        return self(context)

    def calibrate(self, batches: Tensor | Iterable[Contexts]) -> GainScore:
        """Score held-out contexts, of which :meth:`threshold` takes a quantile.

        Args:
            batches: of contexts; one tensor is one batch. Replaces earlier ones.

        Returns:
            self.

        Raises:
            ValueError: no context.
        """
        every = [batches] if isinstance(batches, Tensor) else batches
        scores = [self(context).cpu().double() for context in every]
        if not scores:
            raise ValueError("batches holds no contexts: calibrate on at least one.")
        self._calibration = torch.cat(scores)
        return self
