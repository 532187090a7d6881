"""The site: its navigation, its links, its picture, and what the pages name exists."""

from __future__ import annotations

import importlib.util
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import robustflow
from tests.docs.pages import DOCS, PAGES, ROOT, name_of, text_of
from tools import draw_layers

CONFIG = (ROOT / "mkdocs.yml").read_text(encoding="utf-8")
EXTRA_PAGES = [ROOT / name for name in ("CONTRIBUTING.md", "CHANGELOG.md", "SECURITY.md")]
EACH = pytest.mark.parametrize("page", [*PAGES, *EXTRA_PAGES], ids=name_of)


def test_the_navigation_names_every_page() -> None:
    nav = CONFIG.partition("\nnav:")[2].partition("\n\n")[0]
    named = re.findall(r": (\S+\.md)$", nav, re.MULTILINE)
    assert sorted(named) == sorted(page.relative_to(DOCS).as_posix() for page in DOCS.rglob("*.md"))


def _anchors(page: Path) -> set[str]:
    """Of the headings, as GitHub and Python-Markdown both make them."""
    outside_code = re.sub(r"^```.*?^```$", "", text_of(page), flags=re.MULTILINE | re.DOTALL)
    headings = re.findall(r"^#+ (.+)$", outside_code, re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", title.lower()).strip().replace(" ", "-") for title in headings}


@EACH
def test_links_resolve(page: Path) -> None:
    outside_code = re.sub(
        r"`[^`\n]+`", "", re.sub(r"```.*?```", "", text_of(page), flags=re.DOTALL)
    )
    for link in re.findall(r"\]\(([^)\s]+)\)", outside_code):
        if re.match(r"https?://", link):
            continue
        path, _, anchor = link.partition("#")
        target = (page.parent / path).resolve() if path else page
        assert target.exists(), link
        inside = target.is_relative_to(DOCS)
        assert inside or not page.is_relative_to(DOCS), f"{link}: the site has docs/ alone."
        if anchor:
            assert anchor in _anchors(target), link


def test_the_picture_of_the_layers_is_that_of_the_code() -> None:
    at_import, _ = draw_layers.python_edges()
    assert draw_layers.circles(at_import) == []
    assert draw_layers.circles({"a": {"b"}, "b": {"c"}, "c": {"b"}}) == ["b", "c"]
    stored = draw_layers.PICTURE.read_text(encoding="utf-8")
    assert stored == draw_layers.draw(), "run python tools/draw_layers.py"


@EACH
def test_what_commands_name_exists(page: Path) -> None:
    text, project = text_of(page), (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    ours = r"python -m ((?:robustflow|benchmarks|examples|tests)[\w.]*)"
    for module in set(re.findall(ours, text)):
        assert importlib.util.find_spec(module) is not None, module
    for marker in set(re.findall(r"pytest -m (\w+)", text)):
        assert f'"{marker}: ' in project, marker
    for extras in set(re.findall(r"(?:robustflow|\.)\[([a-z,]+)\]'", text)):
        for extra in extras.split(","):
            assert re.search(rf"^{extra} = \[", project, re.MULTILINE), extra
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    for target in set(re.findall(r"(?:^|`)make ([a-z-]+)", text, re.MULTILINE)):
        assert re.search(rf"^{target}:", makefile, re.MULTILINE), target


@EACH
def test_files_variables_and_backends_are_real(page: Path) -> None:
    text = text_of(page)
    pattern = r"`((?:robustflow|csrc|tests|benchmarks|tools|examples)/[\w./-]+\w)`"
    for file in set(re.findall(pattern, text)) - {"build/site"}:
        if "NAME" not in file:
            assert (ROOT / file).exists(), file
    for name in set(re.findall(r'use_backend\("(\w+)"\)', text)):
        assert name in {"auto", *robustflow.backends()}
    sources = [
        *ROOT.glob("*.py"),
        *ROOT.glob("robustflow/**/*.py"),
        *ROOT.glob("csrc/**/*.h"),
        ROOT / "CMakeLists.txt",
    ]
    code = "".join(source.read_text(encoding="utf-8") for source in sources)
    for variable in set(re.findall(r"ROBUSTFLOW_\w+", text)):
        assert variable in code, variable


def test_the_commands_for_a_gpu_say_what_they_miss() -> None:
    """Where there is none: none of them passes in silence."""
    if torch.cuda.is_available():
        pytest.skip("there is a GPU: see pytest -m gpu")
    for command, status, words in (
        (["pytest", "-q", "-m", "gpu", "tests/backends/gpu"], 0, "No GPU: this run shows nothing"),
        (["tests.backends.gpu.sanitize"], 1, "There is nothing to look at."),
        (["benchmarks.gpu"], 2, "torch sees none"),
    ):
        done = subprocess.run(
            [sys.executable, "-m", *command],
            cwd=ROOT,
            env={**os.environ, "OMP_NUM_THREADS": "1"},
            capture_output=True,
            text=True,
            timeout=300,
        )
        assert done.returncode == status, done.stderr[-2000:]
        assert words in done.stdout + done.stderr


def test_pre_commit_runs_what_make_lint_runs() -> None:
    recipe = (ROOT / "Makefile").read_text(encoding="utf-8").partition("\nlint:")[2]
    tools = re.findall(
        r"\$\(BIN\)/([a-z-]+(?: [a-z]+)?(?: --[a-z-]+)*)", recipe.partition("\n\n")[0]
    )
    assert [tool.split()[0] for tool in tools] == ["ruff", "ruff", "mypy", "clang-format"]
    hooks = (ROOT / ".pre-commit-config.yaml").read_text(encoding="utf-8")
    for tool in tools:
        assert f"entry: .venv/bin/{tool}" in hooks, tool
