"""An empty package index on loopback, and the folder of wheels that it serves."""

from local_index import index, wheels

__all__ = ["index", "wheels"]
