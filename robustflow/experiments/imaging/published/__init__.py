"""Published networks, built from a checkpoint's names and shapes alone.

SRFlow (Lugmayr et al., 2020, arXiv:2006.14200), the networks of Hong, Park and Chun (ICCV 2023,
arXiv:2212.04319) and LLFlow (Wang et al., AAAI 2022, arXiv:2109.05923) keep their weights under
the same names::

    RRDB....                                                  the encoder (:mod:`.encoders`)
    flowUpsamplerNet.layers.<n>.actnorm.{bias,logs}
    flowUpsamplerNet.layers.<n>.invconv.{weight,weight_transpose}
    flowUpsamplerNet.layers.<n>.{affine,affinereparam,bspline,rqspline}.<net>....
    flowUpsamplerNet.layers.<n>.conv.{weight,bias,logs}      a split
    flowUpsamplerNet.f.0.{weight,bias}                        of no use to the flow

A number that is missing among the layers is a squeeze, which has no weights. The couplings are
those of :mod:`robustflow.compat.srflow`, so that the transforms run on the kernels.

Settings that the weights do not determine are those of the published configurations: the tapped
blocks; which couplings are told the noise, though all have a net for it (4x: those of all levels
but the first;
8x: the last 16 of levels 3 and 4); and that LLFlow reads the logarithm of a picture.
"""

from robustflow.experiments.imaging.published.flow import (
    LowLightFlow,
    PublishedFlow,
    Structure,
    SuperResolutionFlow,
    published_flow,
)
from robustflow.experiments.imaging.published.layers import NotPublished

__all__ = [
    "LowLightFlow",
    "NotPublished",
    "PublishedFlow",
    "Structure",
    "SuperResolutionFlow",
    "published_flow",
]
