"""Mean and covariance of features in one pass, and the effective number of pixels.

A *picture* is an entry of a batch, a *pixel* one of its positions. Of picture i with m_i pixels:
its mean c_i, and its scatter B_i = sum (f - c_i)(f - c_i)' over its pixels.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from robustflow.diagnostics.scores.features import TILE_ELEMENTS, check_finite, tiles


@dataclass(frozen=True)
class Group:
    """A set of pixels: how many, their mean (C,) and scatter (C, C)."""

    pixels: int
    mean: Tensor
    scatter: Tensor

    def merged(self, other: Group) -> Group:
        """Both groups as one (Chan, Golub and LeVeque, 1983): no large numbers are subtracted."""
        pixels = self.pixels + other.pixels
        delta = other.mean - self.mean
        mean = self.mean + delta * (other.pixels / pixels)
        between = torch.outer(delta, delta) * (self.pixels * (other.pixels / pixels))
        return Group(pixels, mean, self.scatter + other.scatter + between)


@dataclass(frozen=True)
class Pictures:
    """Pictures of one size: pixels of each, their means (n, C) and scatters (n, C, C) or None.

    None stands for zeros: pictures of a single pixel.
    """

    pixels: int
    means: Tensor
    scatters: Tensor | None

    @classmethod
    def of(cls, features: Tensor) -> Pictures:
        """From the features (n, p, C)."""
        if features.shape[1] == 1:
            return cls(1, features[:, 0], None)
        means = features.mean(dim=1)
        centred = features - means.unsqueeze(1)
        return cls(features.shape[1], means, centred.mT @ centred)

    def together(self) -> Group:
        """All of them as one group."""
        mean = self.means.mean(dim=0)
        centred = self.means - mean
        scatter = self.pixels * (centred.T @ centred)
        if self.scatters is not None:
            scatter += self.scatters.sum(dim=0)
        return Group(self.pixels * len(self.means), mean, scatter)


class Moments:
    """Running mean and covariance of one level's features, in float64.

    The sums stay on the features' device where that has float64, and on the CPU elsewhere. Memory
    does not grow with the number of pixels: a few C x C matrices, and tiles.

    Args:
        channels: C.
        device: where the sums are kept; one with float64.

    Attributes:
        pixels, pictures: how many were added.
        mean: (C,), float64.
    """

    def __init__(self, channels: int, device: torch.device) -> None:
        zeros = torch.zeros(channels, channels, dtype=torch.float64, device=device)
        self.pictures = 0
        self._all = Group(0, zeros[0], zeros)
        self._spread = PictureSpread(channels, device)
        self._single_pixels = True

    @property
    def pixels(self) -> int:
        return self._all.pixels

    @property
    def mean(self) -> Tensor:
        return self._all.mean

    @property
    def covariance(self) -> Tensor:
        """The maximum-likelihood covariance, (C, C)."""
        return self._all.scatter / self._all.pixels

    def add(self, level: Tensor) -> None:
        """Add a batch (N, C, \\*S) or (N, C).

        Raises:
            ValueError: features that are not finite.
        """
        channels, pixels = level.shape[1], level[0, 0].numel()
        parts: Group | None = None  # of a picture that takes several tiles
        most_pictures = None if pixels == 1 else max(1, TILE_ELEMENTS // channels**2)
        for _, where, tile in tiles(level, most_pictures):
            features = tile.to(self.mean.device).to(torch.float64)
            check_finite(features)
            pictures = Pictures.of(features)
            if pictures.pixels < pixels:
                part = pictures.together()
                parts = part if parts is None else parts.merged(part)
                if where.stop < pixels:
                    continue
                pictures = Pictures(pixels, parts.mean[None], parts.scatter[None])
                parts = None
            self._all = self._all.merged(pictures.together())
            self._spread.add(pictures)
        self.pictures += level.shape[0]
        self._single_pixels &= pixels == 1

    def effective_number(self) -> float:
        """The number of independent pixels whose covariance would be as accurate as this one.

        Pixels of a picture resemble each other, so their number is too large. Pictures
        are taken as independent: the variance of the covariance S, seen in how much the pictures'
        own second moments differ (the estimator of Ledoit and Wolf, 2004, with pictures in place
        of rows), is set equal to that of n independent Gaussian pixels, (tr S^2 + (tr S)^2) / n.
        The result is at least 1 and at most the number of pixels; tails heavier than a Gaussian's
        lower it too. Where every picture is a single pixel it is their number.

        Raises:
            ValueError: a single picture.
        """
        if self._single_pixels:
            return float(self.pixels)
        if self.pictures < 2:
            raise ValueError(
                "The pixels of one picture do not show how many of them are independent: fit on at "
                "least 2 pictures (better 50), or pass effective_number='pixels' or a number."
            )
        covariance = self.covariance
        independent = float(covariance.square().sum() + covariance.trace().square())
        variance = self._spread.variance(self._all, self.pictures)
        if variance * self.pixels <= independent:
            return float(self.pixels)
        return max(1.0, independent / variance)


class PictureSpread:
    """The variance of a covariance S, from how much the second moments of N pictures differ.

    With A_i = B_i + m_i d_i d_i', d_i = c_i - mean, and S = sum A_i / n, n = sum m_i:

        variance = N / (N - 1) sum |A_i - m_i S|^2 / n^2              (Frobenius norm)

    The mean is known only at the end. So sums of products with e_i = c_i - r are kept, where r is
    the mean of the first picture, and d_i = e_i - (mean - r) is put in when asked.
    """

    def __init__(self, channels: int, device: torch.device) -> None:
        def zeros(*shape: int) -> Tensor:
            return torch.zeros(shape, dtype=torch.float64, device=device)

        self._reference: Tensor | None = None
        self._bb = zeros()  # sum of |B|^2
        self._ebe = zeros()  # of m e'Be
        self._be = zeros(channels)  # of m Be
        self._b = zeros(channels, channels)  # of m B
        self._one = zeros()  # of m^2, and below of m^2 times
        self._e = zeros(channels)  # e
        self._ee = zeros(channels, channels)  # ee'
        self._sq = zeros()  # |e|^2
        self._sq_e = zeros(channels)  # |e|^2 e
        self._sq_sq = zeros()  # |e|^4

    def add(self, pictures: Pictures) -> None:
        if self._reference is None:
            self._reference = pictures.means[0].clone()
        m, scatters = pictures.pixels, pictures.scatters
        e = pictures.means - self._reference
        squared = e.square().sum(dim=1)
        if scatters is not None:
            be = (scatters @ e.unsqueeze(-1)).squeeze(-1)
            self._bb += scatters.square().sum()
            self._ebe += m * (e * be).sum()
            self._be += m * be.sum(dim=0)
            self._b += m * scatters.sum(dim=0)
        self._one += m**2 * len(e)
        self._e += m**2 * e.sum(dim=0)
        self._ee += m**2 * (e.T @ e)
        self._sq += m**2 * squared.sum()
        self._sq_e += m**2 * (squared @ e)
        self._sq_sq += m**2 * squared.square().sum()

    def variance(self, everything: Group, pictures: int) -> float:
        """The expected squared Frobenius norm of the covariance's error."""
        assert self._reference is not None
        covariance = everything.scatter / everything.pixels
        shift = everything.mean - self._reference
        square = shift @ shift
        dbd = self._ebe - 2 * (self._be @ shift) + shift @ self._b @ shift
        d_4 = (  # |e - shift|^4, multiplied out
            self._sq_sq
            + 4 * (shift @ self._ee @ shift)
            + self._one * square**2
            - 4 * (self._sq_e @ shift)
            + 2 * self._sq * square
            - 4 * (self._e @ shift) * square
        )
        cross = torch.outer(self._e, shift)
        dd = self._ee - cross - cross.T + self._one * torch.outer(shift, shift)
        squares = self._bb + 2 * dbd + d_4  # sum of |A|^2
        products = ((self._b + dd) * covariance).sum()  # of m <A, S>
        total = squares - 2 * products + self._one * covariance.square().sum()
        return float(total) * pictures / (pictures - 1) / everything.pixels**2
