"""docs/mathematics.md names what csrc/math computes with."""

from __future__ import annotations

import re

import pytest

from tests.docs.pages import DOCS, ROOT, text_of

PAGE = text_of(DOCS / "mathematics.md")
# lane.h, half.h and transform.h have the number types and the interface, not mathematics.
HEADERS = {
    path.name: text_of(path)
    for path in sorted((ROOT / "csrc" / "math").glob("*.h"))
    if path.name not in ("lane.h", "half.h", "transform.h")
}


@pytest.mark.parametrize("header", HEADERS)
def test_every_struct_is_named(header: str) -> None:
    for struct in re.findall(r"^(?:struct|class) (\w+)", HEADERS[header], re.MULTILINE):
        assert re.search(rf"`{struct}\b", PAGE), struct


def _fields(header: str, struct: str) -> list[str]:
    body = re.search(rf"^ *struct {struct} \{{\n(.*?)\n\n", HEADERS[header], re.M | re.DOTALL)
    assert body, struct
    declarations = re.sub(r"//.*", "", body[1]).split(";")
    name = re.compile(r"(\w+)(?:\[[^]]*\])?(?:,|$)")
    return [found for each in declarations for found in name.findall(each)]


@pytest.mark.parametrize(
    ("header", "struct"),
    [
        ("rq_bin.h", "RqShares"),
        ("cubic_bspline.h", "Element"),
        ("cubic_bspline.h", "Derivatives"),
        ("cubic_bspline.h", "CubicBin"),
    ],
)
def test_every_field_is_defined(header: str, struct: str) -> None:
    fields = _fields(header, struct)
    assert len(fields) > 3
    for field in fields:
        assert re.search(rf"`{field}\b", PAGE), field
