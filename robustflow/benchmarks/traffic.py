"""How many bytes an operation has to read and write.

The forward pass reads its inputs and writes its outputs, once. The backward pass reads the inputs
again, because nothing else is saved, and the cotangents, which have the size of the outputs; it
writes gradients, which have the size of the inputs. Copying as many bytes takes the least time that
the operation could take: its floor.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Traffic:
    """Sizes of one call.

    Attributes:
        elements: the number of elements of x.
        parameters: the number of parameters of an element.
        logabsdets: the number of log-determinants returned, one for each sample or each element.
        x_size, parameter_size, logabsdet_size: bytes of one number; y has the dtype of x.

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
