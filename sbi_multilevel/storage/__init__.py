"""Simulations on disk: a status for each, resumption, and external simulations."""

from sbi_multilevel.storage.store import SimulationStore

__all__ = ["SimulationStore"]
