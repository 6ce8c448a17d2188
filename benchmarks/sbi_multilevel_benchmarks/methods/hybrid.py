"""The hybrid method, and the same without one of its parts."""

from __future__ import annotations

from sbi_multilevel import HybridConfig
from sbi_multilevel_benchmarks.methods.multilevel import MultilevelMethod
from sbi_multilevel_benchmarks.registry import register_method

for _name, _config in {
    "hybrid": HybridConfig(),
    "hybrid-unaligned": HybridConfig(level_maps=("none",)),
    "hybrid-unpaired": HybridConfig(level_maps=("none", "shift", "full", "scaled")),
    "hybrid-untransformed": HybridConfig(transform_tails=False),
    "hybrid-unrehearsed": HybridConfig(rehearsal=False),
    "hybrid-unmixed": HybridConfig(mix=False),
    "hybrid-scratch": HybridConfig(shared_start=False),
    "hybrid-widened": HybridConfig(widen=True),
    "hybrid-mixture": HybridConfig(distill=False),
    "hybrid-constant": HybridConfig(schedule=None, distill=False),
}.items():
    register_method(_name, MultilevelMethod(_config))
register_method("high-hybrid", MultilevelMethod(HybridConfig(), high_only=True))
