"""Files of commands: paths are checked first, contents are there in full or not, or elsewhere."""

from __future__ import annotations

import argparse
import errno
import os
import tempfile
from pathlib import Path

import pytest

from robustflow import _files
from robustflow._arguments import output_file, whole_number
from robustflow._files import UnwritablePath, check_writable, replacing, save, write_atomically


def names(folder: Path) -> list[str]:
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*"))


def test_a_path_is_checked_without_a_trace_but_its_folder(tmp_path: Path) -> None:
    old = tmp_path / "old.json"
    old.write_text("old")
    check_writable(old, tmp_path / "a" / "b" / "new.json")
    assert names(tmp_path) == ["a", "a/b", "old.json"] and old.read_text() == "old"


@pytest.mark.parametrize("path", ["folder", "file/x.json", "/proc/no-such-folder/x.json"])
def test_a_path_that_cannot_be_written_is_named(tmp_path: Path, path: str) -> None:
    (tmp_path / "folder").mkdir()
    (tmp_path / "file").touch()
    with pytest.raises(UnwritablePath, match=rf"{path} cannot be written \(.+\): name another"):
        check_writable(tmp_path / path)
    with pytest.raises(argparse.ArgumentTypeError, match=f"{path} cannot be written"):
        output_file(str(tmp_path / path))


@pytest.mark.skipif(os.geteuid() == 0, reason="nothing is write-protected from root")
def test_a_write_protected_file_is_not_replaced(tmp_path: Path) -> None:
    file = tmp_path / "kept.json"
    file.touch(mode=0o444)
    with pytest.raises(UnwritablePath, match="write-protected"):
        check_writable(file)
    with pytest.raises(PermissionError):
        write_atomically(file, "new")


def test_a_file_is_replaced_in_full_or_not_at_all(tmp_path: Path) -> None:
    file, link = tmp_path / "file", tmp_path / "link"
    write_atomically(file, "old")
    link.symlink_to(file)
    with pytest.raises(ValueError), replacing(link) as unfinished:
        unfinished.write(b"half")
        raise ValueError
    assert file.read_text() == "old" and names(tmp_path) == ["file", "link"]
    write_atomically(link, "üben")
    assert file.read_bytes() == "üben".encode() and link.is_symlink()
    assert file.stat().st_mode & 0o777 == 0o666 & ~umask()
    assert _files.written()[-2:] == (file, link)


def umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask


def test_a_device_is_written_to_and_stays(capfd: pytest.CaptureFixture[str]) -> None:
    device = Path("/dev/fd/1")
    check_writable(device)
    write_atomically(device, "to standard output")
    assert capfd.readouterr().out == "to standard output"


def test_results_for_which_there_is_no_space_are_kept_elsewhere(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    temporary = tmp_path / "tmp"
    temporary.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(temporary))
    full = tmp_path / "full" / "a.json"

    def no_space(source: Path, target: Path) -> None:
        if target == full:
            raise OSError(errno.ENOSPC, "No space left on device", str(source))
        source.rename(target)

    monkeypatch.setattr(os, "replace", no_space)
    assert save(full, "numbers") is False
    told = capsys.readouterr().err
    (kept,) = temporary.glob("robustflow-*/a.json")
    assert kept.read_text() == "numbers" and f"kept in {kept}." in told
    assert f"{full} could not be written (No space left on device" in told
    assert names(full.parent) == []
    assert save(tmp_path / "b.json", "numbers") is True

    monkeypatch.setattr(tempfile, "tempdir", str(full.parent / "none"))
    assert save(full, "numbers") is False
    assert capsys.readouterr().out == "numbers\n"
    assert save(full, b"picture") is False
    assert "they are lost" in capsys.readouterr().err


def test_whole_numbers_are_asked_for_in_words() -> None:
    assert whole_number(2)("2") == 2
    for text in ("1", "ten", "2.5", ""):
        with pytest.raises(argparse.ArgumentTypeError, match=f"at least 2, got '{text}'"):
            whole_number(2)(text)
