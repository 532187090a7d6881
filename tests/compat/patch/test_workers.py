"""Patches in other processes: by the environment, by an initialiser, after a fork."""

from __future__ import annotations

import importlib
import logging
import multiprocessing
import os
import pickle
import re
import subprocess
import sys
import threading
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from torch.utils.data import DataLoader

from robustflow import _patch_on_import, _patchable, compat
from robustflow.cli.doctor import diagnose
from robustflow.fused import is_available
from tests.compat import spawned
from tests.compat.served import counts

pytest.importorskip("nflows")
ROOT = Path(__file__).parents[3]

IMPORTED_LATER = """
import sys, warnings
with warnings.catch_warnings(record=True) as told:
    warnings.simplefilter("always")
    import robustflow
ours = [str(each.message) for each in told if "ROBUSTFLOW_PATCH" in str(each.message)]
assert len(ours) == 1 and "got 'nflow'. It is left out." in ours[0], ours
assert "nflows" not in sys.modules and "torch._dynamo" not in sys.modules
from tests.compat import spawned
from robustflow import compat
assert compat.patched() == {}
assert spawned.call() == {"nflows": {"kernel": 1, "reference": 0, "fallback": 0}}
import nflows, zuko
assert set(compat.patched()) == {"nflows", "zuko"}
assert type(nflows.__spec__.loader) is type(spawned.__spec__.loader) is type(nflows.__loader__)
compat.unpatch("nflows")
assert set(compat.patched()) == {"zuko"}
"""

IMPORTED_BEFORE = """
import zuko
import robustflow
assert set(robustflow.compat.patched()) == {"zuko"}
"""


def run(script: str, value: str) -> None:
    environment = {
        **os.environ,
        "ROBUSTFLOW_PATCH": value,
        "PYTHONPATH": str(ROOT),
    }
    command = [sys.executable, "-c", script]
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]


def test_libraries_that_are_imported_later() -> None:
    """A name that is wrong is told, and does not stop the others."""
    pytest.importorskip("zuko")
    run(IMPORTED_LATER, " nflows,zuko, nflow")


def test_a_library_that_was_imported_before() -> None:
    pytest.importorskip("zuko")
    run(IMPORTED_BEFORE, "zuko")


@pytest.fixture
def watched(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """A library `impostor` that the variable names; ``write`` says what it is."""
    library = _patchable.Library("robustflow.compat._patch.nflows", "impostor")
    monkeypatch.setattr(_patch_on_import, "LIBRARIES", {"impostor": library})
    monkeypatch.setenv(_patch_on_import.VARIABLE, "impostor")
    monkeypatch.setattr(sys, "meta_path", list(sys.meta_path))
    monkeypatch.syspath_prepend(str(tmp_path))
    yield lambda text: (tmp_path / "impostor.py").write_text(text)
    sys.modules.pop("impostor", None)


def test_a_library_that_is_not_there_or_fails(
    watched: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its import says what it always says; the patch comes with the one that succeeds."""
    calls: list[str] = []
    monkeypatch.setattr(_patch_on_import, "_patch", calls.append)
    before = len(sys.meta_path)
    _patch_on_import.read_environment()
    with pytest.raises(ModuleNotFoundError, match="No module named 'impostor'"):
        importlib.import_module("impostor")
    watched("raise KeyError('broken')")
    importlib.invalidate_caches()
    with pytest.raises(KeyError, match="broken"):
        importlib.import_module("impostor")
    assert calls == []
    watched("value = 3  # and another length than before")
    module = importlib.import_module("impostor")
    assert module.value == 3 and calls == ["impostor"]
    assert len(sys.meta_path) == before


def test_a_library_that_cannot_be_patched_is_imported(
    watched: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(name: str) -> None:
        raise compat.PatchError(f"{name} cannot be patched.")

    monkeypatch.setattr(compat, "patch", refuse)
    watched("value = 4")
    _patch_on_import.read_environment()
    with pytest.warns(UserWarning, match=r"ROBUSTFLOW_PATCH names impostor\. impostor cannot be"):
        module = importlib.import_module("impostor")
    assert module.value == 4


def test_doctor_names_the_variable(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(_patch_on_import.VARIABLE, "zuko,nflow")
    problems = [each for each in diagnose()["problems"] if _patch_on_import.VARIABLE in each]
    assert len(problems) == 1 and "got 'nflow'" in problems[0]


@pytest.mark.parametrize("value", [None, "", " , "])
def test_nothing_to_patch(value: str | None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(_patch_on_import.VARIABLE, raising=False)
    if value is not None:
        monkeypatch.setenv(_patch_on_import.VARIABLE, value)
    before = list(sys.meta_path)
    _patch_on_import.read_environment()
    assert sys.meta_path == before and _patch_on_import.errors() == []


def test_workers_that_are_spawned() -> None:
    """One loader's worker and one of a pool; without the initialiser there is no patch."""
    loader = DataLoader(
        spawned.Calls(),
        num_workers=1,
        batch_size=None,
        multiprocessing_context="spawn",
        worker_init_fn=compat.worker_init("nflows"),
    )
    assert list(loader) == [{"nflows": counts(kernel=1)}]
    with compat.patch("nflows"):
        initializer = compat.worker_init()
    with multiprocessing.get_context("spawn").Pool(1, initializer) as pool:
        assert pool.map(spawned.call, [0, 1])[-1] == {"nflows": counts(kernel=2)}


def test_the_initialiser_in_this_process() -> None:
    module = importlib.import_module("nflows.transforms.splines.rational_quadratic")
    with compat.patch_module(module):
        initialise = pickle.loads(pickle.dumps(compat.worker_init()))
        assert initialise.names == (module.__name__,)
        initialise(3)  # as in a process that was forked: is patched already
    assert compat.patched() == {}
    initialise(3)
    assert spawned.call() == {module.__name__: counts(kernel=1)}
    compat.unpatch(module.__name__)
    assert compat.patched() == {}


def test_names_of_the_initialiser() -> None:
    with pytest.raises(ValueError, match=r"name must be one of 'nflows'.*got 'nflow'"):
        compat.worker_init("nflow")
    with pytest.raises(TypeError, match="got a list"):
        compat.worker_init(["nflows"])  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="Nothing is patched"):
        compat.worker_init()


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork")
@pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning")
def test_a_fork_while_another_thread_counts() -> None:
    """The lock that the other thread holds is nobody's in the child."""
    held, done = threading.Event(), threading.Event()

    def hold() -> None:
        with compat._patch.locking.lock:
            held.set()
            done.wait(60)

    thread = threading.Thread(target=hold)
    thread.start()
    held.wait(60)
    process = multiprocessing.get_context("fork").Process(target=compat.patched)
    process.start()
    process.join(60)
    done.set()
    thread.join()
    alive, code = process.is_alive(), process.exitcode
    process.kill()
    assert not alive and code == 0


def test_the_registry_is_free_while_a_library_is_imported(monkeypatch: pytest.MonkeyPatch) -> None:
    """Another thread may be importing it, and patch it by the environment before it is done."""
    nflows = importlib.import_module("robustflow.compat._patch.nflows")
    modules, seen = nflows.modules, []

    def look() -> None:
        lock = compat._patch.locking.lock
        seen.append(lock.acquire(timeout=60))
        lock.release()

    def importing(*args: Any) -> list[ModuleType]:
        if not seen:
            thread = threading.Thread(target=look)
            thread.start()
            thread.join()
        found: list[ModuleType] = modules(*args)
        return found

    monkeypatch.setattr(nflows, "modules", importing)
    with compat.patch("nflows"):
        assert seen == [True]


def test_the_examples_of_the_docs(
    capsys: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    text = (ROOT / "docs" / "drop-ins.md").read_text(encoding="utf-8")
    patched, fused, counted, logged, loaded = re.findall(r"```python\n(.*?)```", text, re.DOTALL)
    names: dict[str, Any] = {"__name__": "__main__"}
    exec(patched, names)
    assert names["counts"] == {"nflows": counts(kernel=1)}
    if is_available():
        exec(fused, names)
        assert capsys.readouterr().out.strip() == fused.rpartition("# ")[2].strip()
    compat._patch.counts._logged.clear()
    level = logging.getLogger("robustflow.compat").level
    try:
        exec(logged + counted, names)
    finally:
        logging.getLogger("robustflow.compat").setLevel(level)
    assert capsys.readouterr().out.strip() == counted.rpartition("# ")[2].strip()
    said = " ".join(logged.partition("# ")[2].replace("# ", "").split())
    assert said in [record.message for record in caplog.records]
    exec(loaded, names)
    assert [int(batch) for batch in names["batches"]] == [0, 1, 2, 3]
