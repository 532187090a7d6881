"""Training of an imaging flow, with exact resumption."""

from __future__ import annotations

import json
import math
import os
import signal
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save
from torch import Tensor, distributed, nn
from torch.nn.parallel import DistributedDataParallel
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn
from torch.utils.data import DataLoader

from robustflow._files import write_atomically
from robustflow.experiments.data.crops import CropDataset, StepSampler
from robustflow.experiments.data.features import FeatureCache
from robustflow.experiments.encoders.weights import sha256_of, weights_file
from robustflow.experiments.imaging import checkpoints, sharding
from robustflow.experiments.imaging.checkpoints import CheckpointError, State
from robustflow.experiments.imaging.config import (
    Config,
    ConfigError,
    from_toml,
    refuse_another_model,
    to_toml,
)
from robustflow.experiments.imaging.loading import load_weights, of_encoder
from robustflow.experiments.imaging.lock import FolderInUse, FolderLock
from robustflow.experiments.imaging.model import ImagingFlow
from robustflow.experiments.imaging.preview import Preview, preview
from robustflow.experiments.imaging.sources import Sources, sources_of
from robustflow.experiments.tasks import Task

LOG = "log.jsonl"
BAD = "bad-batches"
_VALIDATION_SEED = 2**20  # added to the training's seed: other crops, the same for every training
_RAW = "model."
_AVERAGE = "average."


class TrainingStopped(Exception):
    """Training cannot go on; its text says why, and what to do."""


@dataclass(frozen=True)
class Update:
    """What one update did.

    Attributes:
        step: its number, from 1.
        bits: bits per dimension of its batch.
        gradient_norm: before clipping.
        skipped: the loss or a gradient was not finite, so nothing changed.
    """

    step: int
    bits: float
    gradient_norm: float
    skipped: bool


class Listener:
    """Gets the events of a training; every method may be left as it is."""

    def note(self, sentence: str) -> None:
        """Something that a user should know."""

    def updated(self, update: Update, state: State) -> None:
        """After each update."""

    def validated(self, step: int, bits: float, best: bool) -> None:
        """After each validation."""

    def sampled(self, step: int, preview: Preview) -> None:
        """When samples were due."""

    def saved(self, path: Path) -> None:
        """After each checkpoint."""


class Trainer:
    """A training in a folder: a new one, or a resumed one.

    The folder gets ``config.toml``, ``log.jsonl`` (a line an update), ``checkpoints/``, and
    ``bad-batches/`` where a loss was not finite.

    Args:
        config: checked here.
        folder: created if missing.
        resume: from the last checkpoint in it. Options of the training may differ from before;
            those of the task, the model and the encoder may not.
        task: in place of the configuration's.
        listener: gets all events; with several processes, that of the first.
        device: of the model; by default a GPU where there is one.

    Raises:
        ConfigError: the configuration cannot be used, or not with the checkpoint.
        TrainingStopped: the folder cannot be used.
        CheckpointError: the checkpoint cannot be read, or is of other weights of the encoder.
    """

    def __init__(
        self,
        config: Config,
        folder: Path,
        *,
        resume: bool = False,
        task: Task | None = None,
        listener: Listener | None = None,
        device: torch.device | str | None = None,
    ) -> None:
        self.config = config.check(task)
        self.folder = folder
        self.ranks = distributed.get_world_size() if distributed.is_initialized() else 1
        self.rank = distributed.get_rank() if distributed.is_initialized() else 0
        if config.training.batch_size % self.ranks:
            raise ConfigError(
                f"[training] batch_size must be a multiple of the {self.ranks} processes, got "
                f"{config.training.batch_size}."
            )
        self.listener = listener if listener and self.rank == 0 else Listener()
        self.state = State()
        existing = checkpoints.complete(self.checkpoint_folder)
        if existing and not resume:
            raise TrainingStopped(
                f"{folder} already holds a training, up to {existing[-1].name}: go on with "
                "--resume, or name another folder."
            )
        if resume and not existing:
            raise TrainingStopped(f"There is no checkpoint in {folder} to go on from.")
        if resume:
            self._check_goes_on(existing[-1])
        self._lock: FolderLock | None = None
        if self.rank == 0:
            self._lock = self._prepare_folder(existing)
        try:
            self._build(task, device, existing[-1] if resume else None)
        except BaseException:
            self._release()
            raise

    def _build(
        self, task: Task | None, device: torch.device | str | None, resumed: Path | None
    ) -> None:
        """Create model, optimiser and average, or read them from a checkpoint."""
        config = self.config
        if config.training.threads:
            torch.set_num_threads(config.training.threads)
        torch.manual_seed(config.training.seed)
        self.task = task or config.make_task()
        self.sources: Sources = sources_of(config, self.task, self.listener.note)
        self.device = torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
        self.flow = ImagingFlow(config, self.task).to(self.device)
        self.cache = self._feature_cache()
        training = config.training
        self.average: AveragedModel | None = None
        if training.ema:
            with self._encoder_apart():
                self.average = AveragedModel(
                    self.flow, multi_avg_fn=get_ema_multi_avg_fn(training.ema)
                ).requires_grad_(False)
        tensors = self._load(resumed) if resumed is not None else {}
        if self._is_sharded:
            self._shard()
        self._weights = [each for each in self.flow.parameters() if each.requires_grad]
        self.optimiser = torch.optim.Adam(
            self._weights, lr=training.learning_rate, betas=training.betas, fused=True
        )
        if resumed is not None:
            self._load_optimiser(resumed, tensors)

    @property
    def _is_sharded(self) -> bool:
        return self.ranks > 1 and self.config.training.parallel == "fsdp"

    def _shard(self) -> None:
        """Keep a part of the weights, after the first batch has set the actnorms."""
        if self.state.step == 0:
            batch = next(self._batches(0, 1))
            with torch.no_grad():
                self._bits(self.flow.train(), batch, training=True)
        sharding.shard(self.flow, self.ranks, self.device)
        if self.average is not None:
            sharding.shard(self.sampler_flow, self.ranks, self.device)

    @contextmanager
    def _encoder_apart(self) -> Iterator[None]:
        """Within it, a frozen encoder is detached from the flow and its average, which share it."""
        if not self.flow.encoder_is_frozen:
            yield
            return
        encoder = self.flow.encoder
        nothing = nn.Module()
        flows = [self.flow] if self.average is None else [self.flow, self.sampler_flow]
        for flow in flows:
            flow.encoder = nothing
        try:
            yield
        finally:
            self.flow.encoder = self.sampler_flow.encoder = encoder

    def _release(self) -> None:
        if self._lock is not None:
            self._lock.release()

    @property
    def checkpoint_folder(self) -> Path:
        return self.folder / "checkpoints"

    @property
    def sampler_flow(self) -> ImagingFlow:
        """The flow to validate and sample with: the averaged one, where training averages."""
        flow = self.flow if self.average is None else self.average.module
        assert isinstance(flow, ImagingFlow)
        return flow

    def run(self) -> State:
        """Train to the last iteration, or until a signal asks to stop; then all is saved.

        Raises:
            TrainingStopped: too many losses in a row that are not finite.
            CheckpointError: a checkpoint cannot be written.
        """
        try:
            return self._run()
        finally:
            self._release()

    def _run(self) -> State:
        config, state = self.config, self.state
        output, training = config.output, config.training
        model = self._parallel()
        with _stop_requests() as requested, self._log() as log:
            started = time.perf_counter() - state.seconds
            for batch in self._batches(state.step, training.iterations):
                update = self._update(model, batch)
                state.seconds = time.perf_counter() - started
                if self.rank == 0:
                    log(update)
                self.listener.updated(update, state)
                if state.skipped_in_a_row >= training.skip_limit:
                    self._give_up()
                last = state.step == training.iterations or self._on_any_rank(requested())
                best = False
                if state.step % output.validate_every == 0 or last:
                    best = self._validate()
                if output.samples_every and state.step % output.samples_every == 0:
                    self._sample()
                if state.step % output.checkpoint_every == 0 or best or last:
                    self._save(best)
                if last:
                    break
        return state

    def _on_any_rank(self, is_stopping: bool) -> bool:
        """Whether some process was asked to stop: then all stop at the same update."""
        if self.ranks == 1:
            return is_stopping
        flag = torch.tensor(float(is_stopping), device=self.device)
        distributed.all_reduce(flag)
        return bool(flag)

    def learning_rate(self, step: int) -> float:
        """The learning rate of the update after so many."""
        training = self.config.training
        passed = sum(step >= part * training.iterations for part in training.milestones)
        return training.learning_rate * 0.5**passed

    def _update(self, model: nn.Module, batch: dict[str, Tensor]) -> Update:
        state, training = self.state, self.config.training
        self.flow.train()
        for group in self.optimiser.param_groups:
            group["lr"] = self.learning_rate(state.step)
        self.optimiser.zero_grad(set_to_none=True)
        bits = self._bits(model, batch, training=True)
        bits.backward()
        norm = sharding.total(
            nn.utils.get_total_norm(
                [weight.grad for weight in self._weights if weight.grad is not None]
            )
        )
        numbers = torch.stack([bits.detach().float(), norm.float()])
        if self.ranks > 1:
            distributed.all_reduce(numbers[:1])
            numbers[0] /= self.ranks
        mean_bits, gradient_norm = numbers.tolist()
        skipped = not (math.isfinite(mean_bits) and math.isfinite(gradient_norm))
        state.step += 1
        if skipped:
            state.skipped += 1
            state.skipped_in_a_row += 1
            self._keep_batch(batch)
        else:
            state.skipped_in_a_row = 0
            if training.clip_norm:
                nn.utils.clip_grads_with_norm_(self._weights, training.clip_norm, norm)
            self.optimiser.step()
            if self.average is not None:
                with self._encoder_apart():
                    self.average.update_parameters(self.flow)
        return Update(state.step, mean_bits, gradient_norm, skipped)

    def _bits(self, model: nn.Module, batch: dict[str, Tensor], *, training: bool) -> Tensor:
        """Mean bits per dimension of a batch."""
        x, y, noise = (batch[name].to(self.device) for name in ("x", "y", "noise"))
        features = None
        if self.cache is not None and training:
            features = self.cache.crops(batch["crop"], self.config.data.crop).to(self.device)
        with self._autocast():
            log_prob = model(x, y, features=features, noise=noise if noise.numel() else None)
        return self.flow.bits_per_dimension(log_prob, x).mean()

    def _autocast(self) -> Any:
        if not self.config.training.autocast:
            return nullcontext()
        return torch.autocast(self.device.type, torch.bfloat16)

    def _parallel(self) -> nn.Module:
        if self.ranks == 1 or self._is_sharded:
            return self.flow
        return DistributedDataParallel(self.flow)

    def _batches(self, first: int, last: int) -> Iterator[dict[str, Tensor]]:
        data, training = self.config.data, self.config.training
        dataset = self._dataset(self.sources.training, training.seed, augment=data.augment)
        sampler = StepSampler(first, last, training.batch_size, rank=self.rank, ranks=self.ranks)
        loader = DataLoader(dataset, batch_sampler=sampler, num_workers=data.workers)
        yield from loader

    def _dataset(self, sources: Any, seed: int, *, augment: bool) -> CropDataset:
        config = self.config
        return CropDataset(
            sources,
            self.task,
            config.data.crop,
            seed=seed,
            augment=augment,
            noise=config.model.noise,
        )

    def _feature_cache(self) -> FeatureCache | None:
        """Features of the training pictures, where the encoder keeps its weights."""
        if not self.config.encoder_is_frozen:
            return None
        if self.task.random:
            self.listener.note(
                f"The task {self.task.name!r} draws noise, so the frozen encoder's features are "
                "computed for each batch and not kept."
            )
            return None
        return FeatureCache(
            self.folder / "features",
            self.sources.training,
            self.task,
            lambda y: self.flow.features(y.to(self.device)),
            self.encoder_key,
            limit_gib=self.config.encoder.cache_gib,
        )

    @cached_property
    def encoder_key(self) -> str:
        """What identifies the weights of the encoder that training began with."""
        if self.config.encoder_comes_from_a_file:
            return sha256_of(weights_file(self.config.encoder.name))
        return f"{self.config.encoder} {self.config.training.seed}"

    @torch.no_grad()
    def _validate(self) -> bool:
        """Bits per dimension of held-out crops; whether it is the best so far."""
        config = self.config
        flow = self.sampler_flow.eval()
        dataset = self._dataset(self.sources.validation, _VALIDATION_SEED, augment=False)
        sampler = StepSampler(0, config.output.validation_batches, config.training.batch_size)
        loader = DataLoader(dataset, batch_sampler=sampler)
        bits = sum(float(self._bits(flow, batch, training=False)) for batch in loader) / len(
            sampler
        )
        best = math.isfinite(bits) and (self.state.best_bits is None or bits < self.state.best_bits)
        if best:
            self.state.best_bits = bits
        self.listener.validated(self.state.step, bits, best)
        return best

    @torch.no_grad()
    def _sample(self) -> None:
        if self.rank and not self._is_sharded:
            return
        dataset = self._dataset(self.sources.validation, _VALIDATION_SEED, augment=False)
        items = [dataset[0, index] for index in range(4)]
        y, x = (torch.stack([item[name] for item in items]) for name in ("y", "x"))
        drawn = preview(self.sampler_flow.eval(), y.to(self.device), x)
        self.listener.sampled(self.state.step, drawn)

    def _save(self, best: bool) -> None:
        if self.rank and not self._is_sharded:
            return
        first = self.rank == 0
        raw = sharding.whole(self._without_file(self.flow.state_dict()), keep=first)
        training = {f"{_RAW}{name}": tensor for name, tensor in raw.items()}
        training |= sharding.whole(checkpoints.optimiser_tensors(self.optimiser), keep=first)
        sampled = raw
        if self.average is not None:
            with self._encoder_apart():  # its weights are there already, or in their file
                averaged = sharding.whole(self.average.state_dict(), keep=first)
            training |= {f"{_AVERAGE}{name}": tensor for name, tensor in averaged.items()}
            of_average = _part(averaged, "module.")
            encoder = {name: each for name, each in raw.items() if of_encoder(name)}
            sampled = {**(encoder if self.flow.encoder_is_frozen else {}), **of_average}
        if not first:
            return
        path = checkpoints.write(
            self.checkpoint_folder,
            self.state,
            to_toml(self.config, explain=False),
            sampled,
            training,
            task=self.task.name,
            encoder=self.encoder_key if self.config.encoder_comes_from_a_file else "",
            keep=self.config.output.keep,
            best=best,
        )
        self.listener.saved(path)

    def _check_goes_on(self, checkpoint: Path) -> None:
        """Raise before anything is written unless a checkpoint is of this configuration."""
        metadata = checkpoints.read_metadata(checkpoint / checkpoints.MODEL)
        trained = from_toml(metadata.get("config", ""), f"the configuration in {checkpoint}")
        refuse_another_model(self.config, trained)
        done = checkpoints.read_state(checkpoint).step
        if done > self.config.training.iterations:
            raise ConfigError(
                f"[training] iterations is {self.config.training.iterations}, and {checkpoint} is "
                f"after {done} already."
            )
        if self.config.encoder_comes_from_a_file and metadata.get("encoder") != self.encoder_key:
            raise CheckpointError(
                f"{checkpoint} was trained with other weights of the encoder than "
                f"{weights_file(self.config.encoder.name)} has now."
            )

    def _load(self, checkpoint: Path) -> dict[str, Tensor]:
        """State, weights and average of a checkpoint; all of its tensors are returned."""
        self.state, tensors = checkpoints.read_training(checkpoint)
        in_file = self.config.encoder_stays_in_its_file
        try:
            load_weights(self.flow, _part(tensors, _RAW), without_encoder=in_file)
            if self.average is not None:
                average = _part(tensors, _AVERAGE)
                load_weights(self.average, average, without_encoder=self.flow.encoder_is_frozen)
        except RuntimeError as error:
            raise CheckpointError(f"{checkpoint} does not fit this version: {error}") from error
        return tensors

    def _load_optimiser(self, checkpoint: Path, tensors: Mapping[str, Tensor]) -> None:
        try:
            checkpoints.load_optimiser(self.optimiser, tensors, sharding.like)
        except (RuntimeError, ValueError, IndexError) as error:
            raise CheckpointError(f"{checkpoint} does not fit this version: {error}") from error

    def _without_file(self, weights: dict[str, Tensor]) -> dict[str, Tensor]:
        """The weights, without those of a frozen encoder that stay in their own file."""
        if not self.config.encoder_stays_in_its_file:
            return weights
        return {name: tensor for name, tensor in weights.items() if not of_encoder(name)}

    def _prepare_folder(self, existing: Sequence[Path]) -> FolderLock:
        """Check before the work whether this training can write to the folder."""
        try:
            self.checkpoint_folder.mkdir(parents=True, exist_ok=True)
            lock = FolderLock(self.folder)
        except FolderInUse as error:
            raise TrainingStopped(
                f"{error}. Wait for it, stop it, or name another folder by --out."
            ) from None
        except OSError as error:
            raise self._unwritable(error) from None
        try:
            if checkpoints.complete(self.checkpoint_folder) != list(existing):
                raise TrainingStopped(
                    f"Another training in {self.folder} has just written a checkpoint: ask again."
                )
            if not lock.works:
                self.listener.note(
                    f"The file system of {self.folder} has no locks, so nothing keeps a second "
                    "training out of it: see to it that there is none."
                )
            checkpoints.remove_partial(self.checkpoint_folder)
            write_atomically(self.folder / "config.toml", to_toml(self.config))
        except OSError as error:
            lock.release()
            raise self._unwritable(error) from None
        except TrainingStopped:
            lock.release()
            raise
        return lock

    def _unwritable(self, error: OSError) -> TrainingStopped:
        return TrainingStopped(
            f"{self.folder} cannot be written to ({error}): name another folder by --out."
        )

    @contextmanager
    def _log(self) -> Iterator[Callable[[Update], None]]:
        """Write a line an update; remove lines after the checkpoint that training resumes from."""
        path = self.folder / LOG
        if self.rank == 0 and path.exists():
            text = path.read_text(encoding="utf-8", errors="replace")
            kept = [line for line in text.splitlines() if _is_logged(line, self.state.step)]
            write_atomically(path, "".join(f"{line}\n" for line in kept))
        with open(path if self.rank == 0 else os.devnull, "a", encoding="utf-8") as file:

            def log(update: Update) -> None:
                numbers = {"bits": update.bits, "gradient_norm": update.gradient_norm}
                line: dict[str, Any] = {"step": update.step}
                line |= {
                    name: value if math.isfinite(value) else str(value)
                    for name, value in numbers.items()
                }
                file.write(json.dumps(line) + "\n")
                file.flush()

            yield log

    def _keep_batch(self, batch: dict[str, Tensor]) -> None:
        path = self.folder / BAD / f"step-{self.state.step:08d}-{self.rank}.safetensors"
        write_atomically(path, save({name: each.contiguous() for name, each in batch.items()}))
        self.listener.note(
            f"Update {self.state.step} is skipped: its loss or a gradient is not finite. The batch "
            f"is in {path.parent}."
        )

    def _give_up(self) -> None:
        self._save(best=False)
        number = self.state.skipped_in_a_row
        raise TrainingStopped(
            f"{number} losses or gradients in a row were not finite, so training stops at update "
            f"{self.state.step}. The batches are in {self.folder / BAD}. A lower "
            "learning rate, a smaller clip_norm, or a coupling whose inverse is bounded "
            "(modified_rq) helps most often."
        )


def _is_logged(line: str, last: int) -> bool:
    """Whether a line of the log is whole, and of one of the first updates.

    After a crash of the machine a line can be incomplete, or the log can be shorter than the
    checkpoint says.
    """
    try:
        step = json.loads(line)["step"]
    except (ValueError, TypeError, KeyError):
        return False
    return isinstance(step, int) and step <= last


def _part(tensors: dict[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {
        name.removeprefix(prefix): tensor
        for name, tensor in tensors.items()
        if name.startswith(prefix)
    }


@contextmanager
def _stop_requests() -> Iterator[Callable[[], bool]]:
    """Whether SIGINT or SIGTERM came: the update in hand is finished first. A second one ends."""
    asked: list[int] = []

    before: dict[int, Any] = {
        number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)
    }

    def ask(number: int, frame: Any) -> None:
        asked.append(number)
        signal.signal(number, before[number])

    try:
        for number in before:
            signal.signal(number, ask)
    except ValueError:  # not in the main thread, where signals cannot be had
        before.clear()
    try:
        yield lambda: bool(asked)
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
