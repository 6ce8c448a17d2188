"""Running simulators: shared noise, seeds, workers, failures, costs."""

from sbi_multilevel.simulation.engine import LostSimulations
from sbi_multilevel.simulation.filling import TooManyFailures
from sbi_multilevel.simulation.noise import vectorize_simulator

__all__ = ["LostSimulations", "TooManyFailures", "vectorize_simulator"]
