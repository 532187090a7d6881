"""Files of ``torch.save``, read without running code that they hold."""

from __future__ import annotations

import pickle
from pathlib import Path
from typing import Any

import torch


class UnreadableFile(Exception):
    """A file cannot be read; the message is a clause that says why."""


def load_torch_file(path: Path) -> Any:
    """What ``torch.save`` wrote to a file, on the CPU; tensors and plain containers alone.

    Raises:
        FileNotFoundError: there is no such file.
        UnreadableFile: it is damaged, or ``torch.save`` did not write it.
    """
    try:
        return torch.load(path, map_location="cpu", weights_only=True)
    except FileNotFoundError:
        raise
    except (OSError, RuntimeError, EOFError, pickle.UnpicklingError) as error:
        raise UnreadableFile(str(error) or type(error).__name__) from error
    except (LookupError, ValueError, TypeError, AttributeError) as error:
        # Bytes that happen to be instructions of pickle. The message would tell nothing.
        raise UnreadableFile("it is no file of torch.save") from error
