"""Simulations on disk: status a row, resumption, rows made elsewhere."""

from sbi_multilevel.simulation.store.store import SimulationStore

__all__ = ["SimulationStore"]
