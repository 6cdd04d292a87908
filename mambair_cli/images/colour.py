"""Colour spaces that a file names without a profile: by CICP numbers, or by PNG's gAMA and cHRM.

They go from format to format as they are, as an equivalent ICC profile, or, where a format holds
neither, as pixels that are converted to sRGB.
"""

import math
import struct
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from .image import WHITE
from .samples import in_bands

Matrix = NDArray[np.float64]
Curve = tuple[float, float, float, float, float]

# ITU-T H.273, table 2: x and y of white, red, green and blue
_D65, _C = (0.3127, 0.3290), (0.310, 0.316)
PRIMARIES: dict[int, tuple[float, ...]] = {
    1: (*_D65, 0.640, 0.330, 0.300, 0.600, 0.150, 0.060),
    4: (*_C, 0.67, 0.33, 0.21, 0.71, 0.14, 0.08),
    5: (*_D65, 0.64, 0.33, 0.29, 0.60, 0.15, 0.06),
    6: (*_D65, 0.630, 0.340, 0.310, 0.595, 0.155, 0.070),
    7: (*_D65, 0.630, 0.340, 0.310, 0.595, 0.155, 0.070),
    8: (*_C, 0.681, 0.319, 0.243, 0.692, 0.145, 0.049),
    9: (*_D65, 0.708, 0.292, 0.170, 0.797, 0.131, 0.046),
    11: (0.314, 0.351, 0.680, 0.320, 0.265, 0.690, 0.150, 0.060),
    12: (*_D65, 0.680, 0.320, 0.265, 0.690, 0.150, 0.060),
    22: (*_D65, 0.630, 0.340, 0.295, 0.605, 0.155, 0.077),
}

# Table 3, as the numbers g, a, b, c and d of ICC's parametric curve 3:
# light is (a x + b) ** g from x = d on, and c x below
_BT709: Curve = (1 / 0.45, 1 / 1.099, 0.099 / 1.099, 1 / 4.5, 0.081)
_SRGB: Curve = (2.4, 1 / 1.055, 0.055 / 1.055, 1 / 12.92, 0.04045)
CURVES: dict[int, Curve] = {
    1: _BT709,
    4: (2.2, 1.0, 0.0, 0.0, 0.0),
    5: (2.8, 1.0, 0.0, 0.0, 0.0),
    6: _BT709,
    7: (1 / 0.45, 1 / 1.1115, 0.1115 / 1.1115, 1 / 4.0, 0.0913),
    8: (1.0, 1.0, 0.0, 0.0, 0.0),
    13: _SRGB,
    14: _BT709,
    15: _BT709,
}
PQ, HLG = 16, 18
_NAMES = {1: "BT.709", 9: "BT.2020", 11: "DCI P3", 12: "Display P3", PQ: "PQ", HLG: "HLG"}

PAPER = 203.0
"""Candelas a square metre of diffuse white in HDR (ITU-R BT.2408); it becomes the white of sRGB."""

PEAK = 1000.0
"""Candelas a square metre that the brightest HDR is taken to have."""

_TO_CONE = np.array(
    [[0.8951, 0.2664, -0.1614], [-0.7502, 1.7135, 0.0367], [0.0389, -0.0685, 1.0296]]
)
"""Bradford's matrix, from XYZ to the responses of cones."""

_D50 = np.array([0.9642, 1.0, 0.8249])
"""The white of ICC profiles, XYZ."""


@dataclass(frozen=True)
class ColourTags:
    """What a file says of its colours other than by a profile.

    cicp: primaries and transfer characteristics by the numbers of ITU-T H.273; they go first.
    intent: of PNG's sRGB chunk, which says that the colours are sRGB.
    gamma: light is value ** (1 / gamma); sRGB is near 1 / 2.2.
    chromaticities: x and y of white, red, green and blue.
    """

    cicp: tuple[int, int] | None = None
    intent: int | None = None
    gamma: float | None = None
    chromaticities: tuple[float, ...] | None = None

    @classmethod
    def of_numbers(cls, primaries: int, transfer: int) -> "ColourTags | None":
        """Make the tags of CICP numbers; None where they say sRGB, or nothing."""
        # 2: unspecified
        tags = cls((1 if primaries == 2 else primaries, 13 if transfer == 2 else transfer))
        return None if tags.is_srgb else tags

    @property
    def is_srgb(self) -> bool:
        """Whether the colours are those of sRGB, or nearly."""
        if self.cicp:
            return self.cicp == (1, 13)
        if self.intent is not None:
            return True
        usual = PRIMARIES[1]
        near = self.chromaticities is None or np.allclose(self.chromaticities, usual, atol=2e-3)
        return near and (self.gamma is None or abs(self.gamma * 2.2 - 1) < 0.02)

    @property
    def curve(self) -> Curve | None:
        """The parametric curve from values to light; None for HDR and unknown numbers."""
        if self.cicp:
            return CURVES.get(self.cicp[1])
        return (1 / self.gamma, 1.0, 0.0, 0.0, 0.0) if self.gamma else _SRGB

    @property
    def primaries(self) -> tuple[float, ...] | None:
        """The chromaticities; None for unknown numbers."""
        if self.cicp:
            return PRIMARIES.get(self.cicp[0])
        return self.chromaticities or PRIMARIES[1]

    @property
    def is_known(self) -> bool:
        """Whether `profile` or `to_srgb` knows these colours."""
        known = self.curve or (self.cicp and self.cicp[1] in (PQ, HLG))
        return bool(known and self.primaries)

    def __str__(self) -> str:
        if self.cicp:
            return ", ".join(_NAMES.get(number, str(number)) for number in self.cicp)
        parts = [f"gamma {self.gamma:g}"] if self.gamma else []
        return ", ".join([*parts, *(["its own primaries"] if self.chromaticities else [])])


def profile(tags: ColourTags, gray: bool) -> bytes | None:
    """Build the ICC profile of the same colours; None where there is none, as for HDR."""
    curve, primaries = tags.curve, tags.primaries
    if curve is None or primaries is None:
        return None
    matrix = _adapted(_to_xyz(primaries), _D50)
    light = b"para" + struct.pack(">IHH5i", 0, 3, 0, *map(_fixed, curve))
    parts = {b"desc": _words(str(tags)), b"cprt": _words("CC0"), b"wtpt": _xyz(_D50)}
    if gray:
        parts[b"kTRC"] = light
    else:
        for name, column in zip((b"r", b"g", b"b"), matrix.T, strict=True):
            parts[name + b"XYZ"], parts[name + b"TRC"] = _xyz(column), light
    place = 128 + 4 + 12 * len(parts)
    table, body = [struct.pack(">I", len(parts))], []
    for name, part in parts.items():
        table.append(struct.pack(">4sII", name, place, len(part)))
        body.append(part + bytes(-len(part) % 4))
        place += len(body[-1])
    space = b"GRAY" if gray else b"RGB "
    head = struct.pack(">I4xI4s4s4s12x4s28x", place, 0x04300000, b"mntr", space, b"XYZ ", b"acsp")
    return b"".join([head, struct.pack(">3i48x", *map(_fixed, _D50)), *table, *body])


def to_srgb(pixels: np.ndarray, tags: ColourTags) -> np.ndarray:
    """Convert pixels to sRGB; what it lacks is clipped, and HDR is tone-mapped.

    HDR is brought to displays of `PAPER` by the curve of ITU-R BT.2390, section 5.4.1, on the
    largest of the three channels, so that hues stay.
    """
    white = WHITE[pixels.dtype]
    primaries = tags.primaries or PRIMARIES[1]
    source = _to_xyz(primaries)
    target = _to_xyz(PRIMARIES[1])
    matrix = np.linalg.inv(target) @ _adapted(source, target.sum(1))
    transfer = tags.cicp[1] if tags.cicp else 0

    def convert(pixels: np.ndarray) -> np.ndarray:
        values = pixels.astype(np.float64) / white
        if transfer == PQ:
            light = _pq_to_light(values.clip(0, 1)) / PAPER
        elif transfer == HLG:
            light = _hlg_to_light(values.clip(0, 1)) / PAPER
        else:
            light = _to_light(values.clip(0, None), tags.curve or _SRGB)
        if light.ndim == 3:
            light = light @ matrix.T
        light = light.clip(0, None)
        if transfer in (PQ, HLG):
            light = _tone_mapped(light)
        result = _from_light(light.clip(0, 1)) * white
        return result if white == 1 else np.rint(result)

    return in_bands(convert, pixels.dtype, pixels)


def srgb_of_xyz(xyz: np.ndarray) -> np.ndarray:
    """Convert H x W x 3 of XYZ, white being D50, to sRGB of 0..1; what it lacks is clipped."""
    matrix = np.linalg.inv(_adapted(_to_xyz(PRIMARIES[1]), _D50))
    # XYZ relative to the white, as L*a*b* gives it
    return _from_light((xyz * _D50 @ matrix.T).clip(0, 1))


def _to_light(values: np.ndarray, curve: Curve) -> np.ndarray:
    g, a, b, c, d = curve
    return np.where(values >= d, (a * values + b) ** g, c * values)


def _from_light(light: np.ndarray) -> np.ndarray:
    """Encode light of 0..1 as sRGB (IEC 61966-2-1)."""
    return np.where(light <= 0.0031308, 12.92 * light, 1.055 * light ** (1 / 2.4) - 0.055)


# SMPTE ST 2084, equations 4.1 and 5.1
_M1, _M2 = 2610 / 16384, 2523 / 4096 * 128
_C1, _C2, _C3 = 3424 / 4096, 2413 / 4096 * 32, 2392 / 4096 * 32


def _pq_to_light(values: np.ndarray) -> np.ndarray:
    """Turn PQ of 0..1 into candelas a square metre, 0..10000."""
    root = values ** (1 / _M2)
    return 10000 * ((root - _C1).clip(0, None) / (_C2 - _C3 * root)) ** (1 / _M1)


def _pq_of_light(light: np.ndarray) -> np.ndarray:
    power = (light / 10000) ** _M1
    return ((_C1 + _C2 * power) / (1 + _C3 * power)) ** _M2


def _hlg_to_light(values: np.ndarray) -> np.ndarray:
    """Turn HLG of 0..1 into candelas a square metre of a display of `PEAK` (ITU-R BT.2100)."""
    a, b, c = 0.17883277, 0.28466892, 0.55991073
    scene = np.where(values <= 0.5, values**2 / 3, (np.exp((values - c) / a) + b) / 12)
    luma = scene if scene.ndim == 2 else (scene @ [0.2627, 0.6780, 0.0593])[..., None]
    # the system gamma of 1.2 works on the luminance
    return PEAK * scene * luma.clip(1e-9, None) ** 0.2


def _tone_mapped(light: np.ndarray) -> np.ndarray:
    """Bring light, 1 being `PAPER` and at most `PEAK`, into 0..1."""
    largest = light if light.ndim == 2 else light.max(2, keepdims=True)
    top = float(_pq_of_light(np.array(PEAK)))
    value = _pq_of_light((largest * PAPER).clip(0, PEAK)) / top
    limit = float(_pq_of_light(np.array(PAPER))) / top
    knee = 1.5 * limit - 0.5
    t = ((value - knee) / (1 - knee)).clip(0, 1)
    bent = (
        (2 * t**3 - 3 * t**2 + 1) * knee
        + (t**3 - 2 * t**2 + t) * (1 - knee)
        + (3 * t**2 - 2 * t**3) * limit
    )
    mapped = _pq_to_light(np.where(value < knee, value, bent) * top) / PAPER
    return light * (mapped / largest.clip(1e-9, None))


def _to_xyz(chromaticities: tuple[float, ...]) -> Matrix:
    """Make the matrix from light in red, green and blue to XYZ; its columns add up to the white."""
    points = np.array(chromaticities).reshape(4, 2)
    xyz = np.column_stack([points, 1 - points.sum(1)]) / points[:, 1:]
    return xyz[1:].T * np.linalg.solve(xyz[1:].T, xyz[0])


def _adapted(matrix: Matrix, white: NDArray[np.float64]) -> Matrix:
    """Adapt a matrix to XYZ to another white, by Bradford's method."""
    gain = (_TO_CONE @ white) / (_TO_CONE @ matrix.sum(1))
    return np.linalg.inv(_TO_CONE) @ (gain[:, None] * (_TO_CONE @ matrix))


def _fixed(value: float) -> int:
    """Convert to ICC's s15Fixed16Number."""
    return math.floor(value * 65536 + 0.5)


def _xyz(value: NDArray[np.float64]) -> bytes:
    return b"XYZ \0\0\0\0" + struct.pack(">3i", *map(_fixed, value))


def _words(text: str) -> bytes:
    stored = text.encode("utf-16-be")
    return b"mluc" + struct.pack(">III4sII", 0, 1, 12, b"enUS", len(stored), 28) + stored
