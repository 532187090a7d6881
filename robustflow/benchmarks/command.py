"""The command ``robustflow bench``: measure and print, write JSON, check bars, compare two runs."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from robustflow.benchmarks import bars, cases, compare, machine, peers, report, suite
from robustflow.benchmarks.cases import COMPETITORS, Case
from robustflow.benchmarks.rows import Measured, RowProvider, write_json
from robustflow.benchmarks.suite import Say
from robustflow.benchmarks.verdicts import verdict_table


class BadRequest(ValueError):
    """The command line asks for something that does not exist; the message says what does."""


def run(options: argparse.Namespace) -> int:
    """Run the command.

    Args:
        options: ``quick``, ``filter``, ``against``, ``json``, ``threads``, ``bars``, ``compare``.

    Returns:
        The exit status: 0; 1 if a case failed, a bar was missed, something got slower or the file
        could not be written; 2 for a bad request.
    """
    try:
        if options.compare:
            return _compare(*options.compare)
        return _measure(options)
    except BadRequest as error:
        print(f"robustflow bench: error: {error}", file=sys.stderr)
        return 2


def _compare(before: Path, after: Path) -> int:
    try:
        result = compare.compare(compare.read(before), compare.read(after))
    except ValueError as error:
        raise BadRequest(str(error)) from error
    print(compare.report(result))
    if not result.changes:
        raise BadRequest("the two files have no case that can be compared")
    return int(bool(result.slower))


def _measure(options: argparse.Namespace) -> int:
    against = _competitors(options.against)
    chosen = [case.against(against) for case in cases.select(options.filter, options.quick)]
    providers = suite.providers()
    names = [case.name for case in chosen] + [
        name
        for provider in providers
        for name in suite.provided(provider, options.filter, options.quick)
    ]
    if not names:
        raise BadRequest(_no_such_name(options.filter, providers))
    judged = _bars(options, chosen, against)
    with _threads(options.threads):
        description = machine.describe()
        if options.threads is not None:
            description["threads"] = suite.thread_count()
            if description["threads"] != options.threads:
                raise BadRequest(
                    f"PyTorch uses {description['threads']} threads here where {options.threads} "
                    "are asked for: ask for at most as many as there are cores"
                )
        print(machine.headline(description), flush=True)

        def keep(measured: Measured, complete: bool = False, **more: Any) -> bool:
            if options.json is None:
                return True
            return write_json(
                options.json,
                description,
                measured.rows,
                quick=options.quick,
                against=against,
                eager_peak_bytes=measured.eager_peaks,
                left_out=measured.left_out,
                failed=measured.failed,
                complete=complete,
                **more,
            )

        settings = suite.QUICK if options.quick else suite.FULL
        with _progress(len(names)) as say:
            measured = suite.measure_all(chosen, providers, options.filter, settings, say, keep)
    allocators = sorted({row.allocator for row in measured.rows})
    judged_bars = bars.judge(judged, measured.rows, allocators, within_spread=True)
    saved = keep(measured, complete=True, bars=judged_bars)
    parts = [report.measured_rows(measured.rows)] if measured.rows else []
    parts += [*report.slower_than_competitors(measured.rows), *report.remarks(measured)]
    if judged_bars:
        parts.append(verdict_table(bars.verdicts(judged_bars)))
    print("\n" + "\n\n".join(parts))
    missed = any(record["met"] is not True for record in judged_bars)
    return int(bool(measured.failed) or missed or not saved)


def _competitors(text: str | None) -> tuple[str, ...]:
    """The competitors of ``--against``, which must be installed; all of them without it."""
    if text is None:
        return COMPETITORS
    names = tuple(name for name in text.split(",") if name)
    if unknown := [name for name in names if name not in COMPETITORS]:
        raise BadRequest(f"--against knows {', '.join(COMPETITORS)}, got {', '.join(unknown)}")
    for name in names:
        if name in peers.VERSIONS:
            try:
                peers.check(name)
            except peers.PeerMissing as error:
                raise BadRequest(str(error)) from error
    return names


def _bars(
    options: argparse.Namespace, chosen: Sequence[Case], against: Sequence[str]
) -> list[bars.Bar]:
    if not options.bars:
        return []
    if not options.quick:
        raise BadRequest("bars are stated for the quick set: add --quick to --bars")
    names = {case.name for case in chosen}
    stated_bars = [bar for bar in bars.QUICK_BARS if bar.case in names and bar.measure in against]
    if not stated_bars:
        stated = ", ".join(dict.fromkeys(bar.case for bar in bars.QUICK_BARS))
        raise BadRequest(f"no bar is stated for what was chosen; there are bars for {stated}")
    return stated_bars


def _no_such_name(text: str, providers: Sequence[RowProvider]) -> str:
    workloads = dict.fromkeys(case.name.split(".")[0] for case in cases.SUITE)
    families = dict.fromkeys(case.name.split(".")[1] for case in cases.SUITE)
    sentence = (
        f"no case's name contains {text!r}; names are WORKLOAD.TRANSFORM.DIRECTION, with workloads "
        f"{', '.join(workloads)}; transforms {', '.join(families)}; directions "
        f"{', '.join(cases.DIRECTIONS)}"
    )
    others = [name for provider in providers for name in provider.names(False)]
    return f"{sentence}; and {', '.join(others)}" if others else sentence


@contextmanager
def _threads(count: int | None) -> Iterator[None]:
    """Makes processes that are started inside use ``count`` threads."""
    if count is None:
        yield
        return
    before = os.environ.get("OMP_NUM_THREADS")
    os.environ["OMP_NUM_THREADS"] = str(count)
    try:
        yield
    finally:
        if before is None:
            del os.environ["OMP_NUM_THREADS"]
        else:
            os.environ["OMP_NUM_THREADS"] = before


@contextmanager
def _progress(total: int) -> Iterator[Say]:
    """A progress bar on stderr. Yields the function to call with the name of what begins."""
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

    columns = (
        MofNCompleteColumn(),
        BarColumn(),
        TimeElapsedColumn(),
        TextColumn("{task.description}"),
    )
    started = 0
    with Progress(*columns, console=Console(stderr=True), transient=True) as progress:
        task = progress.add_task("", total=total)

        def say(name: str) -> None:
            nonlocal started
            progress.update(task, description=name, completed=started)
            started += 1

        yield say
