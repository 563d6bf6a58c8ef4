"""Numbers to bytes and back: one block format or research method per module.

`kvquant.formats.registry` finds a format by name; `kvquant.formats.api` holds the public functions.
"""

from __future__ import annotations

from kvquant.formats import bf16, f16, f32, iq4_nl, q4_0, q4_1, q5_0, q5_1, q8_0, split, tq
from kvquant.formats.registry import register, register_family
from kvquant.formats.turboquant import names as turboquant

# The order is the one in which names are listed. A new format is a module, an import above and an entry here.
for _format in (
    f32.F32(),
    f16.F16(),
    bf16.BF16(),
    q8_0.Q8_0(),
    q4_0.Q4_0(),
    q4_1.Q4_1(),
    iq4_nl.IQ4NL(),
    q5_0.Q5_0(),
    q5_1.Q5_1(),
    tq.TQ3(),
    tq.TQ2(),
    split.K5X3(),
    split.K4X2(),
    iq4_nl.CACHE,
    *turboquant.plain_formats(),
):
    register(_format)

register_family(turboquant.PREFIX, turboquant.parse_name)
