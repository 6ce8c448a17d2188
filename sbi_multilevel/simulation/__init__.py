"""Runs simulators: pairing by shared noise, seeds, workers, cost."""

from sbi_multilevel.simulation.noise import one_at_a_time
from sbi_multilevel.simulation.run import simulate_multilevel

__all__ = ["one_at_a_time", "simulate_multilevel"]
