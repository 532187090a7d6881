"""Run benchmark cases, each in processes of its own, under each allocator, after a check.

:func:`measure` runs cases. :func:`measure_all` also measures the rows of the modules in
``PROVIDERS``, which have the functions of a :class:`.RowProvider`.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, cast

from robustflow.benchmarks import allocator
from robustflow.benchmarks.cases import Case
from robustflow.benchmarks.rows import Measured, Row, RowProvider

WORKER = "robustflow.benchmarks.worker"
# Modules with rows of their own. They import this one.
PROVIDERS = ("robustflow.benchmarks.end_to_end",)

Say = Callable[[str], None]


@dataclass(frozen=True)
class Settings:
    """How to measure.

    Attributes:
        seconds: of timing for each allocator policy; the policies are measured in this order.
        quick: use each case's smaller shape.
        peaks: measure peak memory too, in further processes.
    """

    seconds: Mapping[str, float]
    quick: bool = False
    peaks: bool = True


FULL = Settings({"keeping": 3.0, "default": 2.0})
QUICK = Settings({"keeping": 0.6, "default": 0.4}, quick=True, peaks=False)


def measure(
    chosen: Sequence[Case],
    settings: Settings,
    say: Say,
    done: Callable[[Measured], object] = lambda measured: None,
) -> Measured:
    """Measure the chosen cases against their competitors.

    Args:
        chosen: cases of full shape.
        settings: how to measure.
        say: called with each case's name before it begins.
        done: called after each case with everything measured so far.

    Returns:
        The rows. A case has none if its results differ from a competitor's or if it fails; it is
        then in ``failed``.
    """
    measured = Measured()
    policies = [policy for policy in settings.seconds if works(policy, measured)]
    if not settings.peaks:
        measured.left_out["peak memory"] = "A quick run does not measure it."
    for case in chosen:
        say(case.name)
        try:
            _measure_one(case, policies, settings, measured)
        except RuntimeError as error:
            measured.failed[case.name] = str(error)
        done(measured)
    return measured


def measure_all(
    chosen: Sequence[Case],
    providers: Sequence[RowProvider],
    text: str,
    settings: Settings,
    say: Say,
    done: Callable[[Measured], object],
) -> Measured:
    """The rows of the chosen cases, then the rows of providers whose name contains ``text``."""
    measured = measure(chosen, settings, say, done) if chosen else Measured()
    for provider in providers:
        if provided(provider, text, settings.quick):
            measured.add(provider.measure(text, settings.quick, say))
            done(measured)
    return measured


def provided(provider: RowProvider, text: str, quick: bool) -> list[str]:
    """The names of the rows that a provider measures.

    A quick run without a text has only the provider's quick rows.
    """
    return [name for name in provider.names(quick and not text) if text in name]


def providers() -> list[RowProvider]:
    """The modules that ``PROVIDERS`` names."""
    return [cast(RowProvider, importlib.import_module(name)) for name in PROVIDERS]


def thread_count() -> int:
    """The number of threads that PyTorch uses in the measuring processes."""
    count: int = allocator.run("default", WORKER, ["threads"])
    return count


def _measure_one(
    case: Case, policies: Sequence[str], settings: Settings, measured: Measured
) -> None:
    shape = "quick" if settings.quick else "full"
    peak = None
    if settings.peaks and not case.workload.is_small:
        peak = _peak(case, "robustflow", shape, measured)
        if case.trains and "eager" in case.competitors:
            eager_peak = _peak(case, "eager", shape, measured)
            if eager_peak is not None:
                measured.eager_peaks[case.name] = eager_peak
    competitors = ",".join(case.competitors)
    for policy in policies:
        seconds = str(settings.seconds[policy])
        arguments = ["time", case.name, competitors, policy, seconds, shape]
        result: dict[str, Any] = allocator.run(policy, WORKER, arguments)
        measured.left_out.update(result["left_out"])
        measured.rows.append(replace(Row.from_json(result["row"]), peak_bytes=peak))


def works(policy: str, measured: Measured) -> bool:
    """Whether ``policy`` can be set and has its effect; if not, ``left_out`` gets the reason."""
    if policy == "default":
        return True
    try:
        faults: float = allocator.run(policy, WORKER, ["faults"])
    except ValueError as error:
        measured.left_out[f"{policy} allocator"] = str(error)
        return False
    if faults > 0.2:
        measured.left_out[f"{policy} allocator"] = (
            f"Filling a new tensor still met {faults:.0%} fresh pages: the memory was not kept."
        )
        return False
    return True


def _peak(case: Case, who: str, shape: str, measured: Measured) -> int | None:
    try:
        peak: int = allocator.run("returning", WORKER, ["memory", case.name, who, shape])
    except (ValueError, RuntimeError) as error:
        measured.left_out[f"peak memory of {case.name}"] = str(error)
        return None
    return peak
