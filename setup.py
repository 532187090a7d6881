"""Builds the native libraries, of which `robustflow._C` is the first, by CMake and Ninja.

CMakeLists.txt describes the build; this file finds torch, a compiler and the job count for it.

Environment variables:
    ROBUSTFLOW_NATIVE   0: install pure Python; 1: fail rather than fall back to pure Python
    ROBUSTFLOW_CUDA     0: without CUDA kernels; 1: with them, also for a torch without CUDA; by
                        default with them where torch has CUDA and a CUDA compiler is found
    CUDA_HOME, CUDACXX  where that is: the toolkit's directory, or the compiler itself
    TORCH_CUDA_ARCH_LIST  GPUs to compile for, as for torch's own extensions: "9.0", "8.6;9.0+PTX"
    CXX, CXXFLAGS       the C++ compiler and further flags for it
    CMAKE_BUILD_TYPE    Release (the default), Debug or RelWithDebInfo
    MAX_JOBS            compile jobs; by default min(cores, free memory / GIB_PER_JOB)
"""

from __future__ import annotations

import importlib.util
import os
import re
import runpy
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path

from setuptools import Extension, find_packages, setup
from setuptools.command.build_ext import build_ext
from setuptools.command.dist_info import dist_info

MINIMUM_TORCH = (2, 10)
GIB_PER_JOB = 1.0  # GCC 12 takes 0.6 for the largest file
ROOT = Path(__file__).resolve().parent
# The package itself would import torch.
fingerprint = runpy.run_path(str(ROOT / "robustflow" / "_sources.py"))["fingerprint"]
# Built beside `_C`, where they can be built, and unknown to setuptools.
COMPANIONS = ("_cuda.*", "_eager.*")


def obstacle() -> str | None:
    """Why this machine cannot compile the native library, or None where it can."""
    if os.environ.get("ROBUSTFLOW_NATIVE") == "0":
        return "ROBUSTFLOW_NATIVE=0"
    named = os.environ.get("CXX") or os.environ.get("CC")
    candidates = [named.split()[0]] if named else ["c++", "g++", "clang++"]
    if not any(shutil.which(candidate) for candidate in candidates):
        return f"no C++ compiler ({', '.join(candidates)}) was found"
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
    raise SystemExit(
        "robustflow compiles against the torch that you use, and this build sees none: install "
        "torch first, then run `pip install --no-build-isolation .`."
    )


def cuda_compiler(torch: Path) -> str | None:
    """The nvcc to build the CUDA kernels with, or None for a build without them."""
    wanted = os.environ.get("ROBUSTFLOW_CUDA")
    torch_cuda = runpy.run_path(str(torch / "version.py")).get("cuda")
    if wanted == "0" or (wanted is None and not torch_cuda):
        return None
    homes = [os.environ.get(name) for name in ("CUDA_HOME", "CUDA_PATH")]
    places = [str(Path(home, "bin")) for home in (*homes, "/usr/local/cuda") if home]
    found = os.environ.get("CUDACXX") or shutil.which(
        "nvcc", path=os.pathsep.join([*places, os.environ.get("PATH", "")])
    )
    if found:
        return found
    if wanted == "1":
        raise SystemExit(
            "robustflow: ROBUSTFLOW_CUDA=1, but no nvcc was found: install the CUDA toolkit, and "
            "set CUDA_HOME to its directory or put nvcc on PATH."
        )
    print(
        "robustflow: building without the CUDA kernels, because no nvcc was found (set CUDA_HOME); "
        "CUDA tensors are served by Triton."
    )
    return None


def torch_version(directory: Path) -> str:
    version = str(runpy.run_path(str(directory / "version.py"))["__version__"])
    if tuple(int(part) for part in re.findall(r"\d+", version)[:2]) < MINIMUM_TORCH:
        raise SystemExit(
            f"robustflow needs torch {'.'.join(map(str, MINIMUM_TORCH))} or later and found "
            f"{version} in {directory}: upgrade torch, then install robustflow again."
        )
    return version


def tool(name: str) -> str:
    """The path of `cmake` or `ninja`, looked for beside this interpreter, then on PATH."""
    beside = os.pathsep.join([sysconfig.get_path("scripts"), os.environ.get("PATH", "")])
    path = shutil.which(name) or shutil.which(name, path=beside)
    if path is None:
        raise SystemExit(f"robustflow builds with {name}: `pip install cmake ninja` first.")
    return path


def job_count() -> int:
    """Compile jobs that neither idle a core nor run out of memory."""
    if "MAX_JOBS" in os.environ:
        return max(1, int(os.environ["MAX_JOBS"]))
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


def companions(directory: Path) -> list[Path]:
    return [library for pattern in COMPANIONS for library in directory.glob(pattern)]


def remove_companions(directory: Path) -> None:
    for library in companions(directory):
        library.unlink()


class NativeBuild(build_ext):
    """`build_ext` by CMake; leaves the extension out where there is nothing to compile it with."""

    def run(self) -> None:
        if reason := obstacle():
            if os.environ.get("ROBUSTFLOW_NATIVE") == "1":
                raise SystemExit(f"robustflow: ROBUSTFLOW_NATIVE=1, but {reason}.")
            print(
                f"robustflow: installing without the native kernels, because {reason}; "
                "the slower PyTorch reference takes their place."
            )
            self.extensions: list[Extension] = []
            return
        super().run()
        if self.inplace or self.editable_mode:
            # setuptools copies extensions into the sources, and the companions are none.
            remove_companions(ROOT / "robustflow")
            for library in companions(self.built):
                self.copy_file(str(library), str(ROOT / "robustflow" / library.name))

    def build_extension(self, ext: Extension) -> None:
        self.built = Path(self.get_ext_fullpath(ext.name)).resolve().parent
        remove_companions(self.built)  # of a build that had more of them
        torch = torch_directory()
        cmake, ninja = tool("cmake"), tool("ninja")
        # Kept between builds, where setuptools' own build_temp is not for an editable install.
        build = ROOT / "build" / f"native-{self.plat_name}-{sys.implementation.cache_tag}"
        configure = [
            *(cmake, "-S", str(ROOT), "-B", str(build), "-G", "Ninja"),
            f"-DCMAKE_MAKE_PROGRAM={ninja}",
            f"-DCMAKE_LIBRARY_OUTPUT_DIRECTORY={self.built}",
            f"-DPython_EXECUTABLE={sys.executable}",
            f"-DTORCH_DIR={torch}",
            f"-DTORCH_VERSION={torch_version(torch)}",
            f"-DROBUSTFLOW_SOURCES={fingerprint(ROOT)}",
        ]
        nvcc = cuda_compiler(torch)
        configure.append(f"-DROBUSTFLOW_CUDA={'ON' if nvcc else 'OFF'}")
        if nvcc:
            configure.append(f"-DCMAKE_CUDA_COMPILER={nvcc}")
        compile_all = [cmake, "--build", str(build), "--parallel", str(job_count())]
        try:
            subprocess.check_call(configure)
            if subprocess.call(compile_all) == 0:
                return
            # `_eager` alone needs more of torch than its stable ABI, and nothing needs `_eager`.
            kernels = ["_C", "_cuda"] if nvcc else ["_C"]
            subprocess.check_call([*compile_all, "--target", *kernels])
            print(
                "robustflow: building without the short way of eager calls, which does not compile "
                "against this torch; a call takes some microseconds more."
            )
        except subprocess.CalledProcessError:
            raise SystemExit(
                "robustflow: the native build failed, the compiler says why above; "
                "ROBUSTFLOW_NATIVE=0 installs without it."
            ) from None


class EarlyDistInfo(dist_info):
    """Asks for torch before pip resolves, and so downloads, the dependencies."""

    def run(self) -> None:
        if obstacle() is None:
            torch_version(torch_directory())
        super().run()


# A checkout's `benchmarks` is installed under a name that no other project takes. `benchmarks.aot`
# stays behind: it compiles the sources.
BENCHMARKS = {"robustflow_benchmarks": "benchmarks", "robustflow_benchmarks.gpu": "benchmarks/gpu"}

setup(
    packages=[*find_packages(str(ROOT), include=["robustflow", "robustflow.*"]), *BENCHMARKS],
    package_dir=BENCHMARKS,
    ext_modules=[Extension("robustflow._C", sources=[])],
    cmdclass={"build_ext": NativeBuild, "dist_info": EarlyDistInfo},
)
