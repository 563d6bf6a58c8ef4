"""Torch models whose K and V pass through storage formats as they are written, layer by layer.

This runs what llama.cpp cannot: any registered format, research ones included, end to end. Values are packed
and unpacked at once and kept as floats, so it measures quality, never memory or speed. Importing it loads
torch.
"""

from kvquant.formats.storage import storage_format
from kvquant.torch.writing import QuantizedKV

__all__ = ["QuantizedKV", "storage_format"]
