"""The 4x paper preset beside the published design, and the memory of all paper presets.

    python -m benchmarks.paper_flow [--threads N] [--json FILE] [--quick] [--kind NAME ...]
                                    [--part comparison|presets ...] [--seconds S]

**comparison**: a training step, one sample and ten of one picture, 160 x 160 pixels, batch 1, of

- ``robustflow``: the flow of ``robustflow train sr --preset paper``;
- ``published``: the published network's order and widths (L = 3, K = 16, the std-conditional third
  in levels 2 and 3) as its users run it: each conditioner one convolution of the concatenation,
  with actnorms of their own, and the transform in plain PyTorch; for the modified RQ spline the
  elements in the box are gathered by a mask and scattered back, as published (less its assertion).
  Samples are drawn one by one.

Both read the same features of the encoder (320 channels, resized to each level), which is not in
these times: what it takes is a row of its own. Times are medians in alternation, with the default
allocator; peaks are each of a process of its own. Where our time goes is told by part of the work
and by operator.

**presets**: one training step of each paper preset (4x, 8x, low light), batch 1, with the
activations stored, recomputed and rebuilt; with the encoder trained, and frozen, so that what the
flow takes is seen.

A training step is the loss, its gradients and Adam's update.
"""

from __future__ import annotations

import argparse
import functools
import gc
import json
import os
import sys
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, get_args

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.profiler import ProfilerActivity, profile

from benchmarks import srflow
from robustflow import nn as rnn
from robustflow._arguments import output_file, whole_number
from robustflow.benchmarks import allocator, eager, machine, memory, timing
from robustflow.benchmarks.rows import duration, table, write_json
from robustflow.compat.srflow import ActNorm
from robustflow.experiments.encoders import RRDB, RRDBEncoder
from robustflow.experiments.imaging.config import Config, override, preset
from robustflow.experiments.imaging.model import ImagingFlow
from robustflow.experiments.imaging.published.layers import Layers, Split, Step
from robustflow.nn.level import Activations

MODULE = "benchmarks.paper_flow"
SAMPLES = 10
TEMPERATURE = 0.8
KINDS = {"modified_rq": "rqspline", "affine": "affine"}  # our name of a coupling -> published
TOLD = (0, 16, 16)  # of each level, how many of its last couplings are told the noise
PRESETS = {"4x": ("sr", "paper"), "8x": ("sr", "paper-8x"), "low light": ("lowlight", "paper")}
ENCODERS = ("trained", "frozen")
PARTS = ("comparison", "presets")
_TOP = 12  # operators of a breakdown


@dataclass(frozen=True)
class Shape:
    """Of what is measured.

    Attributes:
        pixels: side of x in the comparison.
        preset_pixels: side of x for the presets.
        steps: flow steps of a level; 0: the preset's.
        features: channels of the features in the comparison.
        blocks: of the encoders.
        seconds: a group of cases, beyond warm-up.
    """

    pixels: int = 160
    preset_pixels: int = 160
    steps: int = 0
    features: int = 320
    blocks: int = 23
    seconds: float = 60.0


QUICK = Shape(pixels=32, preset_pixels=32, steps=2, features=16, blocks=2, seconds=0.2)


@dataclass(frozen=True)
class Masked:
    """The modified RQ spline of the elements in the box, gathered and scattered by a mask."""

    transform: Any
    num_params: int = 4

    def __call__(
        self, x: Tensor, params: Tensor, *, inverse: bool = False
    ) -> tuple[Tensor, Tensor]:
        lo, hi = self.transform.interval
        logits = params.unflatten(1, (-1, 4)).movedim(2, -1)
        shift = logits[..., 3]
        given = x - shift if inverse else x
        inside = (given > lo) & (given < hi)
        y, logabsdet = torch.zeros_like(x), torch.zeros_like(x)
        y[~inside] = given[~inside]
        without_shift = logits[inside] * logits.new_tensor([1, 1, 1, 0])
        made, change = eager.modified_rq_spline(
            given[inside].unsqueeze(1),
            without_shift,
            inverse=inverse,
            interval=(lo, hi),
            reduce="none",
        )
        y[inside], logabsdet[inside] = made.squeeze(1), change.squeeze(1)
        return y if inverse else y + shift, logabsdet.flatten(1).sum(1)


class PublishedDesign(nn.Module):
    """The published network without its encoder, on the code that its users have.

    Args:
        kind: a key of :data:`KINDS`.
        config: of the preset: levels, steps, splits, widths.
        features: channels of the features.
        plain: whether couplings are in plain PyTorch; otherwise those of
            :mod:`robustflow.compat.srflow`, which compute the same.
    """

    def __init__(self, kind: str, config: Config, features: int, *, plain: bool = True) -> None:
        super().__init__()
        model = config.model
        hidden = {"CondAffineSeparatedAndCond": {"hidden_channels": model.hidden_channels}}
        options = {"network_G": {"flow": {"conditionInFeaDim": features, **hidden}}}
        layers: list[nn.Module] = []
        channels = 3
        for level in range(1, model.levels + 1):
            channels *= 4
            layers.append(nn.Identity())  # a squeeze
            layers += [
                Step(channels, None, {}, frozen=False, std=False)
                for _ in range(model.transition_steps)
            ]
            layers += [
                Step(channels, KINDS[kind], options, frozen=False, std=True)
                for _ in range(model.steps)
            ]
            if level in model.split_levels:
                split = Split(channels, 0)
                layers.append(split)
                channels = split.kept
        self.layers = Layers(layers, TOLD)
        for step in layers:
            if isinstance(step, Step):
                nn.init.orthogonal_(step.invconv.weight)
                if plain and step.coupling is not None:
                    coupling = step.get_submodule(step.coupling)
                    own = Masked(coupling.transform) if kind == "modified_rq" else None
                    step.add_module(step.coupling, srflow.Published(coupling, own))

    def log_prob(self, x: Tensor, features: Sequence[Tensor], noise: Tensor) -> Tensor:
        latents, total = self.layers.encode(x, features, noise)
        for latent in latents:
            total = total - 0.5 * latent.square().flatten(1).sum(1)
        return total

    @torch.no_grad()
    def sample(self, latents: Sequence[Tensor], features: Sequence[Tensor]) -> Tensor:
        """One by one, as published."""
        samples = []
        for each in zip(*(latent.split(1) for latent in latents), strict=True):
            noise = each[0].new_zeros(1, 3, *(2 * side for side in features[0].shape[-2:]))
            samples.append(self.layers.decode(each, features, noise))
        return torch.cat(samples)


class _Given(nn.Module):
    """In an encoder's place: the features are handed over."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.channels = channels


def paper_config(kind: str, shape: Shape) -> Config:
    """The 4x preset's, at this shape."""
    config = override(preset("sr", "paper"), "model.coupling", kind)
    return override(config, "model.steps", shape.steps) if shape.steps else config


@dataclass
class Comparison:
    """The two networks, off the identity, and what they are given.

    Attributes:
        functions: by what is done and by whom.
        weights: of each network, as a number.
    """

    functions: dict[str, dict[str, timing.Function]]
    weights: dict[str, int]


def comparison(kind: str, shape: Shape, who: Sequence[str] = ()) -> Comparison:
    """The cases of a coupling.

    Args:
        kind: a key of :data:`KINDS`.
        shape: of everything.
        who: which networks; by default both.
    """
    torch.manual_seed(0)
    config = paper_config(kind, shape)
    scale = 4
    low = torch.rand(1, 3, shape.pixels // scale, shape.pixels // scale)
    noise = 0.02 * torch.randn(1, 3, shape.pixels, shape.pixels)
    x = torch.rand(1, 3, shape.pixels, shape.pixels) + noise
    features = torch.randn(1, shape.features, *low.shape[-2:]).requires_grad_()
    made = Comparison({"training step": {}, "one sample": {}, "ten samples": {}}, {})
    if "robustflow" in who or not who:
        flow = ImagingFlow(config, encoder=_Given(shape.features))
        _off_the_identity(flow, lambda: flow.log_prob(x, low, features=features, noise=noise))

        def samples(number: int) -> Tensor:
            generator = torch.Generator().manual_seed(0)
            return flow.sample(
                low, number, temperature=TEMPERATURE, generator=generator, features=features
            )

        loss = _loss(lambda: flow.log_prob(x, low, features=features, noise=noise))
        made.functions["training step"]["robustflow"] = training_step(flow, loss, [features])
        made.functions["one sample"]["robustflow"] = _finite(functools.partial(samples, 1))
        made.functions["ten samples"]["robustflow"] = _finite(functools.partial(samples, SAMPLES))
        made.weights["robustflow"] = _number(flow)
    if "published" in who or not who:
        network = PublishedDesign(kind, config, shape.features)
        levels = config.model.levels

        def resized() -> list[Tensor]:
            return _resized(features, shape.pixels, levels)

        _off_the_identity(network, lambda: network.log_prob(x, resized(), noise))
        latents = [
            TEMPERATURE * torch.randn(SAMPLES, *each)
            for each in network.layers.latent_shapes((shape.pixels, shape.pixels))
        ]
        loss = _loss(lambda: network.log_prob(x, resized(), noise))
        made.functions["training step"]["published"] = training_step(network, loss, [features])
        made.functions["one sample"]["published"] = _finite(
            lambda: network.sample([latent[:1] for latent in latents], resized())
        )
        made.functions["ten samples"]["published"] = _finite(
            lambda: network.sample(latents, resized())
        )
        made.weights["published"] = _number(network)
    return made


def _resized(features: Tensor, pixels: int, levels: int) -> list[Tensor]:
    """To each level, as our flow does it."""
    sides = [pixels // 2 ** (level + 1) for level in range(levels)]
    return [
        features
        if side == features.shape[-1]
        else functional.interpolate(
            features, [side, side], mode="bilinear", antialias=side < features.shape[-1]
        )
        for side in sides
    ]


def _loss(log_prob: Callable[[], Tensor]) -> Callable[[], Tensor]:
    return lambda: -log_prob().mean()


def _number(module: nn.Module) -> int:
    return sum(weight.numel() for weight in module.parameters())


def _off_the_identity(module: nn.Module, forward: Callable[[], object]) -> None:
    """Actnorms set by a batch, and heads that are not zero, as after some training."""
    module.train()
    with torch.no_grad():
        forward()
        for weight in module.parameters():
            if weight.dim() == 4 and weight.shape[-1] > 1 and not weight.any():
                weight.normal_(std=0.01)
        for layer in module.modules():
            if isinstance(layer, ActNorm):
                layer.inited = False
            elif isinstance(layer, rnn.ActNorm):
                layer.load_state_dict({**layer.state_dict(), "initialised": torch.tensor(False)})
        forward()
    module.eval()


def _finite(function: Callable[[], Tensor]) -> timing.Function:
    """The function, whose first result is looked at.

    Raises:
        RuntimeError: it is not finite, so that its time says nothing.
    """
    if not function().isfinite().all():
        raise RuntimeError("The samples are not finite: nothing is measured of such a network.")
    return function


def training_step(
    module: nn.Module, loss: Callable[[], Tensor], leaves: Sequence[Tensor] = ()
) -> timing.Function:
    """Loss, gradients (of the leaves, too) and Adam's update, so small that nothing moves."""
    weights = [weight for weight in module.parameters() if weight.requires_grad]
    optimiser = torch.optim.Adam(weights, lr=1e-12, fused=True)

    def step() -> None:
        optimiser.zero_grad()
        for leaf in leaves:
            leaf.grad = None
        loss().backward()
        optimiser.step()

    return step


def preset_step(name: str, activations: str, encoder: str, shape: Shape) -> timing.Function:
    """A training step of a whole preset.

    Args:
        name: a key of :data:`PRESETS`.
        activations: "store", "recompute" or "reversible".
        encoder: "trained" or "frozen".
        shape: of everything.
    """
    torch.manual_seed(0)
    config = override(preset(*PRESETS[name]), "training.activations", activations)
    config = override(config, "encoder.frozen", encoder == "frozen")
    config = override(config, "data.crop", shape.preset_pixels)
    if shape.steps:
        config = override(config, "model.steps", shape.steps)
    network = RRDBEncoder(RRDB(blocks=shape.blocks))
    network.requires_grad_(encoder == "trained")
    flow = ImagingFlow(config, encoder=network).train()
    x = torch.rand(1, 3, shape.preset_pixels, shape.preset_pixels)
    y = flow.task.observe(x, torch.Generator().manual_seed(0))
    noise = torch.zeros_like(x) if flow.noise_channels else None
    return training_step(flow, _loss(lambda: flow.log_prob(x, y, noise=noise)))


def encoder_functions(shape: Shape) -> dict[str, timing.Function]:
    """What the encoder takes of a training step, and for samples of one picture."""
    torch.manual_seed(0)
    encoder = RRDBEncoder(RRDB(blocks=shape.blocks))
    low = torch.rand(1, 3, shape.pixels // 4, shape.pixels // 4)
    step = training_step(encoder, lambda: encoder(low).square().mean())
    return {"training step": step, "once for all samples": torch.no_grad()(lambda: encoder(low))}


def measure_times(kind: str, shape: Shape) -> dict[str, Any]:
    """Of the comparison: medians, spreads, and where our step and our samples go."""
    made = comparison(kind, shape)
    groups: dict[str, dict[str, timing.Function]] = {
        **made.functions,
        "encoder": encoder_functions(shape),
    }
    seconds = {group: _timed(functions, shape.seconds) for group, functions in groups.items()}
    ours = {group: functions["robustflow"] for group, functions in made.functions.items()}
    return {
        "seconds": seconds,
        "weights": made.weights,
        "shares": {
            group: srflow.breakdown(each, {shape.features, shape.features + 3})  # with the noise
            for group, each in ours.items()
        },
        "operators": {group: top_operators(each) for group, each in ours.items()},
    }


def _timed(functions: Mapping[str, timing.Function], seconds: float) -> dict[str, dict[str, float]]:
    times = timing.alternate(functions, seconds=seconds, min_rounds=3, warmup=1)
    return {name: {"median_s": each.median, "spread": each.spread} for name, each in times.items()}


def top_operators(function: timing.Function) -> dict[str, float]:
    """The operators that take most, and their shares of the time of all, by their own time."""
    with profile(activities=[ProfilerActivity.CPU]) as profiler:
        function()
    spent: Counter[str] = Counter()
    for event in profiler.key_averages():
        spent[event.key] += event.self_cpu_time_total
    return {name: time / spent.total() for name, time in spent.most_common(_TOP)}


def measure_peak(function: timing.Function) -> int:
    """Peak bytes of a call beyond weights and the optimiser's state, which a first call makes."""
    function()
    gc.collect()
    return memory.peak_bytes(function)


def worker(task: str, file: str) -> None:
    """What :mod:`robustflow.benchmarks.allocator` starts: a measurement in a process of its own."""
    given = json.loads(task)
    shape = Shape(**given["shape"])
    result: Any
    match given["what"]:
        case "times":
            result = measure_times(given["kind"], shape)
        case "peak":
            who, group = given["who"], given["group"]
            result = measure_peak(comparison(given["kind"], shape, [who]).functions[group][who])
        case "preset times":
            steps = {
                activations: preset_step(given["preset"], activations, given["encoder"], shape)
                for activations in get_args(Activations)
            }
            result = _timed(steps, shape.seconds / 3)
        case "preset peak":
            result = measure_peak(
                preset_step(given["preset"], given["activations"], given["encoder"], shape)
            )
    Path(file).write_text(json.dumps(result))


def _run(policy: str, shape: Shape, **task: Any) -> Any:
    work = json.dumps({"shape": asdict(shape), **task})
    return allocator.run(policy, MODULE, ["--worker", work])


def run_comparison(kind: str, shape: Shape) -> dict[str, Any]:
    """Times and peaks of a coupling."""
    result: dict[str, Any] = {"kind": kind, **_run("default", shape, what="times", kind=kind)}
    result["peak_bytes"] = {
        group: {
            who: _run("returning", shape, what="peak", kind=kind, who=who, group=group)
            for who in ("robustflow", "published")
        }
        for group in ("training step", "ten samples")
    }
    return result


def run_preset(name: str, encoder: str, shape: Shape) -> dict[str, Any]:
    """Times and peaks of a preset."""
    task = {"preset": name, "encoder": encoder}
    times = _run("default", shape, what="preset times", **task)
    return {
        "preset": name,
        "encoder": encoder,
        "pixels": shape.preset_pixels,
        "activations": {
            activations: {
                **times[activations],
                "peak_bytes": _run(
                    "returning", shape, what="preset peak", activations=activations, **task
                ),
            }
            for activations in get_args(Activations)
        },
    }


def report_comparison(result: Mapping[str, Any]) -> str:
    """Tables of :func:`run_comparison`."""
    lines = []
    for group, by_who in result["seconds"].items():
        for who, each in by_who.items():
            peak = result["peak_bytes"].get(group, {}).get(who)
            lines.append(
                [
                    f"{group}, {who}",
                    duration(each["median_s"]),
                    f"{each['spread']:.0%}",
                    "" if peak is None else _gib(peak),
                ]
            )
    ratios = []
    for group, by_who in result["seconds"].items():
        if "published" in by_who:
            peaks = result["peak_bytes"].get(group)
            less = "" if peaks is None else f"{peaks['published'] / peaks['robustflow']:.2f}"
            ratios.append([group, f"{_ratio(by_who, 'median_s'):.2f}", less])
    shares = [
        [f"{group}: {name}", f"{share:.1%}"]
        for kind in ("shares", "operators")
        for group, found in result[kind].items()
        for name, share in found.items()
    ]
    weights = ", ".join(f"{who} {number:,}" for who, number in result["weights"].items())
    return "\n\n".join(
        (
            f"4x paper preset, {result['kind']}; weights without the encoder: {weights}",
            table(["case", "median", "spread", "peak"], lines),
            table(["published over robustflow", "time", "peak"], ratios),
            table(["where our time goes", "share"], shares),
        )
    )


def _ratio(by_who: Mapping[str, Mapping[str, float]], key: str) -> float:
    return by_who["published"][key] / by_who["robustflow"][key]


def report_presets(results: Sequence[Mapping[str, Any]]) -> str:
    """A table of :func:`run_preset`'s results."""
    lines = [
        [
            f"{result['preset']}, encoder {result['encoder']}, {activations}",
            duration(each["median_s"]),
            f"{each['spread']:.0%}",
            _gib(each["peak_bytes"]),
        ]
        for result in results
        for activations, each in result["activations"].items()
    ]
    return table(["one training step of a preset", "median", "spread", "peak"], lines)


def _gib(number: int) -> str:
    return f"{number / 2**30:.2f} GiB"


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog=f"python -m {MODULE}", description=__doc__)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("--kind", nargs="+", choices=KINDS, default=list(KINDS))
    parser.add_argument("--part", nargs="+", choices=PARTS, default=list(PARTS))
    parser.add_argument("--threads", type=whole_number(1), help="of PyTorch (default: its own)")
    parser.add_argument("--seconds", type=float, help="a group of cases, beyond warm-up")
    parser.add_argument("--json", type=output_file, help="write the results there")
    parser.add_argument("--quick", action="store_true", help="tiny flows: shows that it runs")
    given = parser.parse_args(arguments)
    shape = QUICK if given.quick else Shape()
    if given.seconds is not None:
        shape = replace(shape, seconds=given.seconds)
    if given.threads:
        os.environ["OMP_NUM_THREADS"] = str(given.threads)  # of the processes that measure
        torch.set_num_threads(given.threads)
    description = machine.describe()
    print(machine.headline(description), flush=True)
    found: dict[str, list[dict[str, Any]]] = {part: [] for part in given.part}
    saved = True

    def keep() -> bool:
        if not given.json:
            return True
        return write_json(given.json, description, [], shape=asdict(shape), **found)

    if "comparison" in found:
        for kind in given.kind:
            found["comparison"].append(run_comparison(kind, shape))
            print("\n" + report_comparison(found["comparison"][-1]), flush=True)
            saved = keep()
    if "presets" in found:
        for name in PRESETS:
            for encoder in ENCODERS:
                found["presets"].append(run_preset(name, encoder, shape))
                saved = keep()
        print("\n" + report_presets(found["presets"]))
    return int(not saved)


if __name__ == "__main__":
    if sys.argv[1:2] == ["--worker"]:
        worker(*sys.argv[2:])
    else:
        sys.exit(main())
