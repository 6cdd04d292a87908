"""Degradations made of others: one after the other, one of several, or none at all."""

from dataclasses import dataclass

from numpy.random import Generator

from ..errors import CallError
from .base import Degradation, Float


@dataclass(frozen=True)
class Clean(Degradation):
    """Nothing happens to the image, so that a network learns to leave good images alone."""

    def _degrade(self, image: Float, rng: Generator) -> Float:
        return image.copy()


@dataclass(frozen=True)
class Chain(Degradation):
    """Degradations one after the other; what one gives is clipped to [0, 1] before the next.

    steps: the first to the last.
    """

    steps: tuple[Degradation, ...]

    def _degrade(self, image: Float, rng: Generator) -> Float:
        for step in self.steps:
            image = step(image.clip(0, 1), rng)
        return image


@dataclass(frozen=True)
class Mixed(Degradation):
    """One of several degradations, drawn anew for each image.

    parts: the degradations.
    shares: how often each comes, in any unit.
    """

    parts: tuple[Degradation, ...]
    shares: tuple[float, ...]

    def __post_init__(self) -> None:
        if not self.parts or len(self.parts) != len(self.shares):
            raise CallError("mixed: there must be a share for each of one degradation or more")
        if min(self.shares) < 0 or not sum(self.shares) > 0:
            raise CallError(f"mixed: shares must not be negative or all zero, not {self.shares!r}")

    def _degrade(self, image: Float, rng: Generator) -> Float:
        total = sum(self.shares)
        number = int(rng.choice(len(self.parts), p=[share / total for share in self.shares]))
        return self.parts[number](image, rng)
