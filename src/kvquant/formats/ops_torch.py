"""The operations of `ops.Ops` in Torch, on any device, without moving data between devices.

Division is always tensor by tensor. With a Python number on either side Torch may multiply by a rounded
reciprocal: `1 / tensor` everywhere, `tensor / 3` on a GPU.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from kvquant.formats.ops_numpy import HALF


class TorchOps:
    """Holds the device, and the tables that were moved to it."""

    def __init__(self, device: torch.device) -> None:
        self.device = device
        # A GPU wants long pieces (16 MiB of float32), a CPU pieces that fit its caches.
        self.chunk_values = 1 << (17 if device.type == "cpu" else 22)

    def _float(self, value: float) -> torch.Tensor:
        return torch.tensor(value, dtype=torch.float32, device=self.device)

    # -- one number per block --

    def extremes(self, x: Any) -> tuple[Any, Any]:
        return x.amin(dim=1, keepdim=True), x.amax(dim=1, keepdim=True)

    def peak(self, x: Any, low: Any, high: Any) -> Any:
        # argmax takes the first of the places that reach the magnitude.
        reaches = x.abs() == self.magnitude(low, high)
        return x.gather(1, reaches.byte().argmax(dim=1, keepdim=True)) + 0.0

    def first_low(self, x: Any, low: Any) -> Any:
        return x.gather(1, (x == low).byte().argmax(dim=1, keepdim=True))

    def magnitude(self, low: Any, high: Any) -> Any:
        return torch.maximum(low.abs(), high.abs())

    def divide(self, x: Any, by: Any) -> Any:
        if isinstance(x, float):
            x = torch.full_like(by, x)
        return x / (torch.full_like(x, by) if isinstance(by, float) else by)

    def inverse(self, scale: Any) -> Any:
        return torch.where(scale != 0, self.divide(1.0, scale), 0.0)

    def broken(self, low: Any, high: Any) -> Any:
        # Always a mask: looking whether it is empty would make a GPU wait.
        return ~(low.isfinite() & high.isfinite())

    def where(self, mask: Any, x: Any, y: Any) -> Any:
        return torch.where(mask, x, y)

    # -- codes --

    def codes(self, x: Any, low: Any | None, factor: Any, offset: float, top: int) -> Any:
        y = x * factor if low is None else (x - low) * factor
        y = y + offset
        y = torch.where(y.isfinite(), y, self._float(0))
        return y.clamp(max=top).to(torch.uint8)

    def signed_codes(self, x: Any, factor: Any) -> Any:
        y = x * factor
        y = torch.where(y.isfinite(), y, self._float(0))
        return (y + torch.copysign(self._float(float(HALF)), y)).to(torch.int8)

    def nearest(self, x: Any, table: npt.NDArray[np.uint8]) -> Any:
        y = torch.fmax(torch.fmin(x, self._float(127.5)), self._float(-128))  # fmin and fmax ignore a NaN
        return torch.from_numpy(table).to(self.device)[(y * 2).floor().long() + 256]

    def lookup(self, table: npt.NDArray[np.float32], codes: Any) -> Any:
        return torch.from_numpy(table).to(self.device)[codes.long()]

    def columns(self, x: Any) -> Any:
        return x.T.contiguous()

    def sum_rows(self, x: Any) -> Any:
        total = x[0].clone()
        for row in x[1:]:
            total += row
        return total

    # -- bytes --

    def nibbles(self, codes: Any) -> Any:
        return (codes[:, :16] & 15) | (codes[:, 16:] << 4)

    def from_nibbles(self, packed: Any) -> Any:
        return torch.cat((packed & 15, packed >> 4), dim=1)

    def levels(self, packed: Any, table: npt.NDArray[np.int8]) -> Any:
        return torch.from_numpy(table).to(self.device)[self.from_nibbles(packed).long()]

    def fifth_bits(self, codes: Any) -> Any:
        bits = (codes >> 4 & 1).view(len(codes), 4, 8)
        return (bits << torch.arange(8, dtype=torch.uint8, device=self.device)).sum(dim=2).to(torch.uint8)

    def with_fifth_bits(self, codes: Any, packed: Any) -> Any:
        bits = packed[:, :, None] >> torch.arange(8, dtype=torch.uint8, device=self.device) & 1
        return codes | bits.reshape(codes.shape) << 4

    def half(self, x: Any) -> Any:
        nan = torch.copysign(self._float(float("nan")), x).to(torch.float16)
        halves = torch.where(x.isnan(), nan, x.to(torch.float16))
        return halves.view(torch.uint8)

    def from_half(self, packed: Any) -> Any:
        return packed.view(torch.float16).to(torch.float32)

    def bfloat(self, x: Any) -> Any:
        bits = x.contiguous().view(torch.int32)
        top = bits >> 16
        # Adding before the shift could overflow int32, so the low half's rounding is carried by itself.
        low = bits & 0xFFFF
        carry = (low + (0x7FFF + (top & 1))) >> 16
        halves = torch.where(x.isnan(), top | 64, top + carry)
        return halves.to(torch.int16).view(torch.uint8)

    def from_bfloat(self, packed: Any) -> Any:
        return (packed.view(torch.int16).to(torch.int32) << 16).view(torch.float32)

    def float_bytes(self, x: Any) -> Any:
        return x.view(torch.uint8)

    def from_float_bytes(self, packed: Any) -> Any:
        return packed.view(torch.float32)

    def int8(self, packed: Any) -> Any:
        return packed.view(torch.int8)

    def bytes(self, codes: Any) -> Any:
        return codes.view(torch.uint8)

    def join(self, out: Any, *fields: Any) -> None:
        torch.cat(fields, dim=1, out=out)

    def split(self, packed: Any, *lengths: int) -> list[Any]:
        # clone: a contiguous slice may start at an odd byte, and a view as wider numbers needs it aligned.
        return [field.clone(memory_format=torch.contiguous_format) for field in packed.split(lengths, dim=1)]

    def write(self, out: Any, codes: Any, minus: int, factor: Any, plus: Any | None = None) -> None:
        out.copy_(codes.view(torch.int8))
        out.sub_(minus).mul_(factor)
        if plus is not None:
            out.add_(plus)
