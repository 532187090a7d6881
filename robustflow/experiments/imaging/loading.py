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

_ENCODER = "encoder."


@dataclass(frozen=True)
class Loaded:
    """A trained flow, in evaluation mode, and what is known of its training.

    Attributes:
        flow: to sample from.
        config: that it was trained with.
        step: updates.
        file: where the weights are.
    """

    flow: ImagingFlow
    config: Config
    step: int
    file: Path


def load_flow(path: Path) -> Loaded:
    """The flow of a training's folder (its best checkpoint, else its last), or of a file.

    Raises:
        CheckpointError: there is none, or it is damaged, or of another program.
    """
    tensors, metadata = checkpoints.read_model(path)
    file = checkpoints.model_file(path)
    try:
        config = from_toml(metadata["config"], f"the configuration in {file}")
        flow = ImagingFlow(config)
        if config.encoder_comes_from_a_file:
            used = weights_file(config.encoder.name)
            if sha256_of(used) != metadata["encoder"]:
                raise CheckpointError(
                    f"{file} was trained with other weights of the encoder than {used} has now."
                )
        load_weights(flow, tensors, without_encoder=config.encoder_stays_in_its_file)
    except (ConfigError, KeyError, RuntimeError) as error:
        raise CheckpointError(f"{file} does not fit this version: {error}") from error
    return Loaded(flow.eval(), config, int(metadata["step"]), file)


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
