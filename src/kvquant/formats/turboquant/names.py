"""TurboQuant names to formats: tq_mse_4b, tq_prod_3b, and variants as suffixes in a fixed order.

    name = "tq_mse_" B "b" ["-nc"] ["-qr"] ["-f32"] ["-s" SEED] ["-x" MASK]
         | "tq_prod_" B "b"        ["-qr"] ["-f32"] ["-s" SEED] ["-x" MASK]

-nc norm correction; -qr dense Haar rotation; -f32 lengths in fp32; -s the seed, decimal, left out when 0; -x
the outlier channels, a lower-case hexadecimal mask. Every format has exactly one name.
"""

from __future__ import annotations

import re

from kvquant.errors import FormatError
from kvquant.formats.base import Format
from kvquant.formats.turboquant.base import RotationName, TurboQuant
from kvquant.formats.turboquant.codebook import MAX_BITS, MAX_WIDTH
from kvquant.formats.turboquant.mse import TurboQuantMSE
from kvquant.formats.turboquant.norms import NormType
from kvquant.formats.turboquant.outliers import OutlierSplit
from kvquant.formats.turboquant.prod import TurboQuantProd

PREFIX = "tq_"

_NAME = re.compile(
    r"tq_(?P<kind>mse|prod)_(?P<bits>[1-9])b(?P<nc>-nc)?(?P<qr>-qr)?(?P<f32>-f32)?"
    rf"(?:-s(?P<seed>[1-9][0-9]{{0,19}}))?(?:-x(?P<mask>[1-9a-f][0-9a-f]{{0,{MAX_WIDTH // 4 - 1}}}))?"
)
_GRAMMAR = (
    f"tq_mse_{{1..{MAX_BITS}}}b[-nc][-qr][-f32][-sSEED][-xMASK] or "
    f"tq_prod_{{2..{MAX_BITS}}}b[-qr][-f32][-sSEED][-xMASK]"
)


def plain_formats() -> tuple[Format, ...]:
    """Return the formats without suffixes: tq_mse_1b … tq_mse_8b, tq_prod_2b … tq_prod_8b."""
    kinds: tuple[type[TurboQuant], ...] = (TurboQuantMSE, TurboQuantProd)
    return tuple(kind(bits) for kind in kinds for bits in range(kind.min_bits, MAX_BITS + 1))


def parse_name(name: str) -> Format:
    """Return the format called ``name``. Raises FormatError with the grammar when it is none."""
    match = _NAME.fullmatch(name)
    if match is None or (match["kind"] == "prod" and match["nc"]):
        raise FormatError(f"unknown TurboQuant format {name!r}; names are {_GRAMMAR}, suffixes in that order")
    bits, seed = int(match["bits"]), int(match["seed"] or 0)
    rotation: RotationName = "haar" if match["qr"] else "hadamard"
    norm_type: NormType = "f32" if match["f32"] else "f16"
    fmt: TurboQuant
    if match["kind"] == "mse":
        fmt = TurboQuantMSE(bits, rotation, norm_type, seed, norm_correction=match["nc"] is not None)
    else:
        fmt = TurboQuantProd(bits, rotation, norm_type, seed)
    if match["mask"] is None:
        return fmt
    mask = int(match["mask"], 16)
    return OutlierSplit(fmt, tuple(channel for channel in range(mask.bit_length()) if mask >> channel & 1))
