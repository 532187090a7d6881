"""The bytes that the contract makes an operation move: the one place where they are counted.

Every tensor is read or written once. Backward saves nothing but its inputs, so it reads them again,
reads cotangents of the size of the outputs, and writes gradients of the size of the inputs. The
time of these bytes at the speed of a copy is the floor of an operation.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Traffic:
    """Sizes of one call.

    Attributes:
        elements: of x.
        parameters: an element, all parameter tensors together.
        logabsdets: log-determinants returned: one a sample, or one an element.
        x_size, parameter_size, logabsdet_size: bytes of a number of each; y is like x.

    Example:
        >>> modified_rq = Traffic(elements=1000, parameters=4, logabsdets=1)
        >>> modified_rq.of("forward"), modified_rq.of("backward")
        (24004, 44004)
    """

    elements: int
    parameters: int
    logabsdets: int
    x_size: int = 4
    parameter_size: int = 4
    logabsdet_size: int = 4

    @property
    def inputs(self) -> int:
        return self.elements * (self.x_size + self.parameters * self.parameter_size)

    @property
    def outputs(self) -> int:
        return self.elements * self.x_size + self.logabsdets * self.logabsdet_size

    def of(self, direction: str) -> int:
        """Bytes of a call (``forward``, ``inverse``), of its backward pass (``backward``,
        ``inverse-backward``), or of both (``forward+backward``, ``inverse+backward``)."""
        call = self.inputs + self.outputs
        backward = self.inputs + self.outputs + self.inputs
        sizes = {
            "forward": call,
            "inverse": call,
            "backward": backward,
            "inverse-backward": backward,
            "forward+backward": call + backward,
            "inverse+backward": call + backward,
        }
        if direction not in sizes:
            raise ValueError(f"direction must be one of {', '.join(sizes)}, got {direction!r}.")
        return sizes[direction]
