"""Flows of other libraries under robustflow's diagnostics: nflows, and FrEIA's GLOW blocks.

    python examples/diagnose_nflows_and_freia.py [--iterations N] [--out DIR]

Both learn x given y in two dimensions, where the width of x must fall with y (docs/toy.md), in half
a minute each. Then, for each: the certificate, the layers that a monitor saw explode at conditions
within the training's range and beyond it, scores of those conditions, and a report page.
Needs the extras: pip install 'robustflow[report]' nflows FrEIA.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import FrEIA.framework
import FrEIA.modules
import nflows.transforms
import torch
from nflows.nn.nets import ResidualNet
from torch import Tensor, nn

from robustflow.diagnostics import (
    InverseMonitor,
    KNNScore,
    MahalanobisScore,
    certify,
    robustness_report,
)
from robustflow.experiments.toy.law import LAWS
from robustflow.experiments.toy.reading import conditions

LAW = LAWS["widening"]
INSIDE, OUTSIDE = 1.0, 3.0  # largest |y|: of the training, and beyond
GROWTH = 100.0  # in one layer; flows in two dimensions stretch more than those of pictures


class Nflows(nn.Module):
    """Eight affine couplings of nflows; as they cannot enlarge, each stands after an ActNorm."""

    def __init__(self) -> None:
        super().__init__()
        steps: list[nn.Module] = []
        for index in range(8):
            mask = [index % 2, 1 - index % 2]
            steps.append(nflows.transforms.ActNorm(2))
            steps.append(nflows.transforms.AffineCouplingTransform(mask, self.conditioner))
        self.transform = nflows.transforms.CompositeTransform(steps)

    @staticmethod
    def conditioner(inputs: int, outputs: int) -> nn.Module:
        return ResidualNet(inputs, outputs, hidden_features=64, context_features=2, num_blocks=2)

    def forward(self, x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
        return self.transform(x, y)

    def inverse(self, z: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
        return self.transform.inverse(z, y)


class Freia(nn.Module):
    """Eight GLOW blocks of FrEIA with conditions, as in its users' networks for MRI."""

    def __init__(self) -> None:
        super().__init__()
        self.flow = FrEIA.framework.SequenceINN(2)
        for _ in range(8):
            self.flow.append(
                FrEIA.modules.GLOWCouplingBlock,
                cond=0,
                cond_shape=(2,),
                subnet_constructor=self.subnet,
            )
            self.flow.append(FrEIA.modules.PermuteRandom)

    @staticmethod
    def subnet(inputs: int, outputs: int) -> nn.Module:
        return nn.Sequential(
            nn.Linear(inputs, 64), nn.ReLU(), nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, outputs)
        )

    def forward(self, x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
        return self.flow(x, c=[y])

    def inverse(self, z: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
        return self.flow(z, c=[y], rev=True)


def train(flow: Nflows | Freia, iterations: int, seed: int = 0) -> float:
    """Maximum likelihood on fresh pairs; the last hundred updates' mean, in nats."""
    generator = torch.Generator().manual_seed(seed)
    optimizer = torch.optim.Adam(flow.parameters(), lr=2e-3)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, iterations)
    losses = []
    for _ in range(iterations):
        x, y = LAW.sample(256, generator)
        z, logabsdet = flow(x, y)
        loss = (0.5 * z.square().sum(1) + 1.8378770664 - logabsdet).mean()
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(flow.parameters(), 10.0)
        optimizer.step()
        schedule.step()
        losses.append(loss.item())
    return sum(losses[-100:]) / len(losses[-100:])


def diagnose(name: str, flow: Nflows | Freia, out: Path) -> None:
    """Print the certificate, what the monitor saw, and the scores; write the report's page."""
    print(certify(flow))
    generator = torch.Generator().manual_seed(1)
    for radius in (INSIDE, OUTSIDE):
        y = conditions(radius).repeat_interleave(32, dim=0)
        with torch.no_grad(), InverseMonitor(flow, growth=GROWTH) as monitor:
            x, _ = flow.inverse(torch.randn(len(y), 2, generator=generator), y)
        first = monitor.first_explosion
        where = f", first in {first.layer} ({first.kind})" if first else ""
        print(f"|y| = {radius:g}: {len(monitor.onsets)} onsets{where}", end="; ")
        print(f"largest |x| {x.abs().max():.3g}")

    _, seen = LAW.sample(2000, generator)
    for score in (MahalanobisScore(), KNNScore()):
        score.fit([seen[:1500]]).calibrate([seen[1500:]])
        rates = [
            float((score.score(conditions(r)) > score.threshold(0.05)).float().mean())
            for r in (INSIDE, OUTSIDE)
        ]
        print(f"{type(score).__name__}: alarms {rates[0]:.0%} at the edge, {rates[1]:.0%} beyond")

    def draw(y: Tensor, num_samples: int, temperature: float, generator: torch.Generator) -> Tensor:
        z = temperature * torch.randn(num_samples, 2, generator=generator)
        return flow.inverse(z, y.expand(num_samples, -1))[0]

    report = robustness_report(
        flow,
        {f"in {i}": y[None] for i, y in enumerate(seen[:12])},
        {f"out {i}": y[None] for i, y in enumerate(conditions(OUTSIDE, 12))},
        sample=draw,
        num_samples=32,
        growth=GROWTH,
        out=out / name,
        title=name,
    )
    print(report)
    print(f"The page: {report.path}\n")


FLOWS: dict[str, type[Nflows] | type[Freia]] = {"nflows": Nflows, "FrEIA": Freia}


def main(argv: list[str] | None = None) -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--iterations", type=int, default=1500, metavar="N")
    parser.add_argument("--out", type=Path, default=Path("diagnosed"), metavar="DIR")
    args = parser.parse_args(argv)
    for name, make in FLOWS.items():
        torch.manual_seed(0)
        flow = make()
        nats = train(flow, args.iterations)
        print(f"{name}: {nats:.2f} nats; no model's is below {LAW.entropy:.2f}")
        diagnose(name, flow.eval(), args.out)


if __name__ == "__main__":
    main()
