"""How large a result is."""

import math
from dataclasses import dataclass


@dataclass(frozen=True)
class Size:
    """Either `scale` times the input, or as large as fits into `width` and `height` in pixels.

    Width or height may be alone. Only `exact`, which needs both, may change the aspect ratio.
    """

    scale: float = 1.0
    width: int | None = None
    height: int | None = None
    exact: bool = False

    def of(self, height: int, width: int) -> tuple[int, int]:
        """Height and width of the result for an input of `height` x `width` pixels."""
        if self.exact and self.width and self.height:
            return self.height, self.width
        wide = self.width / width if self.width else math.inf
        high = self.height / height if self.height else math.inf
        scale = min(wide, high) if self.width or self.height else self.scale
        return max(1, round(height * scale)), max(1, round(width * scale))

    def factor(self, height: int, width: int) -> float:
        """How many times larger the side becomes that grows more."""
        rows, columns = self.of(height, width)
        return max(rows / height, columns / width)
