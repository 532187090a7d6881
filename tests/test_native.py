"""The native libraries' face: build facts, the choice of an instruction set, and failing well."""

from __future__ import annotations

import importlib.util
import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

import robustflow
from robustflow import _native
from robustflow._sources import fingerprint
from robustflow.ops import TRANSFORMS

PACKAGE = Path(robustflow.__file__).parent

needs_native = pytest.mark.skipif(
    importlib.util.find_spec("robustflow._C") is None, reason="the native library is not built"
)


def python(code: str, *, directory: Path | None = None, **variables: str) -> tuple[int, str]:
    """Run code in a fresh interpreter in a directory; its exit code and all of its output."""
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=directory,
        env={**os.environ, **variables},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    return done.returncode, done.stdout


@pytest.fixture
def copy(tmp_path: Path) -> Path:
    """A directory with a copy of the package, which `python(..., directory=)` then imports."""
    shutil.copytree(PACKAGE, tmp_path / "robustflow")
    return tmp_path


@needs_native
def test_build_info_tells_how_the_library_was_built_and_what_is_in_use() -> None:
    info = robustflow.build_info()
    assert info["loaded"] is True
    assert "-O3" in info["flags"] and "-ffast-math" not in info["flags"]
    assert info["isa"] in info["isa_supported"]
    assert set(info["isa_supported"]) <= set(info["instruction_sets"])
    assert info["torch"].startswith("2.")


@needs_native
def test_every_supported_instruction_set_can_be_chosen() -> None:
    before = robustflow.build_info()["isa"]
    x, params = torch.linspace(-0.6, 0.6, 50).reshape(1, 50), torch.randn(1, 200)
    with robustflow.use_backend("reference"):
        expected = robustflow.functional.modified_rq_spline(x, params)[0]
    try:
        for isa in robustflow.build_info()["isa_supported"]:
            _native.set_isa(isa)
            assert robustflow.build_info()["isa"] == isa
            with robustflow.use_backend("cpu"):
                y = robustflow.functional.modified_rq_spline(x, params)[0]
            torch.testing.assert_close(y, expected)
    finally:
        _native.set_isa(before)


@needs_native
def test_an_unknown_instruction_set_is_refused_and_changes_nothing() -> None:
    before = robustflow.build_info()["isa"]
    with pytest.raises(ValueError, match=f"'sse9'.*{before}"):
        _native.set_isa("sse9")
    assert robustflow.build_info()["isa"] == before


@needs_native
def test_the_environment_chooses_the_instruction_set() -> None:
    last = robustflow.build_info()["isa_supported"][-1]
    code = "import robustflow; print('isa', robustflow.build_info()['isa'])"
    assert f"isa {last}" in python(code, ROBUSTFLOW_ISA=last)[1]


WITHOUT = """
import robustflow, torch
x, params = torch.zeros(2, 3), torch.randn(2, 12)
y, _ = robustflow.functional.modified_rq_spline(x, params)
y, _ = robustflow.functional.modified_rq_spline(x, params)
print("finite", bool(y.isfinite().all()), robustflow.backends()["cpu"])
"""


DOCTOR = "import sys; from robustflow.cli import main; sys.exit(main(['doctor']))"


def without_libraries(folder: Path) -> None:
    for library in folder.glob("robustflow/*.so"):
        library.unlink()


def test_without_the_library_the_reference_serves_and_doctor_says_so(copy: Path) -> None:
    """The installation has said it once; an import does not say it again."""
    without_libraries(copy)
    status, output = python(
        "import warnings\nwarnings.simplefilter('error')" + WITHOUT + DOCTOR, directory=copy
    )
    first, report = output.split("\n", 1)
    assert status == 0 and first.startswith("finite True robustflow was installed without")
    assert report.startswith("versions\n")
    assert "note: robustflow was installed without its native library" in report
    assert output.endswith("\nhealthy\n")


ROOT = PACKAGE.parent
PLACE = "import robustflow._native as n; print(n.load(), n.shadowed_folder(), n.load_error())"


@pytest.fixture
def shadowed(copy: Path) -> tuple[Path, Path]:
    """A source tree without libraries, and a folder where such an installation has them."""
    installed = copy / "site-packages"
    shutil.copytree(PACKAGE, installed / "robustflow")
    (installed / "robustflow-0.1.0.dist-info").mkdir()
    metadata = installed / "robustflow-0.1.0.dist-info" / "METADATA"
    metadata.write_text("Metadata-Version: 2.1\nName: robustflow\nVersion: 0.1.0\n")
    without_libraries(copy)
    shutil.copytree(ROOT / "csrc", copy / "csrc")
    shutil.copy(ROOT / "CMakeLists.txt", copy)
    return copy, installed


def stamp(folder: Path, tree: Path) -> None:
    """Say beside a library that it was built from the sources of this tree."""
    file = folder / "_C.build.json"
    facts = json.loads(file.read_text())
    if facts["sources"] == "unknown":
        pytest.skip("the library was not built by setup.py: build it again")
    file.write_text(json.dumps({**facts, "sources": fingerprint(tree)}))


@needs_native
def test_a_source_tree_takes_the_libraries_of_the_installation_that_it_shadows(
    shadowed: tuple[Path, Path],
) -> None:
    tree, installed = shadowed
    stamp(installed / "robustflow", tree)
    code = "\n".join((PLACE, GRADIENTS, WITHOUT, DOCTOR))
    status, output = python(code, directory=tree, PYTHONPATH=str(installed))
    assert status == 0 and output.startswith(f"True {installed / 'robustflow'} None\n")
    assert json.loads(output.partition("told ")[2].partition("\n")[0])[0]["loaded"] is True
    assert "\nfinite True True\n" in output
    assert f"installation that it shadows, {installed / 'robustflow'}." in output


@needs_native
def test_a_source_tree_does_not_take_a_library_of_other_sources(
    shadowed: tuple[Path, Path],
) -> None:
    tree, installed = shadowed
    stamp(installed / "robustflow", tree)
    with (tree / "csrc" / "problem.h").open("a") as source:
        source.write("// changed\n")
    status, output = python(f"{PLACE}\n{DOCTOR}", directory=tree, PYTHONPATH=str(installed))
    reason = f"robustflow is imported from its source tree {tree}, which has no native library"
    assert status == 1 and f"\nFalse None {reason}" in output
    assert output.startswith(reason)  # said at the import, by logging: -W error does not stop it
    assert f"installed in {installed / 'robustflow'} was built from other sources" in output
    assert f"\nproblem: {reason}" in output


def test_a_source_tree_that_was_never_built_says_how(shadowed: tuple[Path, Path]) -> None:
    tree, _ = shadowed
    status, output = python(PLACE, directory=tree)
    assert (
        status == 0 and f"its source tree {tree}, where its native library was not built" in output
    )
    assert "run `pip install --no-build-isolation -e .` there." in output


@needs_native
@pytest.mark.parametrize(("name", "part"), [("_C", 0.9), ("_autograd", 0.9), ("_autograd", 0.5)])
def test_a_library_that_was_cut_short_is_not_loaded(copy: Path, name: str, part: float) -> None:
    """The system would map it, and kill the process where its pages end."""
    if not (libraries := list(copy.glob(f"robustflow/{name}.*.so"))):
        pytest.skip(f"{name} is not built")
    (library,) = libraries
    os.truncate(library, int(library.stat().st_size * part))
    status, output = python(WITHOUT + DOCTOR, directory=copy)
    assert status == 1 and "finite True" in output
    assert re.search(rf"problem: robustflow.*{library.name}.* --force-reinstall", output)
    assert output.endswith("\nnot healthy\n")


@needs_native
def test_a_library_that_does_not_load_quotes_the_torch_it_was_built_for(copy: Path) -> None:
    (library,) = copy.glob("robustflow/_C.*.so")
    symbol = b"aoti_torch_library_init_impl"
    library.write_bytes(library.read_bytes().replace(symbol, symbol[:-1] + b"_"))
    status, output = python(WITHOUT, directory=copy)
    built = robustflow.build_info()["torch"]
    assert status == 0 and "finite True" in output
    assert f"It was built for torch {built}, you have {torch.__version__}" in output


@needs_native
def test_a_library_for_another_python_is_named(copy: Path) -> None:
    (library,) = copy.glob("robustflow/_C.*.so")
    library.rename(library.with_name("_C.cpython-27-elsewhere.so"))
    status, output = python(WITHOUT, directory=copy)
    assert status == 0
    assert "_C.cpython-27-elsewhere.so is for another Python" in output


# A torch with CUDA, as far as robustflow asks before it meets a GPU.
WITH_CUDA = """
import json, torch
torch.version.cuda = "13.0"
import robustflow
print("told", json.dumps([robustflow.build_info()["cuda"], robustflow.backends()["cuda"]]))
"""
FACTS = {"compiler": "NVIDIA 12.8.1", "architectures": "80 90", "torch": "2.10.0"}


def cuda_library(copy: Path, content: bytes | None) -> tuple[dict[str, Any], bool | str]:
    """What is told of such a CUDA library (None: there is none) where torch has CUDA."""
    for library in copy.glob("robustflow/_cuda*.so"):
        library.unlink()
    if content is not None:
        (copy / "robustflow" / "_cuda.so").write_bytes(content)
        (copy / "robustflow" / "_cuda.build.json").write_text(json.dumps(FACTS))
    status, output = python(WITH_CUDA, directory=copy)
    assert status == 0, output
    info, backend = json.loads(output.partition("told ")[2].partition("\n")[0])
    return info, backend


needs_autograd = pytest.mark.skipif(
    _native.autograd() is None, reason="robustflow._autograd is not built"
)

GRADIENTS = """
import json, torch
import robustflow
x, params = torch.linspace(-1, 1, 12).reshape(1, 12), torch.linspace(-2, 2, 48).reshape(1, 48)
params.requires_grad_()
y, logabsdet = robustflow.functional.modified_rq_spline(x, params)
(gradient,) = torch.autograd.grad(y.square().sum() + logabsdet.sum(), params, create_graph=True)
(second,) = torch.autograd.grad(gradient.square().sum(), params)
found = [y.tolist(), logabsdet.tolist(), gradient.tolist(), second.tolist()]
print("told", json.dumps([robustflow.build_info()["autograd"], found]))
"""


def gradients(copy: Path, code: str = GRADIENTS) -> tuple[dict[str, Any], Any]:
    status, said = python(code, directory=copy)
    assert status == 0, said
    info, found = json.loads(said.partition("told ")[2])
    return info, found


@needs_autograd
def test_calls_are_the_same_with_and_without_the_autograd_library(copy: Path) -> None:
    info, expected = gradients(copy)
    assert info["loaded"] is True and info["torch"] == torch.__version__
    (library,) = copy.glob("robustflow/_autograd*.so")
    library.unlink()
    info, found = gradients(copy)
    assert info["loaded"] is False and "was not built: run `pip install" in info["reason"]
    assert found == expected


@needs_autograd
def test_the_autograd_library_is_not_loaded_into_another_torch(copy: Path) -> None:
    """It would crash: torch promises nothing between versions."""
    _, expected = gradients(copy)
    changed = "import torch; torch.__version__ = '2.99.0'\n" + GRADIENTS
    info, found = gradients(copy, changed)
    assert info["loaded"] is False and info["torch"] == torch.__version__
    assert f"built for torch {torch.__version__}, you have 2.99.0: run `pip" in info["reason"]
    assert found == expected
    told = "import torch; torch.__version__ = '2.99.0'\nfrom robustflow.cli import doctor\n"
    status, said = python(
        told + "print(doctor.run(__import__('argparse').Namespace(json=False)))", directory=copy
    )
    assert status == 0 and "note: robustflow._autograd" in said and said.endswith("healthy\n0\n")


@needs_autograd
@pytest.mark.parametrize("facts", [None, '{"torch": "2.1'])
def test_the_autograd_library_is_not_loaded_where_nothing_says_for_which_torch_it_is(
    copy: Path, facts: str | None
) -> None:
    file = copy / "robustflow" / "_autograd.build.json"
    file.unlink() if facts is None else file.write_text(facts)
    info, _ = gradients(copy)
    assert info["loaded"] is False and info["broken"] is True
    assert f"has no {file} that says for which torch it was built: run `pip" in info["reason"]


@needs_autograd
def test_the_autograd_library_says_what_is_wrong_with_its_arguments() -> None:
    operator = TRANSFORMS["modified_rq"].implementations["native"].eager
    x, params, config = torch.zeros(2, 3), torch.zeros(2, 3, 4), (False, -1.0, 1.0, 0.1, 0.1, False)
    assert operator(x, params, *config, 1)[1].shape == (2,)
    with pytest.raises(TypeError, match="takes 9 arguments, got 8"):
        operator(x, params, *config)
    with pytest.raises(TypeError, match="tensor is a <class 'float'>"):
        operator(x, 1.0, *config, 1)
    with pytest.raises(RuntimeError, match="robustflow: parameters must have x's dimensions"):
        operator(x, params[..., :3], *config, 1)


@needs_autograd
def test_its_node_in_compiled_autograd() -> None:
    x, params = torch.randn(4, 3), torch.randn(4, 12, requires_grad=True)

    def run() -> torch.Tensor:
        params.grad = None
        y, logabsdet = robustflow.functional.modified_rq_spline(x, params)
        (y.square().sum() + logabsdet.sum()).backward()
        assert params.grad is not None
        return params.grad

    expected = run()
    graphs = []

    def compiler(graph: torch.fx.GraphModule) -> torch.fx.GraphModule:
        graphs.append(graph.code)
        return graph

    with torch._dynamo.compiled_autograd._enable(compiler):
        torch.testing.assert_close(run(), expected)
    assert any("robustflow" in code for code in graphs)  # the node was traced


@needs_autograd
def test_a_second_backward_pass_is_refused_as_torch_does() -> None:
    params = torch.randn(4, 12, requires_grad=True)
    y, _ = robustflow.functional.modified_rq_spline(torch.randn(4, 3), params)
    y.sum().backward()
    with pytest.raises(RuntimeError, match="backward through the graph a second time"):
        y.sum().backward()
    y, _ = robustflow.functional.modified_rq_spline(torch.randn(4, 3), params)
    with torch.no_grad():
        params.add_(1)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        y.sum().backward()


def test_without_cuda_in_torch_its_library_is_left_alone() -> None:
    if torch.version.cuda is not None:
        pytest.skip("this torch has CUDA")
    info = robustflow.build_info()["cuda"]
    assert info["loaded"] is False
    assert info["reason"] == robustflow.backends()["cuda"]
    assert f"This torch, {torch.__version__}, was built without CUDA" in info["reason"]


def test_a_missing_cuda_library_says_how_to_build_it(copy: Path) -> None:
    info, backend = cuda_library(copy, None)
    assert info["loaded"] is False and info["reason"] == backend
    assert "put the nvcc of CUDA 13.0 on PATH, set ROBUSTFLOW_CUDA=1" in info["reason"]


def test_a_cuda_library_that_does_not_load_tells_what_it_was_built_with(copy: Path) -> None:
    info, backend = cuda_library(copy, b"not a library")
    assert info["loaded"] is False and info["reason"] == backend
    assert info["compiler"] == "NVIDIA 12.8.1" and info["architectures"] == "80 90"
    assert "did not load: " in info["reason"] and "_cuda.so" in info["reason"]
    assert "It was built for torch 2.10.0 (compiler: NVIDIA 12.8.1)" in info["reason"]
    assert f"you have {torch.__version__} with CUDA 13.0" in info["reason"]


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="takes a library of Linux")
def test_a_cuda_library_loads_without_a_gpu(copy: Path) -> None:
    """Any library will do: that it loads, and what then still misses, is the question."""
    any_library = Path(torch.__file__).parent / "lib" / "libtorch_global_deps.so"
    info, backend = cuda_library(copy, any_library.read_bytes())
    assert info["loaded"] is True and info["architectures"] == "80 90" and "reason" not in info
    if torch.cuda.is_available():
        assert backend is True
    else:
        assert str(backend).startswith("torch sees no GPU")


@needs_autograd
def test_python_keeps_its_say_in_a_call() -> None:
    class Named(torch.Tensor):
        pass

    x, params = torch.randn(4, 3), torch.randn(4, 12)
    y, _ = robustflow.functional.modified_rq_spline(x.as_subclass(Named), params)
    assert type(y) is Named
    seen = []

    class Mode(torch.overrides.TorchFunctionMode):
        def __torch_function__(
            self, function: Any, types: Any, args: Any = (), kwargs: Any = None
        ) -> Any:
            seen.append(str(function))
            return function(*args, **(kwargs or {}))

    with Mode():
        robustflow.functional.modified_rq_spline(x, params)
    assert "robustflow.modified_rq.default" in seen
    with pytest.raises(TypeError, match="inverse must be a bool, got 'x'"):
        robustflow.functional.modified_rq_spline(x, params, inverse="x")  # type: ignore[arg-type]
