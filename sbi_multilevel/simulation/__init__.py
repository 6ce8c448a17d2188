"""Runs simulators: pairing by shared noise, seeds, workers, stores, failures, cost."""

from sbi_multilevel.simulation.accounting import TooManyFailures
from sbi_multilevel.simulation.noise import one_at_a_time
from sbi_multilevel.simulation.run import simulate_multilevel
from sbi_multilevel.simulation.store import SimulationStore

__all__ = [
    "SimulationStore",
    "TooManyFailures",
    "one_at_a_time",
    "simulate_multilevel",
]
