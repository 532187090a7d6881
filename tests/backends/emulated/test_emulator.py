"""The emulator itself: correct kernels pass, and kernels that work only by luck fail."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from tests.backends.emulated.build import HERE, Missing, build_program, toolchain
from tests.backends.emulated.process import SANITIZER_OPTIONS

pytestmark = pytest.mark.emulated

THREADS, BLOCKS = 96, 3
FORWARD, REVERSE, SHUFFLED = range(3)
each_order = pytest.mark.parametrize(
    "order", [FORWARD, REVERSE, SHUFFLED], ids=["forward", "reverse", "shuffled"]
)


@pytest.fixture(scope="session", params=["", "-DROBUSTFLOW_UCONTEXT"], ids=["switch", "ucontext"])
def probes(request: pytest.FixtureRequest) -> Path:
    """The program of small kernels, with each way to switch stacks."""
    try:
        toolchain()
    except Missing as missing:
        pytest.skip(f"The emulator was not tested. {missing}")
    return build_program(HERE / "probes.cpp", *filter(None, [request.param]))


def run(probes: Path, name: str, order: int = FORWARD) -> tuple[int, str]:
    command = [str(probes), name, str(order)]
    done = subprocess.run(command, env=SANITIZER_OPTIONS, capture_output=True, text=True)
    return done.returncode, done.stdout + done.stderr


def numbers(probes: Path, name: str, order: int = FORWARD) -> list[int]:
    status, output = run(probes, name, order)
    assert status == 0, output
    return [int(word) for word in output.partition("\n")[0].split()]


@each_order
def test_threads_meet_at_barriers_and_shuffles(probes: Path, order: int) -> None:
    reversed_threads = list(reversed(range(THREADS)))
    assert numbers(probes, "reverse_numbers", order) == reversed_threads * BLOCKS
    sums = [sum(range(first, first + 32)) for first in range(0, THREADS, 32)]
    assert numbers(probes, "add_warps", order) == sums


def test_orders(probes: Path) -> None:
    """Blocks and threads come one after another, the other way round, or neither."""
    everyone = list(range(THREADS * BLOCKS))
    assert numbers(probes, "turns", FORWARD) == everyone
    assert numbers(probes, "turns", REVERSE) == everyone[::-1]
    shuffled = numbers(probes, "turns", SHUFFLED)
    assert sorted(shuffled) == everyone and shuffled not in (everyone, everyone[::-1])
    assert shuffled == numbers(probes, "turns", SHUFFLED)


def test_a_copy_arrives_when_it_is_waited_for(probes: Path) -> None:
    assert numbers(probes, "copy_numbers") == [0] * 4 + [1] * 4


def test_a_missing_barrier_shows_in_one_of_the_orders(probes: Path) -> None:
    expected = [thread // 2 for thread in range(THREADS)]
    assert numbers(probes, "no_barrier", FORWARD) == expected
    reverse = numbers(probes, "no_barrier", REVERSE)
    poison = int.from_bytes(b"\xc1\xff\xc1\xff", sys.byteorder, signed=True)
    assert reverse[1:] == [poison] * (THREADS - 1)


@pytest.mark.parametrize(
    ("name", "sentence"),
    [
        ("some_at_a_barrier", "5 wait at a barrier (probes.cpp:"),
        ("some_at_a_barrier", "91 have returned. All threads of a block must come to a barrier"),
        ("two_barriers", "Threads of a block wait at two barriers, probes.cpp:"),
        ("some_at_a_shuffle", "5 wait at a shuffle (probes.cpp:"),
        ("shuffle_in_part_of_a_warp", "names threads that the last warp of this block does not"),
        ("misaligned_words", "Loads 16 bytes at an address that is no multiple of 16. Thread 0 of"),
        ("no_blocks", "A GPU would refuse this launch: 0 blocks"),
        ("too_many_threads", "A GPU would refuse this launch: 1025 threads a block"),
        ("too_much_shared_memory", "bytes of shared memory, and a block can have"),
    ],
)
def test_faults_are_named(probes: Path, name: str, sentence: str) -> None:
    status, output = run(probes, name)
    assert status == 1 and sentence in output, output


@pytest.mark.parametrize(
    ("name", "finding"),
    [
        ("write_beyond", "heap-buffer-overflow"),
        ("write_beyond_shared", "heap-buffer-overflow"),
        ("kernel_reads_the_host", "use-after-poison"),
        ("host_reads_the_device", "use-after-poison"),
    ],
)
def test_memory_that_is_not_theirs_ends_the_process(probes: Path, name: str, finding: str) -> None:
    status, output = run(probes, name)
    assert status == 99 and f"AddressSanitizer: {finding}" in output, output


def test_approximations_are_as_wrong_as_they_may_be(probes: Path) -> None:
    """At the instructions' bounds, which what is made of them must stay near."""
    status, output = run(probes, "approximations")
    assert status == 0, output
    results = {line.split()[0]: line.split()[1:] for line in output.splitlines()}
    worst = {name: float(words[0]) for name, words in results.items()}
    assert 0.95 < worst["reciprocal"] <= 1.0
    assert 0.95 < worst["square_root"] <= 1.0
    assert 1.95 < worst["exp2"] <= 2.0
    assert worst["division"] <= 1.5
    assert worst["exponential"] <= 3.6  # the 2 of exp2 and 1.6 of its own
    assert results["flushed"] == ["inf", "-0", "0", "1"]
    assert all("nan" in word for word in results["nan"])
