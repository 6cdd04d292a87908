"""How to restore, on which device: what a caller may choose. No torch."""

from dataclasses import dataclass

TILE_OVERLAP = 32
"""Pixels of the input; a quarter of it is cut off at each edge."""
GRAPHS = 0
"""Shapes of inputs whose calls are recorded on a GPU at the same time (CUDA graphs).

The GPU's memory holds the intermediate results of all of them. None, until `mambair bench speed`
on a GPU, which measures both ways, has shown that it helps.
"""


@dataclass(frozen=True)
class Options:
    """How to restore.

    Attributes:
        device: auto, cpu, cuda, cuda:N or mps.
        backend: of the scan; auto or a name of `ops.BACKENDS`.
        tile: auto (by the free memory), off (the whole image) or the largest side of a tile in
            pixels of the input.
        tile_overlap: pixels of the input that neighbouring tiles share.
        memory_limit: bytes that the process may take (on a GPU: of its memory).
        ensemble: average over the eight symmetries, MambaIR+ (section 4.2); 8 times the work.
        alpha: what enlarges transparency; model or bicubic.
        dtype: of convolutions and linear layers; auto, fp32, fp16 or bf16.
        graphs: shapes that are recorded on a GPU at the same time, see `GRAPHS`.
        seed: of the routing that MambaIRv2 draws at random, as published; None: the most probable
            one, and nothing is random.
    """

    device: str = "auto"
    backend: str = "auto"
    tile: str | int = "auto"
    tile_overlap: int = TILE_OVERLAP
    memory_limit: int | None = None
    ensemble: bool = False
    alpha: str = "model"
    dtype: str = "auto"
    graphs: int = GRAPHS
    seed: int | None = None
