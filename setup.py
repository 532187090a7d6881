"""Builds the native libraries, of which `robustflow._C` is the first, by CMake and Ninja.

CMakeLists.txt describes the build; this file finds torch, a compiler and the job count for it, and
decides what is left out. What it has to say it says last, in sentences of its own.

Environment variables:
    ROBUSTFLOW_NATIVE   0: install pure Python; 1: fail rather than fall back to pure Python
    ROBUSTFLOW_CUDA     0: without CUDA kernels; 1: with them, also for a torch without CUDA; by
                        default with them where torch has CUDA, a CUDA compiler is found and they
                        compile
    CUDA_HOME, CUDACXX  where that is: the toolkit's directory, or the compiler itself
    TORCH_CUDA_ARCH_LIST  GPUs to compile for, as for torch's own extensions: "9.0", "8.6;9.0+PTX"
    CXX, CXXFLAGS       the C++ compiler and further flags for it
    CMAKE_BUILD_TYPE    Release (the default), Debug or RelWithDebInfo
    MAX_JOBS            compile jobs; by default min(cores, free memory / GIB_PER_JOB)
"""

from __future__ import annotations

import atexit
import importlib.util
import json
import os
import re
import runpy
import shutil
import subprocess
import sys
import sysconfig
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import NoReturn

import setuptools
from setuptools import Extension, find_packages, setup
from setuptools.command.build_ext import build_ext

MINIMUM_TORCH = (2, 10)
MINIMUM_CUDA = 12  # of nvcc: the first that knows C++20
GIB_PER_JOB = 1.0  # GCC 12 takes 0.6 for the largest file
ROOT = Path(__file__).resolve().parent
SUFFIX = sysconfig.get_config_var("EXT_SUFFIX")
# As CMakeLists.txt names the libraries' files, and what it tells of each in a file beside it.
KERNELS, AUTOGRAD, CUDA = f"_C{SUFFIX}", f"_autograd{SUFFIX}", "_cuda.so"
FACTS = {name: f"{name.partition('.')[0]}.build.json" for name in (KERNELS, AUTOGRAD, CUDA)}

# The package itself would import torch.
fingerprint = runpy.run_path(str(ROOT / "robustflow" / "_sources.py"))["fingerprint"]

last_words: list[str] = []


def say_last(sentence: str) -> None:
    """Print a sentence when the build is over, after all that others print."""
    last_words.append(f"robustflow: {sentence}")


def fail(sentence: str) -> NoReturn:
    """End with a sentence, after all that was printed before and may still be in a buffer."""
    last_words.clear()
    sys.stdout.flush()
    raise SystemExit(f"robustflow: {sentence}")


@atexit.register
def print_last_words() -> None:
    sys.stdout.flush()
    for sentence in last_words:
        print(sentence, file=sys.stderr)


def check_setuptools() -> None:
    """One sentence, where an old setuptools would print its schema of pyproject.toml."""
    found = re.search(r'"setuptools>=([\d.]+)"', (ROOT / "pyproject.toml").read_text("utf-8"))
    assert found is not None
    if numbers(setuptools.__version__) < numbers(found[1]):
        fail(
            f"the build needs setuptools {found[1]} or later, and this is "
            f"{setuptools.__version__}: run `pip install 'setuptools>={found[1]}' cmake ninja`, "
            "then install again."
        )


def numbers(version: str) -> tuple[int, ...]:
    return tuple(map(int, re.findall(r"\d+", version)[:3]))


def switch(name: str) -> bool | None:
    """An environment variable that is 0, 1 or not set."""
    text = os.environ.get(name, "")
    if text not in ("", "0", "1"):
        fail(f"{name} must be 0, 1 or not set, got {text!r}.")
    return bool(int(text)) if text else None


def obstacle() -> str | None:
    """Why this machine cannot compile the native library, or None where it can."""
    if switch("ROBUSTFLOW_NATIVE") is False:
        return "ROBUSTFLOW_NATIVE=0"
    variable = next((name for name in ("CXX", "CC") if os.environ.get(name)), None)
    if variable is not None:
        named = os.environ[variable].split()[0]
        if shutil.which(named) is None:
            return f"{variable}={os.environ[variable]} names no compiler that is there"
    elif not any(map(shutil.which, ("c++", "g++", "clang++"))):
        return "no C++ compiler (c++, g++, clang++) was found"
    if not Path(sysconfig.get_path("include"), "Python.h").exists():
        return "Python.h was not found (Debian and Ubuntu: apt install python3-dev)"
    return None


def torch_directory() -> Path:
    """The installed torch, also from inside pip's isolated build, which hides site-packages."""
    spec = importlib.util.find_spec("torch")
    places = [Path(spec.origin).parent] if spec and spec.origin else []
    places += [Path(sysconfig.get_path(name), "torch") for name in ("platlib", "purelib")]
    for place in places:
        if (place / "version.py").exists():
            return place
    fail(
        "this build sees no torch to compile against. Where torch is installed, the build is "
        "isolated from it: `uv pip install setuptools cmake ninja`, then `uv pip install "
        "--no-build-isolation .` (so with pip too; `python -m build --no-isolation`). Where it is "
        "not, install torch first."
    )


def torch_version(directory: Path) -> str:
    version = str(runpy.run_path(str(directory / "version.py"))["__version__"])
    if numbers(version)[:2] < MINIMUM_TORCH:
        fail(
            f"the build needs torch {'.'.join(map(str, MINIMUM_TORCH))} or later and found "
            f"{version} in {directory}: upgrade torch, then install robustflow again."
        )
    return version


def cuda_compiler(torch: Path) -> str | None:
    """The nvcc to build the CUDA kernels with, or None for a build without them."""
    wanted = switch("ROBUSTFLOW_CUDA")
    torch_cuda = runpy.run_path(str(torch / "version.py")).get("cuda")
    if wanted is False or (wanted is None and not torch_cuda):
        return None
    homes = [os.environ[name] for name in ("CUDA_HOME", "CUDA_PATH") if os.environ.get(name)]
    places = [*(f"{home}/bin" for home in homes), os.environ.get("PATH", ""), "/usr/local/cuda/bin"]
    found = os.environ.get("CUDACXX") or shutil.which("nvcc", path=os.pathsep.join(places))
    if found:
        why = fault_of_cuda_compiler(found)
        if why is None:
            return found
        leave_out_cuda(found, why)
        return None
    if wanted:
        fail(
            "ROBUSTFLOW_CUDA=1, but no nvcc was found: install the CUDA toolkit, and set CUDA_HOME "
            "to its directory or put nvcc on PATH."
        )
    say_last(
        "built without the CUDA kernels, because no nvcc was found (set CUDA_HOME); CUDA tensors "
        "are served by Triton."
    )
    return None


def fault_of_cuda_compiler(nvcc: str) -> str | None:
    """What CMake would not say, or say of a compiler that does not know C++20 after minutes."""
    try:
        done, output = run([nvcc, "--version"])
    except OSError as error:
        return f"cannot be run: {error.strerror}."
    if not done:
        return f"--version failed: {cause(output)}"
    release = re.search(r"release (\d+)\.\d+", output)
    if release and int(release[1]) < MINIMUM_CUDA:
        return f"is of CUDA {release[0].split()[1]}, and C++20 needs CUDA {MINIMUM_CUDA} or later."
    return None


def tool(name: str) -> str:
    """The path of `cmake` or `ninja`, looked for on PATH, then beside this interpreter."""
    beside = os.pathsep.join([sysconfig.get_path("scripts"), os.environ.get("PATH", "")])
    path = shutil.which(name) or shutil.which(name, path=beside)
    if path is None:
        fail(f"the build needs {name}: `pip install cmake ninja` first.")
    return path


def wanted_jobs() -> int | None:
    text = os.environ.get("MAX_JOBS", "")
    if text and not (text.isdecimal() and int(text)):
        fail(f"MAX_JOBS must be a whole number of at least 1, got {text!r}.")
    return int(text) if text else None


def job_count() -> int:
    """Compile jobs that neither idle a core nor run out of memory."""
    if wanted := wanted_jobs():
        return wanted
    affinity = getattr(os, "sched_getaffinity", None)
    cores = len(affinity(0)) if affinity else os.cpu_count() or 1
    free = free_memory_gib()
    jobs = cores if free is None else max(1, min(cores, int(free / GIB_PER_JOB)))
    memory = "unknown" if free is None else f"{free:.1f} GiB"
    print(f"robustflow: {jobs} compile jobs ({cores} cores, free memory {memory}; set MAX_JOBS)")
    return jobs


def free_memory_gib() -> float | None:
    """Available memory, a container's own limit included; None where the system does not tell."""
    try:
        found = re.search(r"MemAvailable:\s*(\d+) kB", Path("/proc/meminfo").read_text())
    except OSError:
        return None
    if found is None:
        return None
    free = int(found[1]) / 2**20
    group = Path("/sys/fs/cgroup")
    try:
        limit, used = (group / name for name in ("memory.max", "memory.current"))
        free = min(free, (int(limit.read_text()) - int(used.read_text())) / 2**30)
    except (OSError, ValueError):  # no such file, or "max": no limit
        pass
    return free


def run(command: Sequence[str]) -> tuple[bool, str]:
    """Whether a command succeeds, and its output, which is printed as it comes."""
    print("robustflow:", *command, flush=True)
    lines = []
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, errors="replace"
    ) as process:
        assert process.stdout is not None
        for line in process.stdout:
            print(line, end="", flush=True)
            lines.append(line.rstrip())
    return process.returncode == 0, "\n".join(lines)


def cause(output: str) -> str:
    """The first error in the output of a compiler, or else of CMake, in one line."""
    of_compiler = r"^.*\b(?:error|nvcc fatal)\b(?: [A-Z]?\d+)?\s*:.*$"
    of_cmake = r"^CMake Error(?: at .*)?:(?P<text>.*\n?(?:(?:[ \t].*)?\n)*)"  # and what is indented
    text = output.rpartition("\n")[2]
    if found := re.search(of_compiler, output, re.MULTILINE):
        text = found[0]
    elif found := re.search(of_cmake, output, re.MULTILINE):
        text = found["text"]
    text = " ".join(text.split())
    return text if len(text) <= 300 else f"{text[:300]} ..."


class Workspace:
    """Folders to build in: a new one, and one in the source tree for what compilers make.

    The latter is kept between builds, so that the next one compiles only what has changed. Where
    the tree cannot be written, or another build is using it, the new one serves for this too.
    """

    def __init__(self) -> None:
        self.new = Path(tempfile.mkdtemp(prefix="robustflow-build-"))
        atexit.register(shutil.rmtree, self.new, ignore_errors=True)

    def native(self, settings: dict[str, str | None]) -> Path:
        """The folder for CMake, emptied where it was made with other settings."""
        import fcntl  # not on Windows, where only the pure package is built

        folder = (
            ROOT / "build" / f"native-{sysconfig.get_platform()}-{sys.implementation.cache_tag}"
        )
        record, text = folder / "settings.json", json.dumps(settings)
        try:
            folder.mkdir(parents=True, exist_ok=True)
            self.lock = folder.with_suffix(".lock").open("w")  # until this process ends
            fcntl.flock(self.lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if not record.exists() or record.read_text() != text:
                empty(folder)
                record.write_text(text)
        except OSError as error:
            print(f"robustflow: building in {self.new}, as {folder} is not free: {error}")
            folder = self.new / folder.name
            folder.mkdir()
        return folder


def empty(folder: Path) -> None:
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(exist_ok=True)


def build_libraries(workspace: Workspace) -> list[Path]:
    """Build what can be built; the libraries' files, `_C` first, and the facts of each."""
    torch = torch_directory()
    version = torch_version(torch)
    cmake, ninja = tool("cmake"), tool("ninja")
    nvcc = cuda_compiler(torch)
    variables = ("CXX", "CC", "CXXFLAGS", "LDFLAGS", "CUDAFLAGS", "CUDAHOSTCXX")
    settings = {name: os.environ.get(name) for name in variables}  # CMake reads these once
    settings |= {"root": str(ROOT), "torch": f"{torch} {version}", "nvcc": nvcc}
    settings["python"] = sys.executable
    folder = workspace.native(settings)
    libraries = folder / "lib"
    empty(libraries)

    def configure(nvcc: str | None) -> tuple[bool, str]:
        options = {
            "CMAKE_BUILD_TYPE": os.environ.get("CMAKE_BUILD_TYPE") or "Release",
            "CMAKE_LIBRARY_OUTPUT_DIRECTORY": libraries,
            "CMAKE_MAKE_PROGRAM": ninja,
            "Python_EXECUTABLE": sys.executable,
            "TORCH_DIR": torch,
            "TORCH_VERSION": version,
            "ROBUSTFLOW_SOURCES": fingerprint(ROOT),
            "ROBUSTFLOW_CUDA": "ON" if nvcc else "OFF",
        }
        if nvcc:
            options["CMAKE_CUDA_COMPILER"] = nvcc
        defined = [f"-D{name}={value}" for name, value in options.items()]
        return run([cmake, "-S", str(ROOT), "-B", str(folder), "-G", "Ninja", *defined])

    done, output = configure(nvcc)
    if nvcc and not done:
        leave_out_cuda(nvcc, f"failed: {cause(output)}")
        nvcc = None
        empty(folder)
        done, output = configure(None)
    if not done:
        fail_to_compile(output)
    build = [cmake, "--build", str(folder), "--parallel", str(job_count()), "--target"]
    made = [KERNELS, AUTOGRAD]
    done, output = run([*build, "_C", "_autograd", "--", "-k", "0"])
    if not done:
        # `_autograd` needs more of torch than its stable ABI, and nothing needs `_autograd`.
        if not run([*build, "_C"])[0]:
            fail_to_compile(output)
        made.remove(AUTOGRAD)
        say_last(
            "built without robustflow._autograd, which does not compile against this torch "
            f"({cause(output)}): calls work the same, and on small batches they are slower."
        )
    if nvcc:
        done, output = run([*build, "_cuda"])
        if done:
            made.append(CUDA)
        else:
            leave_out_cuda(nvcc, f"failed: {cause(output)}")
    return [libraries / file for name in made for file in (name, FACTS[name])]


def fail_to_compile(output: str) -> NoReturn:
    why = cause(output)
    advice = " Memory ran out: set MAX_JOBS=1." if "Killed" in why else ""
    fail(
        f"the native build failed: {why}{'' if why.endswith('.') else '.'}{advice} "
        "ROBUSTFLOW_NATIVE=0 installs without it."
    )


def leave_out_cuda(nvcc: str, why: str) -> None:
    """Go on without what nobody asked for; end where ROBUSTFLOW_CUDA=1 did."""
    why = f"{nvcc} {why}"
    if switch("ROBUSTFLOW_CUDA"):
        fail(f"ROBUSTFLOW_CUDA=1, but {why}")
    say_last(
        f"built without the CUDA kernels, because {why}{'' if why.endswith('.') else '.'} CUDA "
        "tensors are served by Triton. ROBUSTFLOW_CUDA=0 does not try, ROBUSTFLOW_CUDA=1 insists."
    )


class NativeBuild(build_ext):
    """`build_ext` by CMake; the libraries that setuptools does not know go with the one it does."""

    def build_extension(self, ext: Extension) -> None:
        folder = Path(self.get_ext_fullpath(ext.name)).resolve().parent
        folder.mkdir(parents=True, exist_ok=True)
        self.made = [Path(shutil.copy2(file, folder)) for file in build_libraries(workspace)]

    def copy_extensions_to_source(self) -> None:
        """Each in one piece: a running process may be loading it."""
        folder = ROOT / "robustflow"
        try:
            for file in self.made:
                partial = folder / f".{file.name}.{os.getpid()}.part"
                shutil.copy2(file, partial)
                os.replace(partial, folder / file.name)
            for name in {*FACTS, *FACTS.values()} - {file.name for file in self.made}:
                (folder / name).unlink(missing_ok=True)  # of an earlier build that had more
        except OSError as error:
            fail(
                f"an editable installation has its libraries in {folder}, which cannot be written "
                f"({error.strerror}): install without -e."
            )


def check_what_is_needed() -> None:
    """Before pip resolves, and so downloads, the dependencies, and before any work."""
    torch_version(torch_directory())
    tool("cmake")
    tool("ninja")
    wanted_jobs()
    switch("ROBUSTFLOW_CUDA")


check_setuptools()
reason = obstacle()
asked = set(sys.argv)
if reason is None:
    if asked & {"dist_info", "bdist_wheel", "editable_wheel", "build", "build_ext", "install"}:
        check_what_is_needed()
elif switch("ROBUSTFLOW_NATIVE"):
    fail(f"ROBUSTFLOW_NATIVE=1, but {reason}.")
elif asked & {"bdist_wheel", "editable_wheel", "build", "build_ext", "install"}:
    say_last(
        f"built without the native kernels, because {reason}; the slower PyTorch reference takes "
        "their place. ROBUSTFLOW_NATIVE=1 makes this an error."
    )

workspace = Workspace()
# Commands whose product goes elsewhere leave nothing but the compilers' work in the source tree,
# which may be read-only, or be used by another build.
elsewhere = {"bdist_wheel", "editable_wheel", "install", "dist_info", "egg_info", "--inplace", "-i"}
options = {}
if elsewhere & asked:
    options = {
        "build": {"build_base": str(workspace.new)},
        "egg_info": {"egg_base": str(workspace.new)},
    }

setup(
    packages=find_packages(str(ROOT), include=["robustflow", "robustflow.*"]),
    # Without it the wheel is, and is named, one for any platform.
    ext_modules=[] if reason else [Extension("robustflow._C", sources=[])],
    cmdclass={"build_ext": NativeBuild},
    options=options,
)
