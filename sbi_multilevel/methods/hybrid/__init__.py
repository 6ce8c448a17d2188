"""The recipe `HybridConfig` at work: the pool, the members, their mixture, and a summary."""

from sbi_multilevel.methods.hybrid.summary import HybridSummary, OutputsGain

__all__ = ["HybridSummary", "OutputsGain"]
