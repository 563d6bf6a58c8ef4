"""Choosing a policy under a byte budget from measured errors."""

from kvquant.search.knapsack import Choice, choose
from kvquant.search.search import TYPES, Found, search

__all__ = ["TYPES", "Choice", "Found", "choose", "search"]
