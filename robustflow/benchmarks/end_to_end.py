"""Train and sample whole flows, with the kernels and without them.

    python -m benchmarks.end_to_end [--quick] [--filter TEXT] [--json FILE]

- ``nsf``: a neural spline flow of nflows (``dropin_cases``) with the patch on, compared with the
  same flow ``unpatched``: with sbi's sizes, with large batches, and with a single sample.
- ``sr``: the demonstration's super-resolution flow, compared with the same flow under
  ``use_backend("reference")`` and with the transforms of ``robustflow.benchmarks.eager``.
- ``sr.ten-samples``: ten samples of one picture as :meth:`robustflow.nn.ConditionalFlow.sample`
  draws them (the picture is encoded and projected once, the samples are one batch). Compared with
  ``one-by-one`` (projected once, ten calls), ``encoded-each-time`` (ten calls with the picture) and
  ``ten-contexts`` (one call with a batch of ten copies of the picture), all with the same kernels.

A training step consists of the loss, its gradients and Adam's update. Latents are drawn before the
clock starts. The bytes of a row, and so its floor, are those that robustflow's operators read and
write during a call. The rest of the time is spent in conditioners.
"""

from __future__ import annotations

import argparse
import copy
import functools
import json
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import asdict, dataclass, replace
from math import prod
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

import robustflow
from robustflow import nn as rnn
from robustflow._arguments import output_file
from robustflow.benchmarks import (
    allocator,
    dropin_cases,
    eager,
    machine,
    memory,
    peers,
    report,
    suite,
    timing,
)
from robustflow.benchmarks.calls import check_close
from robustflow.benchmarks.rows import Measured, Row, write_json
from robustflow.experiments import super_resolution as sr

MODULE = "robustflow.benchmarks.end_to_end"
PREFIX = "end-to-end"
SAMPLES = 10

Check = Callable[[], None]


@dataclass(frozen=True)
class Within:
    """A function, and a context manager that is entered before the clock starts."""

    function: timing.Function
    context: Callable[[], AbstractContextManager[Any]] = nullcontext

    def __call__(self) -> object:
        with self.context():
            return self.function()


def sample_seconds(within: Within, calls: int) -> float:
    """Seconds for a call, without the time to enter the context manager."""
    with within.context():
        return timing.sample_by(time.perf_counter, within.function, calls)


@dataclass(frozen=True)
class Case:
    """What is timed for one row.

    Attributes:
        shape: of x, or of the samples.
        ours: a call with the kernels.
        competitors: the same computation without the kernels, or in another way.
        check: raises AssertionError if results differ by more than rounding.
    """

    shape: tuple[int, ...]
    ours: Within
    competitors: dict[str, Within]
    check: Check


@dataclass(frozen=True)
class Job:
    """A row that can be measured.

    Attributes:
        name: the row's name without the prefix.
        operation, direction: these fields of the row.
        make: ``make(quick)`` returns the case, for a full run or for a quick one.
        in_quick: whether a quick run without a filter measures it.
    """

    name: str
    operation: str
    direction: str
    make: Callable[[bool], Case]
    in_quick: bool = False

    @property
    def full_name(self) -> str:
        return f"{PREFIX}.{self.name}"


def _neural_spline_flow(size_name: str, what: str, quick: bool, batch: int | None = None) -> Case:
    size = dropin_cases.TINY if quick else dropin_cases.find_size(size_name)
    timed = size if batch is None else replace(size, batch=batch)

    def run(mode: str) -> Within:
        prepared = dropin_cases.make_run("nflows", timed, what, mode)
        return Within(prepared.work, functools.partial(dropin_cases.mode_of, "nflows", mode))

    def check() -> None:
        dropin_cases.differences("nflows", size)

    return Case((timed.batch, timed.features), run("on"), {"unpatched": run("off")}, check)


@dataclass(frozen=True)
class EagerModifiedRQ(rnn.ModifiedRQSpline):
    """The spline by the textbook formula in plain PyTorch."""

    def __call__(
        self, x: Tensor, params: Tensor, *, inverse: bool = False, reduce: eager.Reduce = "sum"
    ) -> tuple[Tensor, Tensor]:
        options: dict[str, Any] = asdict(self)
        return eager.modified_rq_spline(x, params, inverse=inverse, reduce=reduce, **options)


def super_resolution_flows(settings: sr.Settings) -> dict[str, rnn.ConditionalFlow]:
    """Copies of the demonstration's flow, by what computes their transforms.

    All have the same weights, with which a flow is not the identity. Call ``reference`` under
    ``use_backend("reference")``.
    """
    torch.manual_seed(0)
    flow = sr.build_flow(rnn.ModifiedRQSpline(), settings)
    x, low = _pictures(settings)
    flow.train()
    with torch.no_grad():
        flow.log_prob(x, low)  # sets the actnorms
        for parameter in flow.parameters():
            parameter.add_(0.01 * torch.randn_like(parameter))
    flow.eval()
    flows = {who: copy.deepcopy(flow) for who in ("robustflow", "reference", "eager")}
    for layer in flows["eager"].modules():
        if isinstance(layer, rnn.Coupling | rnn.Injector):
            layer.transform = EagerModifiedRQ()
    return flows


def _pictures(settings: sr.Settings) -> tuple[Tensor, Tensor]:
    """A training batch: residuals of a usual magnitude, and low-resolution pictures."""
    generator = torch.Generator().manual_seed(1)
    size, side = settings.batch_size, settings.crop
    x = 0.1 * torch.randn(size, 3, side, side, generator=generator)
    low_side = side // sr.SCALE
    return x, torch.rand(size, 3, low_side, low_side, generator=generator)


def _contexts() -> dict[str, Callable[[], AbstractContextManager[Any]]]:
    return {
        "robustflow": nullcontext,
        "reference": functools.partial(robustflow.use_backend, "reference"),
        "eager": nullcontext,
    }


def _sr_settings(quick: bool) -> sr.Settings:
    return sr.QUICK_SETTINGS if quick else sr.Settings()


def _sr_train(quick: bool) -> Case:
    settings = _sr_settings(quick)
    x, low = _pictures(settings)
    contexts = _contexts()
    flows = super_resolution_flows(settings)

    def step(flow: rnn.ConditionalFlow) -> timing.Function:
        # The rate is so small that the weights remain those that were checked.
        optimizer = torch.optim.Adam(flow.parameters(), lr=1e-8, fused=True)

        def train() -> None:
            optimizer.zero_grad()
            sr.bits_per_dimension(flow, x, low).backward()
            optimizer.step()

        return train

    def gradients(flow: rnn.ConditionalFlow) -> tuple[Tensor, ...]:
        log_prob = flow.log_prob(x, low)
        grads = torch.autograd.grad(log_prob.mean(), list(flow.parameters()))
        return log_prob, torch.cat([grad.flatten() for grad in grads])

    steps = {who: Within(step(flow), contexts[who]) for who, flow in flows.items()}
    results = {
        who: Within(functools.partial(gradients, flow), contexts[who])
        for who, flow in flows.items()
    }
    ours = steps.pop("robustflow")
    return Case(tuple(x.shape), ours, steps, functools.partial(_compare, results, settings))


def _sr_sample(quick: bool, side: int | None = None) -> Case:
    """One sample of one picture, ``side`` pixels wide at high resolution."""
    settings = _sr_settings(quick)
    contexts = _contexts()
    side = side or settings.sample_size
    low, latents = _one_picture(side, 1)

    def sample(flow: rnn.ConditionalFlow) -> timing.Function:
        return torch.no_grad()(lambda: flow.inverse((latents,), low)[0])

    calls = {
        who: Within(sample(flow), contexts[who])
        for who, flow in super_resolution_flows(settings).items()
    }
    check = functools.partial(_compare, dict(calls), settings)
    ours = calls.pop("robustflow")
    return Case((1, 3, side, side), ours, calls, check)


def _one_picture(side: int, samples: int) -> tuple[Tensor, Tensor]:
    """A low-resolution picture, and latents for samples of it at temperature 0.8."""
    generator = torch.Generator().manual_seed(2)
    low_side = side // sr.SCALE
    low = torch.rand(1, 3, low_side, low_side, generator=generator)
    channels = 3 * sr.SCALE**2
    return low, 0.8 * torch.randn(samples, channels, low_side, low_side, generator=generator)


def _ten_samples(quick: bool) -> Case:
    settings = _sr_settings(quick)
    flow = super_resolution_flows(settings)["robustflow"]
    low, latents = _one_picture(settings.sample_size, SAMPLES)

    def once() -> Tensor:
        return flow.inverse((latents,), condition=flow.condition(low))[0]

    def one_by_one() -> Tensor:
        condition = flow.condition(low)
        return torch.cat([flow.inverse((z,), condition=condition)[0] for z in latents.split(1)])

    def encoded_each_time() -> Tensor:
        return torch.cat([flow.inverse((z,), low)[0] for z in latents.split(1)])

    def ten_contexts() -> Tensor:
        return flow.inverse((latents,), low.expand(SAMPLES, -1, -1, -1))[0]

    calls = {
        name: Within(torch.no_grad()(function))
        for name, function in (
            ("robustflow", once),
            ("one-by-one", one_by_one),
            ("encoded-each-time", encoded_each_time),
            ("ten-contexts", ten_contexts),
        )
    }
    check = functools.partial(_compare, dict(calls), settings)
    ours = calls.pop("robustflow")
    side = settings.sample_size
    return Case((SAMPLES, 3, side, side), ours, calls, check)


def _compare(calls: Mapping[str, Within], settings: sr.Settings) -> None:
    """Compare the results, with differences relative to the largest value of each tensor."""

    def results(within: Within) -> tuple[Tensor, ...]:
        result: Any = within()
        return (result,) if isinstance(result, Tensor) else result

    expected = results(calls["robustflow"])
    for who, within in calls.items():
        for mine, theirs in zip(expected, results(within), strict=True):
            scale = theirs.abs().max()
            # Rounding errors add up from layer to layer.
            rounding = 1e-4 * settings.steps
            check_close(f"{who} of the flow", mine / scale, theirs / scale, rounding)


def _nsf(name: str, size: str, **options: Any) -> list[Job]:
    """Training and sampling of nflows' flow; with ``batch=``, sampling alone."""
    whats = {"sample": "sampling"} if options else {"train": "training step", "sample": "sampling"}
    return [
        Job(
            f"{name}.{short}",
            "neural_spline_flow",
            what if not options else "latency",
            functools.partial(_call_nsf, size, what, options.get("batch")),
            in_quick=name == "nsf",
        )
        for short, what in whats.items()
    ]


def _call_nsf(size: str, what: str, batch: int | None, quick: bool) -> Case:
    return _neural_spline_flow(size, what, quick, batch)


_SR = "super_resolution_flow"
JOBS = (
    *_nsf("nsf", "inference"),
    *_nsf("nsf-large-batch", "large batch"),
    *_nsf("nsf-one", "inference", batch=1),
    Job("sr.train", _SR, "training step", _sr_train, in_quick=True),
    Job("sr.sample", _SR, "sampling", _sr_sample),
    Job("sr-one.sample", _SR, "latency", functools.partial(_sr_sample, side=32)),
    Job("sr.ten-samples", _SR, "ten samples", _ten_samples, in_quick=True),
)


class TransformBytes(TorchDispatchMode):
    """Inside this context manager, counts the bytes of the operators' inputs and outputs.

    An expanded tensor counts only what it has in memory.
    """

    def __init__(self) -> None:
        super().__init__()
        self.total = 0

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        result = func(*args, **(kwargs or {}))
        if func.namespace == "robustflow":
            leaves = tree_leaves((args, kwargs, result))
            self.total += sum(_bytes_of(leaf) for leaf in leaves if isinstance(leaf, Tensor))
        return result


def _bytes_of(tensor: Tensor) -> int:
    sizes = (
        size for size, stride in zip(tensor.shape, tensor.stride(), strict=True) if stride != 0
    )
    return prod(sizes) * tensor.element_size()


def transform_bytes(within: Within) -> int:
    """The bytes that robustflow's operators read and write during one call."""
    with TransformBytes() as counter:
        within()
    return counter.total


def time_job(job: Job, quick: bool, policy: str, seconds: float) -> Row:
    """Measure a job in this process: its row, without peak memory.

    Raises:
        AssertionError: the results differ, before anything is timed.
    """
    case = job.make(quick)
    case.check()
    num_bytes = transform_bytes(case.ours)
    functions = {
        "robustflow": case.ours,
        "copy": Within(timing.copy_of(num_bytes)),
        **case.competitors,
    }
    times = timing.alternate(
        functions, seconds=seconds, min_rounds=3, warmup=2, sampler=sample_seconds
    )
    return Row(
        name=job.full_name,
        operation=job.operation,
        direction=job.direction,
        shape=case.shape,
        dtype="float32",
        allocator=policy,
        bytes=num_bytes,
        **timing.row_figures(
            times.pop("robustflow"), times.pop("copy"), times, elements=prod(case.shape)
        ),
    )


def peak_of(job: Job, quick: bool) -> int:
    """Peak bytes of one call with the kernels in this process, without the flow and its inputs."""
    job.make(True).ours()
    case = job.make(quick)
    return memory.peak_bytes(case.ours)


def chosen(text: str, quick: bool) -> list[Job]:
    """The jobs whose name contains ``text``; for a quick run without a text, only its jobs."""
    return [job for job in JOBS if text in job.full_name and (text or job.in_quick or not quick)]


def names(quick: bool) -> Sequence[str]:
    """The names of the rows (see :class:`robustflow.benchmarks.rows.RowProvider`)."""
    return [job.full_name for job in chosen("", quick)]


def measure(filter: str, quick: bool, say: Callable[[str], None]) -> Measured:
    """Measure every row whose name contains ``filter``, each in processes of its own."""
    measured = Measured()
    settings = suite.QUICK if quick else suite.FULL
    policies = [policy for policy in settings.seconds if suite.works(policy, measured)]
    for job in chosen(filter, quick):
        say(job.full_name)
        if job.operation == "neural_spline_flow":
            try:
                peers.check("nflows")
            except peers.PeerMissing as error:
                measured.left_out[job.full_name] = str(error)
                continue
        shape = "quick" if quick else "full"
        try:
            peak = None
            if settings.peaks and job.direction == "training step":
                peak = _peak(job, shape, measured)
            for policy in policies:
                seconds = str(settings.seconds[policy])
                record = allocator.run(
                    policy, MODULE, ["--worker", "time", job.full_name, shape, policy, seconds]
                )
                measured.rows.append(replace(Row.from_json(record), peak_bytes=peak))
        except RuntimeError as error:
            measured.failed[job.full_name] = str(error)
    return measured


def _peak(job: Job, shape: str, measured: Measured) -> int | None:
    try:
        peak: int = allocator.run("returning", MODULE, ["--worker", "peak", job.full_name, shape])
    except (ValueError, RuntimeError) as error:
        measured.left_out[f"peak memory of {job.full_name}"] = str(error)
        return None
    return peak


def worker(task: str, name: str, shape: str, *rest: str) -> None:
    """The process that :func:`allocator.run` starts: writes JSON to the file, the last argument."""
    *options, file = rest
    job = next(job for job in JOBS if job.full_name == name)
    quick = shape == "quick"
    result: Any
    if task == "peak":
        result = peak_of(job, quick)
    else:
        policy, seconds = options
        result = asdict(time_job(job, quick, policy, float(seconds)))
    Path(file).write_text(json.dumps(result))


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.end_to_end", description=__doc__)
    parser.add_argument("--quick", action="store_true", help="tiny flows: shows that it runs")
    parser.add_argument("--filter", default="", help="only rows whose name contains this")
    parser.add_argument("--json", type=output_file, help="write the rows and the machine here")
    options = parser.parse_args(arguments)
    if not chosen(options.filter, options.quick):
        every = ", ".join(job.full_name for job in JOBS)
        parser.error(f"no row's name contains {options.filter!r}; there are {every}")
    description = machine.describe()
    print(machine.headline(description), flush=True)
    measured = measure(options.filter, options.quick, lambda name: print(f"... {name}", flush=True))
    parts = [report.measured_rows(measured.rows)] if measured.rows else []
    parts += [*report.slower_than_competitors(measured.rows), *report.remarks(measured)]
    print("\n" + "\n\n".join(parts))
    saved = True
    if options.json:
        saved = write_json(
            options.json,
            description,
            measured.rows,
            left_out=measured.left_out,
            failed=measured.failed,
            quick=options.quick,
        )
    return int(bool(measured.failed) or not saved)


if __name__ == "__main__":
    if sys.argv[1:2] == ["--worker"]:
        worker(*sys.argv[2:])
    else:
        sys.exit(main())
