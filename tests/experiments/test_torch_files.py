"""Files that torch.save did not write."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from robustflow.experiments.torch_files import UnreadableFile, load_torch_file


# The second and the fourth happen to be instructions of pickle.
@pytest.mark.parametrize("content", [b"", b"hello", b"\x80\x02garbage", b"abc\n", b"PK\x03\x04"])
def test_other_bytes_are_refused(tmp_path: Path, content: bytes) -> None:
    file = tmp_path / "weights.pt"
    file.write_bytes(content)
    with pytest.raises(UnreadableFile) as caught:
        load_torch_file(file)
    assert len(str(caught.value)) > 5


def test_a_missing_file_and_a_good_one(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        load_torch_file(tmp_path / "none.pt")
    torch.save({"a": torch.ones(2)}, tmp_path / "one.pt")
    assert torch.equal(load_torch_file(tmp_path / "one.pt")["a"], torch.ones(2))
