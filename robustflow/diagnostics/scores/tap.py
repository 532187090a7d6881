"""The outputs of a module inside a model, collected while the model runs."""

from __future__ import annotations

import difflib
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

from torch import Tensor, nn

from robustflow.diagnostics.scores.features import Features

_NEAREST = 5  # names that an error lists


class Tap:
    """What :func:`tap` collects.

    Attributes:
        outputs: by module name, what each call returned, in order of the calls.
    """

    def __init__(self, names: Sequence[str], alone: bool) -> None:
        self.outputs: dict[str, list[Any]] = {name: [] for name in names}
        self._alone = alone

    @property
    def last(self) -> Features:
        """The result of the module's last call; with several modules, a dict by name.

        Raises:
            RuntimeError: a module was not called.
        """
        for name, outputs in self.outputs.items():
            if not outputs:
                raise RuntimeError(
                    f"The module {name!r} was not called while it was tapped: run the model inside "
                    "the block, with inputs that reach the module. A model that was compiled "
                    "before does not see the hooks: run the one that was given to torch.compile."
                )
        if self._alone:
            (outputs,) = self.outputs.values()
            return outputs[-1]
        return {name: outputs[-1] for name, outputs in self.outputs.items()}

    def take(self) -> Features:
        """Return :attr:`last` and forget it, so that memory does not grow from batch to batch."""
        features = self.last
        for outputs in self.outputs.values():
            outputs.clear()
        return features


@contextmanager
def tap(model: nn.Module, name: str | Sequence[str], *, detach: bool = True) -> Iterator[Tap]:
    """Collect what modules of a model return while it runs inside the block.

    Args:
        model: any module.
        name: of the module, as ``model.named_modules()`` has it ("" is the model itself); or
            several names, for levels of features.
        detach: cut the outputs from autograd's graph.

    Yields:
        A :class:`Tap`. ``tap.take()`` returns what the last call returned and forgets it, ready
        for :meth:`MahalanobisScore.fit`; ``tap.outputs`` has every call's.

    The hooks are removed at the end of the block, whatever happens inside.

    Raises:
        ValueError: no module of that name; the nearest names are listed.
        TypeError: in a call, a module returned no tensor, and no tuple, list or dict of them.

    Example:
        >>> import torch
        >>> from robustflow.diagnostics import MahalanobisScore, tap
        >>> from robustflow.nn import Affine, ConditionalFlow, flow_step
        >>> encoder = torch.nn.Sequential(torch.nn.Conv2d(3, 8, 3, padding=1), torch.nn.ReLU())
        >>> flow = ConditionalFlow([flow_step(4, 8, Affine())], encoder)
        >>> photographs = [torch.rand(4, 3, 8, 8) for _ in range(5)]
        >>> def features(name):
        ...     with torch.no_grad(), tap(flow, name) as tapped:
        ...         for photograph in photographs:
        ...             _ = flow.sample(1, photograph)
        ...             yield tapped.take()
        >>> MahalanobisScore().fit(features("encoder")).levels
        {'0': 8}

        A hidden layer of a coupling's conditioner; a list of names would give several levels:

        >>> name = next(n for n, _ in flow.named_modules() if n.endswith("trunk.1"))
        >>> MahalanobisScore().fit(features(name)).levels
        {'0': 64}
    """
    alone = isinstance(name, str)
    names = [name] if isinstance(name, str) else list(name)
    modules = dict(model.named_modules())
    for module_name in names:
        if module_name not in modules:
            raise ValueError(_unknown(module_name, list(modules)))
    tapped = Tap(names, alone)
    handles = []

    def collect(module_name: str) -> Any:
        def hook(module: nn.Module, args: Any, output: Any) -> None:
            tapped.outputs[module_name].append(_tensors(module_name, output, detach))

        return hook

    try:
        for module_name in names:
            handles.append(modules[module_name].register_forward_hook(collect(module_name)))
        yield tapped
    finally:
        for handle in handles:
            handle.remove()


def _tensors(name: str, output: Any, detach: bool) -> Any:
    """The output, as features are given: a tensor, or a tuple, list or dict of them."""
    if isinstance(output, Tensor):
        return output.detach() if detach else output
    if isinstance(output, Mapping):
        return {key: _tensors(name, part, detach) for key, part in output.items()}
    if isinstance(output, tuple | list):
        return tuple(_tensors(name, part, detach) for part in output)
    raise TypeError(
        f"The module {name!r} returned a {type(output).__name__}, and features are tensors, or a "
        "tuple, list or dict of them: tap a module inside it."
    )


def _unknown(module_name: str, names: list[str]) -> str:
    last = module_name.rpartition(".")[2]
    nearest = difflib.get_close_matches(module_name, names, _NEAREST, cutoff=0.5)
    nearest += [name for name in names if name.rpartition(".")[2] == last and last]
    listed = list(dict.fromkeys(nearest))[:_NEAREST] or [name for name in names if name][:_NEAREST]
    if not listed:
        return (
            f"The model has no module {module_name!r}, nor any other inside: give '' for the model."
        )
    return (
        f"The model has no module {module_name!r}. Near it are {', '.join(map(repr, listed))}; "
        "model.named_modules() lists all."
    )
