"""Output of a running training: a bar, notes, TensorBoard logs, pictures of samples."""

from __future__ import annotations

import importlib.util
import resource
import sys
from collections import deque
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from robustflow._files import replacing
from robustflow.experiments.console import say
from robustflow.experiments.imaging.checkpoints import State
from robustflow.experiments.imaging.config import Config
from robustflow.experiments.imaging.preview import Preview
from robustflow.experiments.imaging.training import Listener, Update

_RECENT = 50  # number of updates to average for the numbers shown


class Bar(Listener):
    """A progress bar with bits per dimension, pictures a second, memory and the time left.

    If the console is no terminal, it prints a line for each tenth of the training.
    """

    def __init__(self, console: Console, config: Config) -> None:
        self.console = console
        self.batch_size = config.training.batch_size
        self.iterations = config.training.iterations
        self._recent: deque[tuple[float, float]] = deque(maxlen=_RECENT)
        self._progress = Progress(
            BarColumn(bar_width=20),
            MofNCompleteColumn(),
            TextColumn("{task.description}"),
            TimeRemainingColumn(),
            console=console,
            disable=not console.is_terminal,
        )
        self._task = self._progress.add_task("", total=self.iterations)

    def __enter__(self) -> Bar:
        self._progress.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._progress.stop()

    def note(self, sentence: str) -> None:
        say(self.console, sentence, style="yellow")

    def updated(self, update: Update, state: State) -> None:
        if not update.skipped:
            self._recent.append((update.bits, state.seconds))
        if not self._recent:
            return
        bits = sum(each for each, _ in self._recent) / len(self._recent)
        seconds = self._recent[-1][1] - self._recent[0][1]
        rate = self.batch_size * (len(self._recent) - 1) / seconds if seconds else 0.0
        text = f"{bits:.3f} bits/dim  {rate:.1f} images/s  {peak_memory_gib():.1f} GiB"
        self._progress.update(self._task, completed=state.step, description=text)
        tenth = max(1, self.iterations // 10)
        if not self.console.is_terminal and state.step % tenth == 0:
            say(self.console, f"{state.step}/{self.iterations}  {text}")

    def validated(self, step: int, bits: float, best: bool) -> None:
        mark = ", the best so far" if best else ""
        say(self.console, f"update {step}: validation {bits:.3f} bits/dim{mark}")


def peak_memory_gib() -> float:
    """The most memory so far: of the GPU where there is one, else of this process."""
    if torch.cuda.is_available():
        return torch.cuda.max_memory_allocated() / 2**30
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 2**30


class TensorBoard(Listener):
    """Losses, gradient norms, validation, samples and the monitor's numbers for TensorBoard.

    Args:
        folder: of the training; the logs go to ``tensorboard/`` in it.
        first_step: the first update that is logged. Entries of an earlier run from this step on are
            hidden.
    """

    def __init__(self, folder: Path, first_step: int = 1) -> None:
        self._folder = folder / "tensorboard"
        self._first_step = first_step

    @cached_property
    def _writer(self) -> Any:  # created at the first write, in a folder that was checked
        from torch.utils.tensorboard import SummaryWriter

        return SummaryWriter(str(self._folder), purge_step=self._first_step)

    @staticmethod
    def available() -> bool:
        return importlib.util.find_spec("tensorboard") is not None

    def updated(self, update: Update, state: State) -> None:
        self._writer.add_scalar("training/bits per dimension", update.bits, update.step)
        self._writer.add_scalar("training/gradient norm", update.gradient_norm, update.step)
        self._writer.add_scalar("training/skipped updates", state.skipped, update.step)

    def validated(self, step: int, bits: float, best: bool) -> None:
        self._writer.add_scalar("validation/bits per dimension", bits, step)

    def sampled(self, step: int, preview: Preview) -> None:
        self._writer.add_image("samples", preview.grid, step)
        self._writer.add_scalar("sampling/largest magnitude", preview.magnitude, step)
        self._writer.add_scalar("sampling/largest inverse derivative", preview.derivative, step)
        self._writer.add_scalar("sampling/onsets of explosions", preview.onsets, step)

    def saved(self, path: Path) -> None:
        self._writer.flush()


class SamplePictures(Listener):
    """Grids of samples as ``samples/step-00001000.png``."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder / "samples"

    def sampled(self, step: int, preview: Preview) -> None:
        pixels = (preview.grid * 255).round().byte().permute(1, 2, 0).numpy()
        with replacing(self._folder / f"step-{step:08d}.png") as file:
            Image.fromarray(pixels).save(file, "PNG")


class Listeners(Listener):
    """Passes everything on to several listeners."""

    def __init__(self, listeners: Sequence[Listener]) -> None:
        self._listeners = list(listeners)

    def add(self, listener: Listener) -> None:
        """Add a listener."""
        self._listeners.append(listener)

    def note(self, sentence: str) -> None:
        for each in self._listeners:
            each.note(sentence)

    def updated(self, update: Update, state: State) -> None:
        for each in self._listeners:
            each.updated(update, state)

    def validated(self, step: int, bits: float, best: bool) -> None:
        for each in self._listeners:
            each.validated(step, bits, best)

    def sampled(self, step: int, preview: Preview) -> None:
        for each in self._listeners:
            each.sampled(step, preview)

    def saved(self, path: Path) -> None:
        for each in self._listeners:
            each.saved(path)
