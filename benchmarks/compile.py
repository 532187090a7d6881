"""Whole flows under torch.compile: a stock nflows flow, unpatched and patched, and robustflow.nn's.

    python -m benchmarks.compile [--flow NAME ...] [--what NAME ...] [--way NAME ...]
                                 [--threads N ...] [--batch N ...] [--seconds S] [--cache DIR]
                                 [--json FILE]

Five couplings with K = 10 in 5 dimensions, hidden 50. A training step is the loss, its gradients
and Adam's update; what is compiled is ``log_prob``. Sampling compiles ``sample``. The ways are

- ``unpatched``: nflows as it is, eager;
- ``eager``: with the kernels, not compiled: the patched flow, and robustflow.nn's;
- ``default``: with the kernels, under ``torch.compile(...)``;
- ``cpp_wrapper``: ``options={"cpp_wrapper": True}``;
- ``max-autotune``: ``mode="max-autotune"``;
- ``freezing``: ``options={"freezing": True}``: weights become constants, so for sampling alone;
- ``dynamic``: ``default``, the batch size of a step marked by ``mark_dynamic``, and ``sample``
  compiled with ``dynamic=True``: one program for all batches.

Each flow, work, batch and number of threads is measured in a process of its own, its ways in
alternation; times are medians under the default allocator. The unpatched flow alternates with the
patched eager one before anything is compiled, because to patch is to forget what was compiled.
``compile_s`` is the first call in an empty cache of Inductor's. With ``--cache DIR`` that cache is
kept between runs: a second run measures without compiling anew, and its ``compile_s`` is what a
restarted program waits.
"""

from __future__ import annotations

import argparse
import functools
import itertools
import json
import os
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from robustflow import compat
from robustflow import nn as rnn
from robustflow._arguments import output_file, whole_number
from robustflow.benchmarks import allocator, dropin_cases, machine, timing
from robustflow.benchmarks.dropin_cases import Size
from robustflow.benchmarks.rows import duration, table, write_json

MODULE = "benchmarks.compile"
FLOWS = ("nflows", "robustflow.nn")
WHATS = ("training step", "sampling")
WAYS: dict[str, dict[str, Any]] = {
    "default": {},
    "cpp_wrapper": {"options": {"cpp_wrapper": True}},
    "max-autotune": {"mode": "max-autotune"},
    "freezing": {"options": {"freezing": True}},
    "dynamic": {},
}
BATCHES = (200, 4096)
_CACHE = "TORCHINDUCTOR_CACHE_DIR"


@dataclass(frozen=True)
class Row:
    """One flow, kind of work, batch, number of threads and way to run it.

    Attributes:
        flow, what, way, batch, threads: the case.
        median_s: seconds a call.
        spread: interquartile range over the median.
        compile_s: the first call; None for what is not compiled.
        difference: of log_prob, the largest from ``eager``; None for samples.
        graphs_of_another_batch: programs that a further batch size took; None but for ``dynamic``.
    """

    flow: str
    what: str
    way: str
    batch: int
    threads: int
    median_s: float
    spread: float
    compile_s: float | None = None
    difference: float | None = None
    graphs_of_another_batch: int | None = None


def make_flow(name: str, size: Size) -> Any:
    """The flow without a condition, so that it takes any batch; off the identity."""
    if name == "nflows":
        return dropin_cases.make_flow(name, replace(size, context=0)).flow
    torch.manual_seed(0)
    layers = [
        rnn.RQSplineCoupling(
            size.features,
            num_bins=size.bins,
            tail_bound=dropin_cases.TAIL_BOUND,
            spatial_dims=0,
            hidden_channels=size.hidden,
            reverse=bool(i % 2),
        )
        for i in range(size.layers)
    ]
    flow = rnn.ConditionalFlow([layers])
    with torch.no_grad():
        for parameter in flow.parameters():
            parameter.add_(0.05 * torch.randn_like(parameter))
    return flow


class Work:
    """A training step or sampling of a flow, compiled or not; ``work(batch)`` does it once."""

    def __init__(self, flow: Any, what: str, way: str, features: int) -> None:
        self.flow, self.what, self.way, self.features = flow, what, way, features
        function = flow.log_prob if what == WHATS[0] else flow.sample
        options = WAYS.get(way)
        if options is not None:
            if way == "dynamic" and what != WHATS[0]:
                options = {"dynamic": True}  # a number cannot be marked
            function = torch.compile(function, **options)
        self.function: Callable[..., Tensor] = function
        self.optimiser = torch.optim.Adam(flow.parameters(), lr=1e-12)
        self.inputs: dict[int, Tensor] = {}

    def __call__(self, batch: int) -> Tensor:
        if self.what != WHATS[0]:
            with torch.no_grad():
                return self.function(batch)
        self.optimiser.zero_grad()
        log_prob = self.function(self._input(batch))
        (-log_prob.mean()).backward()
        self.optimiser.step()
        return log_prob.detach()

    def _input(self, batch: int) -> Tensor:
        if batch not in self.inputs:
            generator = torch.Generator().manual_seed(1)
            x = torch.randn(batch, self.features, generator=generator)
            if self.way == "dynamic":
                torch._dynamo.mark_dynamic(x, 0)
            self.inputs[batch] = x
        return self.inputs[batch]


def measure(
    name: str, what: str, batch: int, ways: Sequence[str], seconds: float, size: Size
) -> list[Row]:
    """The rows of one case in this process."""
    flow = make_flow(name, size)
    case = {"flow": name, "what": what, "batch": batch, "threads": torch.get_num_threads()}
    eager = Work(flow, what, "eager", size.features)
    rows = []
    if name == "nflows":
        runs = {mode: dropin_cases.Run(name, mode, lambda: eager(batch)) for mode in ("off", "on")}
        times = dropin_cases.time_runs(runs, seconds)
        rows += [
            _row(case, way, times[mode]) for way, mode in (("unpatched", "off"), ("eager", "on"))
        ]
    with compat.patch(name) if name == "nflows" else nullcontext():
        expected = eager(batch)
        works, facts = {"eager": eager}, {}
        for way in ways:
            works[way] = Work(flow, what, way, size.features)
            begin = time.perf_counter()
            works[way](batch)
            facts[way] = {"compile_s": time.perf_counter() - begin}
            if what == WHATS[0]:  # Inductor draws other numbers from a seed
                found = works[way](batch)
                facts[way]["difference"] = float((found - expected).abs().max())
        times = timing.alternate(
            {way: functools.partial(work, batch) for way, work in works.items()},
            seconds=seconds * len(works) / 2,
            min_sample=2e-2,
        )
        if "dynamic" in ways:
            facts["dynamic"]["graphs_of_another_batch"] = _new_graphs(works["dynamic"], batch + 1)
    known = {row.way for row in rows}
    rows += [_row(case, way, times[way], **facts.get(way, {})) for way in works if way not in known]
    return rows


def _row(case: Mapping[str, Any], way: str, found: timing.Timing, **facts: Any) -> Row:
    return Row(**case, way=way, median_s=found.median, spread=found.spread, **facts)


def _new_graphs(work: Work, batch: int) -> int:
    """Programs that one more batch size takes."""
    stats = torch._dynamo.utils.counters["stats"]
    before = stats["unique_graphs"]
    work(batch)
    return int(stats["unique_graphs"] - before)


@contextmanager
def inductor_cache(directory: str | None) -> Iterator[None]:
    """An empty cache for the processes that measure; or the given one, which is kept."""
    with tempfile.TemporaryDirectory() if directory is None else nullcontext(directory) as place:
        before = os.environ.get(_CACHE)
        os.environ[_CACHE] = str(place)
        try:
            yield
        finally:
            os.environ.pop(_CACHE)
            if before is not None:
                os.environ[_CACHE] = before


def ways_of(what: str, asked: Sequence[str]) -> list[str]:
    """Those of the asked ways that there are for this work; ``dynamic`` comes last."""
    return [way for way in WAYS if way in asked and not (way == "freezing" and what == WHATS[0])]


def report(rows: Sequence[Row]) -> str:
    """A table: a line for each way, with its time over that of ``eager`` of the same case."""
    eager = {_case(row): row.median_s for row in rows if row.way == "eager"}
    lines = [
        [
            f"{row.flow}, {row.what}, batch {row.batch}, {row.threads} thread(s), {row.way}",
            duration(row.median_s),
            f"{row.spread:.0%}",
            f"{eager[_case(row)] / row.median_s:.2f}",
            "" if row.compile_s is None else f"{row.compile_s:.0f} s",
            "" if row.difference is None else f"{row.difference:.0e}",
        ]
        for row in rows
    ]
    header = ["case", "median", "spread", "times faster than eager", "compile", "difference"]
    return table(header, lines)


def _case(row: Row) -> tuple[object, ...]:
    return row.flow, row.what, row.batch, row.threads


def worker(task: str, file: str) -> None:
    """What :func:`robustflow.benchmarks.allocator.run` starts: one case in its own process."""
    given = json.loads(task)
    torch.set_num_threads(given.pop("threads"))
    size = dropin_cases.find_size(given.pop("size"))
    Path(file).write_text(json.dumps([asdict(row) for row in measure(**given, size=size)]))


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog=f"python -m {MODULE}", description=__doc__)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("--flow", nargs="+", choices=FLOWS, default=list(FLOWS))
    parser.add_argument("--what", nargs="+", choices=WHATS, default=list(WHATS))
    parser.add_argument("--way", nargs="+", choices=WAYS, default=list(WAYS))
    parser.add_argument("--threads", nargs="+", type=whole_number(1), default=[1, 2])
    parser.add_argument("--batch", nargs="+", type=whole_number(2), default=list(BATCHES))
    parser.add_argument("--seconds", type=float, default=4.0, help="of timing, for two ways")
    parser.add_argument("--cache", help="Inductor's cache, kept (default: an empty one)")
    parser.add_argument("--tiny", action="store_true", help="a tiny flow, to see that it runs")
    parser.add_argument("--json", type=output_file, help="write the rows and the machine here")
    given = parser.parse_args(arguments)
    size = dropin_cases.TINY if given.tiny else dropin_cases.find_size("inference")
    description = machine.describe()
    print(machine.headline(description), flush=True)
    rows: list[Row] = []
    for name, what, batch, threads in itertools.product(
        given.flow, given.what, given.batch, given.threads
    ):
        task = {"name": name, "what": what, "batch": batch, "ways": ways_of(what, given.way)}
        more = {"seconds": given.seconds, "threads": threads, "size": size.name}
        with inductor_cache(given.cache):
            made = allocator.run("default", MODULE, ["--worker", json.dumps({**task, **more})])
        rows += [Row(**record) for record in made]
        print("\n" + report(rows[-len(made) :]), flush=True)
    if not given.json:
        return 0
    kept = {"compiled": [asdict(row) for row in rows], "cold": given.cache is None}
    return int(not write_json(given.json, description, [], **kept))


if __name__ == "__main__":
    if sys.argv[1:2] == ["--worker"]:
        worker(*sys.argv[2:])
    else:
        sys.exit(main())
