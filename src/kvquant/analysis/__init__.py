"""How much error a KV-cache policy costs, on synthetic or captured K, V and Q."""

from kvquant.analysis.analyze import BASELINES, DEFAULT_N_CTX, Rotation, analyze
from kvquant.analysis.profiles import PROFILES, Profile, get_profile
from kvquant.analysis.result import (
    Analysis,
    LayerErrors,
    LayerResult,
    MeanErrors,
    SideErrors,
    StoredSide,
    Summary,
)
from kvquant.analysis.sample import LayerSample, Source, SourceInfo
from kvquant.analysis.sources import Sampling, open_source

__all__ = [
    "BASELINES",
    "DEFAULT_N_CTX",
    "PROFILES",
    "Analysis",
    "LayerErrors",
    "LayerResult",
    "LayerSample",
    "MeanErrors",
    "Profile",
    "Rotation",
    "Sampling",
    "SideErrors",
    "Source",
    "SourceInfo",
    "StoredSide",
    "Summary",
    "analyze",
    "get_profile",
    "open_source",
]
