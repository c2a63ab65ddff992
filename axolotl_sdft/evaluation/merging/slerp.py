"""How much of each of two weights goes into their merge. Plain numbers: no torch is imported here."""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

PARALLEL = 0.9995
"""From this cosine on, of either sign, two weights count as parallel, as in mergekit."""


@dataclass(frozen=True)
class Overlap:
    """What spherical interpolation must know of two weights, each taken as one long vector."""

    dot: float
    squared_first: float
    """Squared length of the first."""
    squared_second: float

    @property
    def cosine(self) -> float | None:
        """Cosine of the angle between the two, from -1 to 1; None where one of them is zero and has no direction."""
        lengths = math.sqrt(self.squared_first) * math.sqrt(self.squared_second)
        return max(-1.0, min(1.0, self.dot / lengths)) if lengths else None


def linear_factors(ratio: float) -> tuple[float, float]:
    """Return what the first and the second weight are multiplied by in their weighted average."""
    return 1.0 - ratio, ratio


def slerp_factors(ratio: float, overlap: Overlap) -> tuple[float, float]:
    """Return what the first and the second weight are multiplied by in spherical linear interpolation.

    With ``w`` the angle between the two, the factors are ``sin((1 - t) w) / sin w`` and ``sin(t w) / sin w`` at ratio
    ``t`` (Shoemake 1985, "Animating rotation with quaternion curves"), applied to the weights as they are, not brought
    to length 1. Parallel and opposite weights are averaged. So is a weight with a zero one, which has no direction;
    there mergekit 0.1.5, otherwise equal, takes an angle of 90 degrees.
    """
    cosine = overlap.cosine
    if cosine is None or abs(cosine) > PARALLEL:
        return linear_factors(ratio)
    angle = math.acos(cosine)
    return math.sin((1.0 - ratio) * angle) / math.sin(angle), math.sin(ratio * angle) / math.sin(angle)


@dataclass(frozen=True)
class Blend:
    """How two weights become one."""

    method: Literal["slerp", "linear"]
    ratio: float
    """From 0, the first weight, to 1, the second."""

    def factors(self, overlap: Callable[[], Overlap]) -> tuple[float, float]:
        """Return what the two weights are multiplied by; ``overlap`` is called where the method needs it."""
        return linear_factors(self.ratio) if self.method == "linear" else slerp_factors(self.ratio, overlap())
