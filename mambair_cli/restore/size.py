"""How large a result is."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Size:
    """Either `scale` times the input, or `width` and `height` in pixels.

    Width or height alone keeps the aspect ratio.
    """

    scale: float = 1.0
    width: int | None = None
    height: int | None = None

    def of(self, height: int, width: int) -> tuple[int, int]:
        """Height and width of the result for an input of `height` x `width` pixels."""
        scale = self.scale
        if self.width and not self.height:
            scale = self.width / width
        elif self.height and not self.width:
            scale = self.height / height
        rows = self.height or max(1, round(height * scale))
        columns = self.width or max(1, round(width * scale))
        return rows, columns

    def factor(self, height: int, width: int) -> float:
        """How many times larger the side becomes that grows more."""
        rows, columns = self.of(height, width)
        return max(rows / height, columns / width)
