"""Runs simulators: shared noise, seeds, workers, failures, costs."""

from sbi_multilevel.simulation.accounting import LostRows, TooManyFailures
from sbi_multilevel.simulation.noise import vectorize_simulator

__all__ = ["LostRows", "TooManyFailures", "vectorize_simulator"]
