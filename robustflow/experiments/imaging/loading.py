"""A trained flow from a file."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from torch import Tensor, nn

from robustflow.experiments.encoders.weights import sha256_of, weights_file
from robustflow.experiments.imaging import checkpoints
from robustflow.experiments.imaging.checkpoints import CheckpointError
from robustflow.experiments.imaging.config import Config, ConfigError, from_toml
from robustflow.experiments.imaging.model import ImagingFlow
from robustflow.experiments.imaging.published import NotPublished, PublishedFlow, published_flow
from robustflow.experiments.tasks import Task

_ENCODER = "encoder."


@dataclass(frozen=True)
class Loaded:
    """A trained flow, in evaluation mode, and what is known of its training.

    Attributes:
        flow: to sample from.
        config: that it was trained with; None for a published network.
        step: updates; None likewise.
        file: where the weights are.
    """

    flow: ImagingFlow | PublishedFlow
    config: Config | None
    step: int | None
    file: Path


def load_flow(path: str | Path, task: Task | None = None) -> Loaded:
    """A flow of `robustflow train`, or a published network.

    Args:
        path: a training's folder (its best checkpoint is taken, else its last), a checkpoint's
            folder or file; or a file of published weights, ``.pth``, ``.pt`` or ``.safetensors``.
        task: that training was given in place of its configuration's.

    Raises:
        CheckpointError: there is none, or it is damaged, or of another program or task.
    """
    file = checkpoints.model_file(Path(path))
    tensors, metadata = checkpoints.read_model(file)
    if metadata.get("format") != checkpoints.FORMAT:
        try:
            return Loaded(published_flow(tensors).eval(), None, None, file)
        except NotPublished as error:
            raise CheckpointError(
                f"{file} is neither of `robustflow train` nor a published network. {error}"
            ) from None
    try:
        config = from_toml(metadata["config"], f"the configuration in {file}")
        flow = ImagingFlow(config, task)
        if (trained := metadata.get("task", "")) not in ("", flow.task.name):
            raise CheckpointError(
                f"{file} was trained for the task {trained!r}, and this one is "
                f"{flow.task.name!r}: load_flow(path, task=...) takes the object."
            )
        if config.encoder_comes_from_a_file:
            used = weights_file(config.encoder.name)
            if sha256_of(used) != metadata["encoder"]:
                raise CheckpointError(
                    f"{file} was trained with other weights of the encoder than {used} has now."
                )
        load_weights(flow, tensors, without_encoder=config.encoder_stays_in_its_file)
    except ConfigError as error:
        raise CheckpointError(f"{file} cannot be loaded: {error}") from error
    except (KeyError, RuntimeError) as error:
        raise CheckpointError(f"{file} does not fit this version: {error}") from error
    return Loaded(flow.eval(), config, int(metadata["step"]), file)


def load_own_flow(path: Path) -> tuple[ImagingFlow, Config]:
    """A flow of `robustflow train` with its configuration; refuses published networks.

    Raises:
        CheckpointError: as for :func:`load_flow`, or it is a published network.
    """
    loaded = load_flow(path)
    if not isinstance(loaded.flow, ImagingFlow) or loaded.config is None:
        raise CheckpointError(f"{loaded.file} is a published network, not of `robustflow train`.")
    return loaded.flow, loaded.config


def load_weights(
    module: nn.Module, tensors: dict[str, Tensor], *, without_encoder: bool = False
) -> None:
    """Load all weights; ``without_encoder``, those of an encoder stay as they are.

    Raises:
        RuntimeError: weights are missing, or there are more.
    """
    missing, unexpected = module.load_state_dict(tensors, strict=False)
    if without_encoder:
        missing = [name for name in missing if not of_encoder(name)]
    if missing or unexpected:
        raise RuntimeError(f"missing weights: {missing}; unknown weights: {unexpected}.")


def of_encoder(name: str) -> bool:
    """Whether a weight of an :class:`ImagingFlow`, or of an average of one, is its encoder's."""
    return name.removeprefix("module.").startswith(_ENCODER)
