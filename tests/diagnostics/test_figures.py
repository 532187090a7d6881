"""The monitor's figures hold its numbers."""

from __future__ import annotations

import builtins
from typing import Any

import numpy as np
import pytest
import torch

from robustflow.diagnostics import monitor as monitor_module
from robustflow.diagnostics.monitor import InverseMonitor
from tests.diagnostics.exploding_flows import CHANNELS, latents, plant, planted_flow
from tests.diagnostics.test_monitor import inverse


def watched(dims: int = 2, *place: int) -> InverseMonitor:
    flow = planted_flow(5, dims)
    plant(flow, 3, *(place or (1, 0, 5, 6)))
    with InverseMonitor(flow) as monitor:
        inverse(flow, latents(dims=dims))
    return monitor


def test_the_curve_is_the_variance_behind_each_layer() -> None:
    monitor = watched()
    layers = monitor.report().layers
    axis: Any = monitor.figure().axes[0]
    curve, onset = axis.lines
    assert list(curve.get_xdata()) == list(range(16))
    expected = [layers[0].input_variance, *(each.output_variance for each in layers)]
    np.testing.assert_allclose(curve.get_ydata(), expected)
    assert axis.get_yscale() == "log" and set(onset.get_xdata()) == {
        4
    }  # the second step's coupling
    labels = [each.get_text() for each in axis.get_xticklabels()]
    assert labels[:2] == ["latents", "levels.0.layers.14 (self-conditional)"] and len(labels) == 16


def test_a_reference_is_drawn_beside_it() -> None:
    monitor = watched()
    flow = planted_flow(5)
    with InverseMonitor(flow) as calm:
        inverse(flow, latents())
    axis: Any = monitor.figure(calm).axes[0]
    assert [line.get_label() for line in axis.lines[:2]] == ["this monitor", "reference"]
    last = calm.report().layers[-1].output_variance
    assert axis.lines[1].get_ydata()[-1] == pytest.approx(last)


def test_a_panel_shows_the_surroundings_layer_by_layer() -> None:
    flow = planted_flow(5)
    plant(flow, 3, 1, 0, 5, 6)
    z = latents()
    with InverseMonitor(flow) as monitor:
        inverse(flow, z)
    (onset,) = monitor.onsets
    figure = monitor.panel(onset, radius=3)
    axes: list[Any] = figure.axes
    pictures = [axis for axis in axes if axis.images]
    shown = ["latents", *(f"levels.0.layers.{i}" for i in (14, 11, 8, 5, 2))]
    assert [axis.get_title().splitlines()[0] for axis in pictures] == shown
    peaks = z[1].abs().amax(0)[2:9, 3:10].log10()
    np.testing.assert_allclose(pictures[0].images[0].get_array(), peaks, rtol=1e-5)
    at = pictures[2].images[0].get_array()
    assert at[3, 3] == pytest.approx(np.log10(onset.magnitude), rel=1e-5) == at.max()
    frames = [axis.patches[0] for axis in pictures if axis.patches]
    assert [frame.get_width() for frame in frames] == [1, 3, 5, 7]  # each coupling reaches one
    assert frames[0].get_xy() == (2.5, 2.5)
    field, radius = next(axis for axis in axes if axis.lines).lines
    assert list(field.get_ydata())[-4:] == [0, 1, 2, 3]
    found = np.array(radius.get_ydata())[-4:]
    assert found[0] == 0 and found[-1] > 0 and bool((found <= [0, 1, 2, 3]).all())


def test_a_panel_of_a_signal_and_of_a_vector() -> None:
    for dims, place in ((1, (1, 0, 5)), (0, (1, 0))):
        monitor = watched(dims, *place)
        (onset,) = monitor.onsets
        image: Any = monitor.panel(onset, radius=4).axes[0]
        rows = image.images[0].get_array()
        assert len(rows) == 6 and [each.get_text() for each in image.get_yticklabels()][2] == (
            "levels.0.layers.11 (self-conditional)"
        )
        column = 4 if dims else onset.position[0]
        assert rows[2][column] == pytest.approx(np.log10(onset.magnitude), rel=1e-4)
        assert rows.shape[1] == (9 if dims else CHANNELS)


def test_panels_of_what_is_not_there() -> None:
    monitor, other = watched(), watched()
    with pytest.raises(ValueError, match="must be one of this monitor's own"):
        monitor.panel(type(other.onsets[0])(**{**vars(other.onsets[0]), "sample": 7}))


def test_maps_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monitor = watched()
    kept = sum(each.magnitudes.nbytes for each in monitor.runs[0].maps)
    assert kept == monitor._map_bytes == 16 * 12 * 12 * 4  # of one sample of three
    monkeypatch.setattr(monitor_module, "_MOST_MAP_BYTES", 1000)
    monitor = watched()
    assert monitor._map_bytes == 0
    with pytest.raises(ValueError, match="were not kept, because they would exceed the memory"):
        monitor.panel(monitor.onsets[0])


def test_without_matplotlib(monkeypatch: pytest.MonkeyPatch) -> None:
    monitor = watched()
    real = builtins.__import__

    def absent(name: str, *args: Any, **kwargs: Any) -> Any:
        if name.startswith("matplotlib"):
            raise ImportError(name)
        return real(name, *args, **kwargs)

    monkeypatch.setattr(builtins, "__import__", absent)
    with pytest.raises(ImportError, match=r"pip install 'robustflow\[experiments\]'"):
        monitor.figure()


def test_figures_are_drawn() -> None:
    monitor = watched()
    for figure in (monitor.figure(), monitor.panel(monitor.onsets[0])):
        figure.canvas.draw()
        assert figure.get_size_inches().min() > 2
    assert torch.get_default_dtype() == torch.float32
