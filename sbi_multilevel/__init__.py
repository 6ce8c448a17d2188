"""Simulation-based inference with simulators of several fidelities, for sbi.

Level 0 is the cheapest simulator, level L the one to infer with. Start at
`simulate_multilevel` for data and at `MLNPE` or `MFNPE` for inference.
"""

from sbi_multilevel.budget import (
    Advice,
    BudgetedSimulations,
    Pilot,
    advise,
    allocate,
    pilot,
    simulate_budget,
)
from sbi_multilevel.datatree import to_datatree
from sbi_multilevel.estimators import unconstrained
from sbi_multilevel.mixture import without_prior
from sbi_multilevel.recipes import Hybrid, Multilevel, Transfer
from sbi_multilevel.sequential import MFTSNPE, Acquisition, Truncation
from sbi_multilevel.simulation import (
    SimulationStore,
    TooManyFailures,
    one_at_a_time,
    simulate_multilevel,
)
from sbi_multilevel.simulations import LevelSimulations, MultilevelSimulations
from sbi_multilevel.trainers import (
    MFNLE,
    MFNPE,
    MLNLE,
    MLNPE,
    Ensemble,
    train_ensemble,
)

__version__ = "0.1.0"

__all__ = [
    "MFNLE",
    "MFNPE",
    "MFTSNPE",
    "MLNLE",
    "MLNPE",
    "Acquisition",
    "Advice",
    "BudgetedSimulations",
    "Ensemble",
    "Hybrid",
    "LevelSimulations",
    "Multilevel",
    "MultilevelSimulations",
    "Pilot",
    "SimulationStore",
    "TooManyFailures",
    "Transfer",
    "Truncation",
    "advise",
    "allocate",
    "one_at_a_time",
    "pilot",
    "simulate_budget",
    "simulate_multilevel",
    "to_datatree",
    "train_ensemble",
    "unconstrained",
    "without_prior",
]
