"""What stands beside the specs: numbers and fields of the C++ side, and defaults of signatures."""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from robustflow import _transforms, distributions, reference
from robustflow import functional as F
from robustflow._spec import Choice, Spec
from robustflow.ops import TRANSFORMS

HEADERS = "\n".join(
    path.read_text() for path in sorted((Path(__file__).parents[1] / "csrc").rglob("*.h"))
)
EACH = pytest.mark.parametrize("spec", _transforms.ALL, ids=lambda spec: spec.name)
# What C++ calls a choice and a transform's settings; a choice of two names is a bool there.
ENUMS = {"tails": "Tails", "parametrization": "Parametrization", "scale": "Scale"}
CONFIGS = {
    "modified_rq": "ModifiedRqConfig",
    "rq": "RqSplineConfig",
    "affine": "AffineConfig",
    "cubic_bspline": "CubicBsplineConfig",
}
FUNCTIONS: dict[str, list[Callable[..., Any]]] = {
    "modified_rq": [F.modified_rq_spline, distributions.ModifiedRQSplineTransform],
    "rq": [F.rq_spline, F.rq_spline_packed, distributions.RQSplineTransform],
    "affine": [F.conditional_affine, distributions.ConditionalAffineTransform],
    "cubic_bspline": [F.cubic_bspline, distributions.CubicBSplineTransform],
}


def _without_comments(text: str) -> str:
    return re.sub(r"//.*", "", text)


def _enum(name: str) -> dict[str, int]:
    found = re.search(rf"enum class {name}\b[^{{]*\{{(.*?)\}}", HEADERS, re.DOTALL)
    assert found, f"csrc has no enum {name}."
    entries = re.findall(r"(\w+)\s*=\s*(\d+)", _without_comments(found[1]))
    return {entry: int(number) for entry, number in entries}


def _members(name: str) -> list[str]:
    """The members of a struct that has nothing but members."""
    found = re.search(rf"struct {name} \{{(.*?)\n\}};", HEADERS, re.DOTALL)
    assert found, f"csrc has no struct {name}."
    declarations = _without_comments(found[1]).split(";")
    return [name for each in declarations for name in re.findall(r"(\w+)\s*(?:,|$)", each.strip())]


@EACH
def test_numbers_of_choices_in_cpp(spec: Spec) -> None:
    for setting in spec.settings:
        if isinstance(setting, Choice) and setting.type == "int":
            names = [name or "none" for name in setting.names]
            assert _enum(ENUMS[setting.name]) == {name: i for i, name in enumerate(names)}


@EACH
def test_order_of_fields_in_cpp(spec: Spec) -> None:
    """But the direction, the dimensions and the box, which C++ has elsewhere."""
    members = _members(CONFIGS[spec.name])
    names = [name for name in spec.config_names if name in members]
    assert [name for name in members if name in names] == names
    box = {"left", "right", "bottom", "top"} if spec.name == "rq" else set()
    assert set(spec.config_names) - set(names) == {"inverse", "batch_dims"} | box


def test_largest_splines_of_kernels() -> None:
    (number,) = re.findall(r"kMaxBins = (\d+)", HEADERS)
    assert int(number) == _transforms.MAX_BINS


@EACH
def test_defaults_of_signatures(spec: Spec) -> None:
    """A reader sees them where the function is; they are those of the spec."""
    for function in FUNCTIONS[spec.name]:
        parameters = inspect.signature(function).parameters
        defaults = {name: parameters[name].default for name in spec.defaults}
        assert defaults == spec.defaults, function


@EACH
def test_arguments_of_the_reference(spec: Spec) -> None:
    """Those of the schema, but for names in place of numbers."""
    arguments = [each.split()[1] for each in spec.tensors] + list(spec.config_names)
    choices = {
        each.schema_names[0]: each.name for each in spec.settings if isinstance(each, Choice)
    }
    expected = ["x", *(choices.get(name, name) for name in arguments)]
    assert list(inspect.signature(getattr(reference, spec.name)).parameters) == expected


def test_schemas_are_those_that_exported_programs_know() -> None:
    """A name, a type or an order that changes breaks programs that were exported before."""
    schemas = [str(t.implementations["native"].operator._schema) for t in TRANSFORMS.values()]
    assert schemas == [
        "robustflow::modified_rq(Tensor x, Tensor params, bool inverse, float left, float right, "
        "float min_bin, float min_derivative, bool softclip, int batch_dims) -> "
        "(Tensor, Tensor)",
        "robustflow::rq(Tensor x, Tensor widths, Tensor? heights, Tensor? derivatives, "
        "Tensor? box, int num_bins, bool inverse, int tails, int parametrization, "
        "float left, float right, float bottom, float top, float min_bin_width, "
        "float min_bin_height, float min_derivative, float logit_scale, int batch_dims) -> "
        "(Tensor, Tensor)",
        "robustflow::affine(Tensor x, Tensor params, Tensor? log_scale, bool inverse, "
        "int scale, float eps, float clamp, bool shift_first, bool reciprocal, "
        "int batch_dims) -> (Tensor, Tensor)",
        "robustflow::cubic_bspline(Tensor x, Tensor params, bool inverse, float left, "
        "float right, float min_bin, int batch_dims) -> (Tensor, Tensor)",
    ]
