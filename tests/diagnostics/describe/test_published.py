"""Certificates of SRFlow's, LLFlow's and robustNF's own modules, which are known by their names."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import nn

from robustflow.diagnostics import Certificate, certify


class ActNorm2d(nn.Module):
    """Stands for the published class: what certify reads of it."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.bias = nn.Parameter(torch.randn(1, channels, 1, 1))
        self.logs = nn.Parameter(torch.randn(1, channels, 1, 1))


class InvertibleConv1x1(nn.Module):
    def __init__(self, channels: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(channels, channels, 1, 1))


class SqueezeLayer(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.factor = 2


class Split2d(nn.Module):
    def __init__(self, channels: int, logs_eps: float = 0.0) -> None:
        super().__init__()
        self.num_channels_consume = self.num_channels_pass = channels // 2
        self.logs_eps = logs_eps
        self.conv = nn.Conv2d(channels // 2, channels, 3)


class CondAffineSeparatedAndCond(nn.Module):
    def __init__(self, channels: int, **attributes: Any) -> None:
        super().__init__()
        self.in_channels, self.affine_eps = channels, 1e-4
        self.fAffine = self.fFeatures = nn.Conv2d(1, 1, 1)
        for name, value in attributes.items():
            setattr(self, name, value)


class CondAffineReparamSeparatedAndCond(CondAffineSeparatedAndCond):
    pass


class CondRQsplineSeparatedAndCond(nn.Module):
    def __init__(self, channels: int, right: float = 0.5, net: str = "fRQspline") -> None:
        super().__init__()
        self.in_channels = channels
        self._left, self._right, self._bottom, self._top = -0.5, right, -0.5, 0.5
        self.fFeatures = nn.Conv2d(1, 1, 1)
        for name in (net, f"{net}_std"):
            setattr(self, name, nn.Conv2d(1, 1, 1))


class CondBsplineSeparatedAndCond(CondRQsplineSeparatedAndCond):
    def __init__(self, channels: int) -> None:
        super().__init__(channels, net="fBspline")


class FlowStep(nn.Module):
    def __init__(self, channels: int, coupling: nn.Module) -> None:
        super().__init__()
        self.actnorm = ActNorm2d(channels)
        self.invconv = InvertibleConv1x1(channels)
        self.affine = coupling


class Network(nn.Module):
    def __init__(self, *couplings: nn.Module, split: bool = False) -> None:
        super().__init__()
        self.RRDB = nn.Conv2d(3, 4, 3)
        self.layers = nn.ModuleList([SqueezeLayer(), *(FlowStep(4, each) for each in couplings)])
        if split:
            self.layers.append(Split2d(4))


def failed(certificate: Certificate) -> set[tuple[str, str]]:
    rows = (row for row in certificate.failures if row.kind != "model")
    return {(row.kind, row.quantity) for row in rows}


def test_a_published_network() -> None:
    certificate = certify(Network(CondAffineSeparatedAndCond(4)), ignore=["RRDB"])
    assert failed(certificate) == {
        (kind, quantity)
        for kind in ("injector", "self-conditional")
        for quantity in ("inverse derivative", "tail ratio")
    }
    assert certificate.rows[0].layer == "layers.1.actnorm"
    names = {row.layer for row in certificate.rows}
    assert {"layers.1.affine.fFeatures", "layers.1.affine.fAffine"} <= names
    assert "unknown layer RRDB (Conv2d)" in str(certify(Network(CondAffineSeparatedAndCond(4))))


def test_the_spline_passes_and_an_unbounded_split_does_not() -> None:
    steps = CondRQsplineSeparatedAndCond(4), CondBsplineSeparatedAndCond(4)
    certificate = certify(Network(*steps), ignore=["RRDB"])
    assert certificate.passed
    assert {row.kind for row in certificate.rows} >= {"std-conditional", "injector"}
    displaced = [row.value for row in certificate.rows if row.quantity == "displacement"]
    assert displaced == [pytest.approx(0.999)] * 3 + [pytest.approx(0.92)] * 3
    with_split = certify(Network(*steps, split=True), ignore=["RRDB"])
    assert failed(with_split) == {("split", "inverse derivative")}
    assert with_split.growth.A == math.inf  # noqa: SIM300


def test_what_a_published_layer_s_options_say() -> None:
    gains = {
        "reparam": certify(CondAffineReparamSeparatedAndCond(4)),
        "flag": certify(CondAffineSeparatedAndCond(4, affine_reparam=True)),
    }
    for certificate in gains.values():
        A, _ = certificate.growth
        assert pytest.approx(1.0001**2) == A
    curve = certify(CondAffineSeparatedAndCond(4, fCurve=nn.Conv2d(1, 1, 1)))
    assert "le_curve" in str(curve) and not curve.passed
    assert not certify(CondRQsplineSeparatedAndCond(4, right=0.6)).passed


def test_a_name_alone_is_not_enough() -> None:
    class ActNorm2d(nn.Module):
        pass

    with pytest.raises(ValueError, match="No flow layer was found"):
        certify(ActNorm2d())
