"""Building: what is built, what is left out, and what the build says about it in its last line.

CMake, the compilers and torch are stand-ins, and the source tree is a copy.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import sysconfig
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
SUFFIX = sysconfig.get_config_var("EXT_SUFFIX")

# Writes the libraries of the targets; FAKE_FAILS names what does not go well.
CMAKE = f"""#!{sys.executable}
import os, re, sys
from pathlib import Path
fails, arguments = os.environ.get("FAKE_FAILS", "").split(), sys.argv[1:]
if "-S" in arguments:
    folder = Path(arguments[arguments.index("-B") + 1])
    with (folder / "configured").open("a") as record:
        record.write(" ".join(arguments) + "\\n")
    output = Path(re.search(r"-DCMAKE_LIBRARY_OUTPUT_DIRECTORY=(\\S+)", " ".join(arguments))[1])
    output.mkdir(exist_ok=True)
    for name in ("_C", "_autograd", "_cuda"):
        (output / (name + ".build.json")).write_text("{{}}")
    if "configure" in fails or ("nvcc" in fails and "-DROBUSTFLOW_CUDA=ON" in arguments):
        print("CMake Error at CMakeLists.txt:1 (message):\\n  It is\\n\\n  broken.\\nCall Stack:")
        sys.exit(1)
    if "check" in fails:
        print("CMake Error at x:1 (message):\\n  The compiler\\n\\n    c++: error: no option -f")
        sys.exit(1)
else:
    folder = Path(arguments[1])
    line = (folder / "configured").read_text().splitlines()[-1]
    output = Path(re.search(r"-DCMAKE_LIBRARY_OUTPUT_DIRECTORY=(\\S+)", line)[1])
    targets = [each for each in arguments[arguments.index("--target") + 1 :] if each[0] == "_"]
    for target in targets:
        if target in fails:
            print(f"csrc/{{target}}.cu(3): error: no such thing\\nninja: build stopped")
        else:
            (output / (target + (".so" if target == "_cuda" else {SUFFIX!r}))).write_text(target)
    sys.exit(bool(set(targets) & set(fails)))
"""


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    """A copy of what is built, beside a folder of tools and one with a torch."""
    tree = tmp_path / "tree"
    not_sources = shutil.ignore_patterns("*.so", "*.build.json", "__pycache__")
    for name in ("robustflow", "csrc"):
        shutil.copytree(ROOT / name, tree / name, ignore=not_sources)
    for name in ("setup.py", "pyproject.toml", "CMakeLists.txt", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, tree)
    tools, torch = tmp_path / "tools", tmp_path / "packages" / "torch"
    for folder in (tools, torch):
        folder.mkdir(parents=True)
    for name, text in (("cmake", CMAKE), ("ninja", "#!/bin/sh\n"), ("nvcc", "#!/bin/sh\n")):
        (tools / name).write_text(text)
        (tools / name).chmod(0o755)
    (torch / "__init__.py").touch()
    say_torch(tree)
    return tree


def say_torch(tree: Path, version: str = "2.13.0", cuda: str | None = "13.0") -> None:
    file = tree.parent / "packages" / "torch" / "version.py"
    file.write_text(f"__version__ = {version!r}\ncuda = {cuda!r}\n")


def build(tree: Path, *arguments: str, **variables: str) -> tuple[int, str]:
    """Build a wheel into `dist` beside the tree; the exit code and all that was printed."""
    cleared = ("CXX", "CC", "MAX_JOBS", "ROBUSTFLOW_CUDA", "ROBUSTFLOW_NATIVE", "CUDACXX")
    inherited = {name: value for name, value in os.environ.items() if name not in cleared}
    done = subprocess.run(
        [
            sys.executable,
            "setup.py",
            *(arguments or ("bdist_wheel", "-d", str(tree.parent / "dist"))),
        ],
        cwd=tree,
        env={
            **inherited,
            "PATH": f"{tree.parent / 'tools'}{os.pathsep}{os.environ['PATH']}",
            "PYTHONPATH": str(tree.parent / "packages"),
            "TMPDIR": str(tree.parent),
            **variables,
        },
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    assert not list(tree.parent.glob("robustflow-build-*")), "its folder is left"
    return done.returncode, done.stdout.strip()


def libraries(tree: Path) -> set[str]:
    """Of the one wheel that was built."""
    (wheel,) = (tree.parent / "dist").glob("*.whl")
    names = zipfile.ZipFile(wheel).namelist()
    assert "robustflow/_native.py" in names
    found = {Path(name).name for name in names if name.endswith(".so")}
    facts = {Path(name).name for name in names if name.endswith(".build.json")}
    assert facts == {f"{name.partition('.')[0]}.build.json" for name in found}
    assert ("-none-any" in wheel.name) == (not found)
    wheel.unlink()
    return found


C, AUTOGRAD, CUDA = f"_C{SUFFIX}", f"_autograd{SUFFIX}", "_cuda.so"


def test_all_that_can_be_built_is_in_the_wheel_and_nothing_else_in_the_tree(tree: Path) -> None:
    before = {path.name for path in tree.iterdir()}
    status, said = build(tree)
    assert status == 0, said
    assert libraries(tree) == {C, AUTOGRAD, CUDA}
    assert {path.name for path in tree.iterdir()} - before == {"build"}
    assert {path.name.rpartition(".")[2] for path in (tree / "build").iterdir()} == {
        "lock",
        f"native-{sysconfig.get_platform()}-{sys.implementation.cache_tag}",
    }
    say_torch(tree, cuda=None)
    assert build(tree)[0] == 0
    assert libraries(tree) == {C, AUTOGRAD}


@pytest.mark.parametrize(
    ("fails", "why"),
    [("nvcc", "It is broken."), ("_cuda", "csrc/_cuda.cu(3): error: no such thing.")],
)
def test_cuda_that_nobody_asked_for_does_not_cost_the_cpu_its_kernels(
    tree: Path, fails: str, why: str
) -> None:
    status, said = build(tree, FAKE_FAILS=fails)
    assert status == 0, said
    assert libraries(tree) == {C, AUTOGRAD}
    last = said.rpartition("\n")[2]
    nvcc = tree.parent / "tools" / "nvcc"
    assert last.startswith(
        f"robustflow: built without the CUDA kernels, because {nvcc} failed: {why} "
    )
    assert "ROBUSTFLOW_CUDA=0" in last
    status, said = build(tree, FAKE_FAILS=fails, ROBUSTFLOW_CUDA="1")
    assert status == 1
    assert said.rpartition("\n")[2].startswith(f"robustflow: ROBUSTFLOW_CUDA=1, but {nvcc} failed")
    status, said = build(tree, FAKE_FAILS=fails, ROBUSTFLOW_CUDA="0")
    assert status == 0 and "robustflow: built without" not in said
    assert libraries(tree) == {C, AUTOGRAD}


@pytest.mark.parametrize(
    ("nvcc", "why"),
    [
        (
            "echo 'nvcc fatal : No such device' >&2; exit 1",
            "--version failed: nvcc fatal : No such",
        ),
        (
            "echo 'Cuda compilation tools, release 11.8, V11.8.89'",
            "is of CUDA 11.8, and C++20 needs",
        ),
    ],
)
def test_a_cuda_compiler_of_no_use_is_found_out_before_the_build(
    tree: Path, nvcc: str, why: str
) -> None:
    """CMake calls a broken one a fault of its own, and finds an old one after minutes."""
    file = tree.parent / "tools" / "nvcc"
    file.write_text(f"#!/bin/sh\n{nvcc}\n")
    status, said = build(tree)
    assert status == 0 and libraries(tree) == {C, AUTOGRAD}
    last = said.rpartition("\n")[2]
    assert last.startswith(f"robustflow: built without the CUDA kernels, because {file} {why}")
    (record,) = tree.glob("build/native-*/configured")
    assert "ROBUSTFLOW_CUDA=ON" not in record.read_text()


def test_the_autograd_library_can_be_left_out(tree: Path) -> None:
    status, said = build(tree, FAKE_FAILS="_autograd", ROBUSTFLOW_CUDA="0")
    assert status == 0 and libraries(tree) == {C}
    assert "built without robustflow._autograd" in said.rpartition("\n")[2]


@pytest.mark.parametrize(
    ("fails", "why"),
    [
        ("configure", "It is broken."),
        ("check", "c++: error: no option -f."),
        ("_C", "csrc/_C.cu(3): error: no such thing."),
    ],
)
def test_kernels_that_do_not_compile_end_the_build_with_the_reason(
    tree: Path, fails: str, why: str
) -> None:
    status, said = build(tree, FAKE_FAILS=fails, ROBUSTFLOW_CUDA="0")
    assert status == 1
    assert said.rpartition("\n")[2] == (
        f"robustflow: the native build failed: {why} ROBUSTFLOW_NATIVE=0 installs without it."
    )


@pytest.mark.parametrize(
    ("variables", "why"),
    [
        ({"CXX": "g+++"}, "CXX=g+++ names no compiler"),
        ({"ROBUSTFLOW_NATIVE": "0"}, "ROBUSTFLOW_NATIVE=0"),
    ],
)
def test_without_a_compiler_the_wheel_is_pure_and_the_build_says_so_last(
    tree: Path, variables: dict[str, str], why: str
) -> None:
    status, said = build(tree, **variables)
    assert status == 0 and libraries(tree) == set()
    last = said.rpartition("\n")[2]
    assert last.startswith(f"robustflow: built without the native kernels, because {why}")
    assert said.count("built without") == 1


@pytest.mark.parametrize(
    ("variables", "why"),
    [
        ({"MAX_JOBS": "abc"}, "MAX_JOBS must be a whole number of at least 1, got 'abc'."),
        ({"MAX_JOBS": "0"}, "MAX_JOBS must be a whole number of at least 1, got '0'."),
        ({"ROBUSTFLOW_CUDA": "yes"}, "ROBUSTFLOW_CUDA must be 0, 1 or not set, got 'yes'."),
        (
            {"ROBUSTFLOW_NATIVE": "1", "CXX": "g+++"},
            "ROBUSTFLOW_NATIVE=1, but CXX=g+++ names no compiler that is there.",
        ),
    ],
)
def test_a_wrong_variable_is_named_in_one_line_before_any_work(
    tree: Path, variables: dict[str, str], why: str
) -> None:
    assert build(tree, **variables) == (1, f"robustflow: {why}")


def test_what_the_build_needs_is_named_in_one_line(tree: Path) -> None:
    say_torch(tree, version="2.9.1")
    status, said = build(tree)
    assert status == 1 and re.fullmatch(
        r"robustflow: the build needs torch 2\.10 or later and found 2\.9\.1 in .*", said
    )
    setuptools = tree.parent / "packages" / "setuptools"
    (setuptools / "command").mkdir(parents=True)
    names = "Extension = find_packages = setup = build_ext = object"
    (setuptools / "__init__.py").write_text(f"__version__ = '65.5.0'\n{names}\n")
    (setuptools / "command" / "__init__.py").touch()
    (setuptools / "command" / "build_ext.py").write_text(f"{names}\n")
    status, said = build(tree)
    assert status == 1 and re.fullmatch(
        r"robustflow: the build needs setuptools 77\.0\.3 or later, and this is 65\.5\.0: run .*",
        said,
    )


ISOLATED = """
import runpy, sys, sysconfig
paths = sysconfig.get_path
sysconfig.get_path = lambda name: "/none" if name.endswith("lib") else paths(name)
sys.modules["torch"] = None
sys.argv = ["setup.py", "bdist_wheel"]
runpy.run_path("setup.py")
"""


def test_an_isolated_build_says_how_to_let_it_see_torch(tree: Path) -> None:
    """As uv's is: torch may well be installed, for another Python than the build's."""
    done = subprocess.run(
        [sys.executable, "-c", ISOLATED], cwd=tree, capture_output=True, text=True
    )
    assert done.returncode == 1 and done.stdout == "" and done.stderr.count("\n") == 1
    assert "Where torch is installed, the build is isolated from it" in done.stderr
    assert "`uv pip install --no-build-isolation .`" in done.stderr
    assert done.stderr.endswith("Where it is not, install torch first.\n")


def test_builds_side_by_side_and_in_a_tree_that_cannot_be_written(tree: Path) -> None:
    import fcntl

    name = f"native-{sysconfig.get_platform()}-{sys.implementation.cache_tag}"
    (tree / "build").mkdir()
    with (tree / "build" / f"{name}.lock").open("w") as other:
        fcntl.flock(other, fcntl.LOCK_EX)  # another build is at work
        assert build(tree)[0] == 0
        assert libraries(tree) == {C, AUTOGRAD, CUDA}
        assert not any((tree / "build" / name).iterdir())
    assert build(tree)[0] == 0
    assert libraries(tree) == {C, AUTOGRAD, CUDA} and any((tree / "build" / name).iterdir())
    shutil.rmtree(tree / "build")
    (tree / "build").touch()  # a folder cannot be made there, also by root
    before = sorted(tree.rglob("*"))
    assert build(tree)[0] == 0
    assert libraries(tree) == {C, AUTOGRAD, CUDA} and sorted(tree.rglob("*")) == before


def test_another_compiler_starts_afresh(tree: Path) -> None:
    """CMake would go on with the one that it found first."""
    shutil.copy(tree.parent / "tools" / "nvcc", tree.parent / "tools" / "myc++")
    for compiler, times in (("", 1), ("", 2), ("myc++", 1)):
        assert build(tree, CXX=compiler)[0] == 0
        libraries(tree)
        (record,) = tree.glob("build/native-*/configured")
        assert len(record.read_text().splitlines()) == times


def test_an_editable_installation_has_its_libraries_in_the_tree(tree: Path) -> None:
    for variables, expected in (
        ({}, {C, AUTOGRAD, CUDA}),
        ({"ROBUSTFLOW_CUDA": "0"}, {C, AUTOGRAD}),
    ):
        assert build(tree, "build_ext", "--inplace", **variables)[0] == 0
        assert {file.name for file in tree.glob("robustflow/*.so")} == expected
    assert not list(tree.glob("robustflow/.*"))
