"""Simulations on disk: status a row, resumption, rows made elsewhere."""

from sbi_multilevel.storage.store import SimulationStore

__all__ = ["SimulationStore"]
