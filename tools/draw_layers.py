"""Draws which part of the package imports which: docs/images/layers.svg.

``python tools/draw_layers.py`` reads the imports of robustflow/ and the includes of csrc/, fails if
an import made at module level closes a circle, and writes the picture. An import inside a function
is drawn dashed. An arrow that follows from others is left out.
"""

from __future__ import annotations

import ast
import functools
import re
import sys
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
PICTURE = ROOT / "docs" / "images" / "layers.svg"

SHARED = "_*.py"  # the private modules of robustflow/ itself
OPERATORS, HEADERS = "csrc/*.cpp", "csrc/*.h"
ABOUT = {
    "cli": "the command robustflow",
    "benchmarks": "robustflow bench",
    "experiments": "training, imaging, the toy",
    "diagnostics": "monitor, bounds, scores",
    "compat": "drop-ins and migration",
    "nn": "layers and flows",
    "distributions": "torch.distributions",
    "fused": "whole layers in one call",
    "functional": "the transforms on tensors",
    "ops": "schemas, autograd, backends",
    "reference": "plain PyTorch: the oracle",
    "kernels": "Triton",
    SHARED: "specs, checks, backend choice",
    OPERATORS: "operators: checks, allocation",
    "csrc/layers": "whole layers and their gradients",
    "csrc/network": "loops of small networks",
    "csrc/cpu": "loops, SIMD",
    "csrc/cuda": "loops, GPU",
    HEADERS: "list of transforms, problems",
    "csrc/math": "the formulas",
}

Edges = dict[str, set[str]]


def _part_of(module: str) -> str | None:
    """The part of the package that a module belongs to; None for robustflow itself."""
    names = module.split(".")
    if len(names) < 2:
        return None
    name = names[1]
    return SHARED if name.startswith("_") else name


def _imports(tree: ast.Module) -> Iterator[tuple[str, bool]]:
    """(module, whether it is imported inside a function)."""

    def walk(node: ast.AST, late: bool) -> Iterator[tuple[str, bool]]:
        for child in ast.iter_child_nodes(node):
            if isinstance(child, ast.If) and "TYPE_CHECKING" in ast.dump(child.test):
                continue
            if isinstance(child, ast.Import):
                yield from ((alias.name, late) for alias in child.names)
            elif isinstance(child, ast.ImportFrom) and child.module == "robustflow":
                yield from ((f"robustflow.{alias.name}", late) for alias in child.names)
            elif isinstance(child, ast.ImportFrom) and child.module:
                yield child.module, late
            function = isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda)
            yield from walk(child, late or function)

    return walk(tree, False)


@functools.cache
def python_edges() -> tuple[Edges, Edges]:
    """Imports between the parts of robustflow/: at module level, and inside functions."""
    at_import: Edges = defaultdict(set)
    in_functions: Edges = defaultdict(set)
    for file in sorted((ROOT / "robustflow").rglob("*.py")):
        part = _part_of(".".join(file.relative_to(ROOT).with_suffix("").parts))
        if part == SHARED and file.name.startswith("__"):
            continue  # robustflow/__init__.py offers all of them
        if file == ROOT / "robustflow/experiments/train.py":
            continue  # a command of its own, for torchrun, above the others
        for module, late in _imports(ast.parse(file.read_text(encoding="utf-8"))):
            other = _part_of(module) if module.split(".")[0] == "robustflow" else None
            if other in ABOUT and part in ABOUT and other != part:
                (in_functions if late else at_import)[part].add(str(other))
    return at_import, in_functions


def _native_part(file: Path) -> str:
    folder = str(file.parent.relative_to(ROOT))
    if folder != "csrc":
        return folder
    if file.name == "dtype.h":  # an enum, which the formulas use
        return "csrc/math"
    return HEADERS if file.suffix == ".h" and file.name != "ops.h" else OPERATORS


def native_edges() -> Edges:
    """Includes between the parts of csrc/."""
    edges: Edges = defaultdict(set)
    for file in sorted((ROOT / "csrc").rglob("*.*")):
        part = _native_part(file)
        for path in re.findall(r'#include "([^"]+)"', file.read_text(encoding="utf-8")):
            beside, below = (file.parent / path).resolve(), ROOT / "csrc" / path
            other = _native_part(beside if beside.exists() else below)
            if other != part:
                edges[part].add(other)
    return edges


def reachable(edges: Edges, start: str) -> set[str]:
    """All that a part needs, directly or through others."""
    seen: set[str] = set()
    left = [start]
    while left:
        for other in edges.get(left.pop(), ()):
            if other not in seen:
                seen.add(other)
                left.append(other)
    return seen


def circles(edges: Edges) -> list[str]:
    """Parts that need themselves."""
    return [part for part in edges if part in reachable(edges, part)]


def _reduced(edges: Edges) -> Edges:
    """Without the arrows that follow from others."""
    return {
        part: {
            other
            for other in others
            if not any(other in reachable(edges, between) for between in others - {other})
        }
        for part, others in edges.items()
    }


def _without(edges: Edges, others: Edges) -> Edges:
    """Edges less those of others."""
    return {part: needs - others.get(part, set()) for part, needs in edges.items()}


def _rows(edges: Edges) -> list[list[str]]:
    """Parts by level: each stands above all that it needs."""
    depth: dict[str, int] = {}

    def level(part: str) -> int:
        if part not in depth:
            depth[part] = 1 + max((level(other) for other in edges.get(part, ())), default=-1)
        return depth[part]

    for part in ABOUT:
        level(part)
    for part in ABOUT:  # what needs nothing stands below the lowest part that needs it
        if not edges.get(part):
            users = [depth[other] for other in ABOUT if part in edges.get(other, ())]
            depth[part] = min(users) - 1
    return [
        [part for part in ABOUT if depth[part] == row] for row in range(max(depth.values()) + 1)
    ]


WIDTH, BOX, BOX_HEIGHT, ROW = 760, 206, 44, 76
STYLE = """text { font: 13px sans-serif; text-anchor: middle; fill: #222 }
.name { font-weight: bold } rect { fill: #f4f6fb; stroke: #4a5f8f }
.native rect { fill: #fdf5ea; stroke: #a3712b }
path { fill: none; stroke: #667; stroke-width: 1.3; marker-end: url(#tip) }
.late, .up { stroke-dasharray: 4 4 }"""


def picture(at_import: Edges, in_functions: Edges) -> str:
    """The SVG: a box for each part, an arrow to what it needs."""
    ordered: Edges = {part: set(others) for part, others in at_import.items()}
    for part, others in in_functions.items():
        for other in sorted(others):
            if part not in reachable(ordered, other) and part != other:
                ordered.setdefault(part, set()).add(other)
    rows = _rows(ordered)
    places: dict[str, tuple[float, float]] = {}
    for number, row in enumerate(reversed(rows)):
        for index, part in enumerate(row):
            places[part] = (WIDTH * (index + 0.5) / len(row), 24 + ROW * number)
    height = 24 + ROW * len(rows)
    lines = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {height}" width="{WIDTH}">',
        f"<style>{STYLE}</style>",
        '<marker id="tip" viewBox="0 0 8 8" refX="8" refY="4" markerWidth="7" markerHeight="7" '
        'orient="auto"><path d="M0 0L8 4L0 8z" style="fill:#667;stroke:none;marker-end:none"/>'
        "</marker>",
    ]
    needed = _reduced(ordered)
    late = _without(needed, at_import)
    kinds = {"now": _without(needed, late), "late": late, "up": _without(in_functions, ordered)}
    for kind, edges in kinds.items():
        for part in ABOUT:
            for other in sorted(edges.get(part, ())):
                (x0, y0), (x1, y1) = places[part], places[other]
                if kind == "up":  # around the boxes between
                    x0, x1, side = x0 + BOX / 2, x1 + BOX / 2, max(x0, x1) + 1.1 * BOX
                    y0, y1 = y0 + BOX_HEIGHT / 2, y1 + BOX_HEIGHT / 2
                    bend = f"{side:.0f} {y0:.0f} {side:.0f} {y1:.0f}"
                else:
                    y0 += BOX_HEIGHT
                    bend = f"{x0:.0f} {(y0 + y1) / 2:.0f} {x1:.0f} {(y0 + y1) / 2:.0f}"
                lines.append(
                    f'<path class="{kind}" d="M{x0:.0f} {y0:.0f}C{bend} {x1:.0f} {y1:.0f}"/>'
                )
    for part, (x, y) in places.items():
        kind = "native" if part.startswith("csrc") else "python"
        lines.append(
            f'<g class="{kind}"><rect x="{x - BOX / 2:.0f}" y="{y:.0f}" width="{BOX}" '
            f'height="{BOX_HEIGHT}" rx="5"/><text class="name" x="{x:.0f}" y="{y + 18:.0f}">{part}'
            f'</text><text x="{x:.0f}" y="{y + 35:.0f}">{ABOUT[part]}</text></g>'
        )
    return "\n".join([*lines, "</svg>", ""])


def main() -> int:
    found = circles(python_edges()[0])
    if found:
        print(f"Imports at module level close a circle: {', '.join(found)}.", file=sys.stderr)
        return 1
    PICTURE.write_text(draw(), encoding="utf-8")
    return 0


def draw() -> str:
    """The picture of the code as it is."""
    at_import, in_functions = python_edges()
    edges: Edges = {**at_import, **native_edges()}
    edges[SHARED] = {*edges.get(SHARED, ()), OPERATORS}  # robustflow/_native.py loads the library
    return picture(edges, in_functions)


if __name__ == "__main__":
    sys.exit(main())
