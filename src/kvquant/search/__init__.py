"""Choosing a policy under a byte budget: by the errors of a capture, or by what a meter measures."""

from kvquant.search.knapsack import Choice, choose
from kvquant.search.search import TYPES, Found, search

__all__ = ["TYPES", "Choice", "Found", "choose", "search"]
