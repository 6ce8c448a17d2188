"""The hybrid methods: the pool of mapped simulations, members, mixture and summary."""

from sbi_multilevel.methods.hybrid.summary import HybridSummary, OutputsGain

__all__ = ["HybridSummary", "OutputsGain"]
