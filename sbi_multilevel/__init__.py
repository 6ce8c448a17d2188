"""Simulation-based inference with simulators of several fidelities, for sbi.

Level 0 is the lowest fidelity, level L the one to infer with. Start with `HybridNPE`;
`simulate_multilevel` runs simulators at all levels.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from sbi_multilevel.deprecation import deprecated_name

if TYPE_CHECKING:
    from sbi_multilevel.allocation.advice import Advice, advise
    from sbi_multilevel.allocation.optimal import allocate
    from sbi_multilevel.allocation.pilot import Pilot, pilot
    from sbi_multilevel.allocation.spending import BudgetedSimulations, simulate_budget
    from sbi_multilevel.arviz import to_datatree
    from sbi_multilevel.data.simulations import LevelSimulations, MultilevelSimulations
    from sbi_multilevel.estimators.mixture import without_prior
    from sbi_multilevel.estimators.transformed import unconstrained
    from sbi_multilevel.methods.fmpe import MFFMPE, MLFMPE, HybridFMPE
    from sbi_multilevel.methods.hybrid.config import HybridConfig
    from sbi_multilevel.methods.multilevel import MultilevelConfig
    from sbi_multilevel.methods.nle import MFNLE, MLNLE, HybridNLE
    from sbi_multilevel.methods.npe import MFNPE, MLNPE, HybridNPE
    from sbi_multilevel.methods.npse import MFNPSE, MLNPSE, HybridNPSE
    from sbi_multilevel.methods.nre import MFNRE, MLNRE, HybridNRE
    from sbi_multilevel.methods.nre_variants import (
        MFBNRE,
        MFNRE_A,
        MFNRE_C,
        MLBNRE,
        MLNRE_A,
        MLNRE_C,
        HybridBNRE,
        HybridNRE_A,
        HybridNRE_C,
    )
    from sbi_multilevel.methods.sequential.acquisition import Acquisition
    from sbi_multilevel.methods.sequential.hybrid_tsnpe import MLTSNPE, HybridTSNPE
    from sbi_multilevel.methods.sequential.mfsnle import MFSNLE
    from sbi_multilevel.methods.sequential.mftsnpe import MFTSNPE
    from sbi_multilevel.methods.sequential.truncation import Truncation
    from sbi_multilevel.methods.transfer import TransferConfig
    from sbi_multilevel.simulate import simulate_multilevel
    from sbi_multilevel.simulation.filling import TooManyFailures
    from sbi_multilevel.simulation.noise import vectorize_simulator
    from sbi_multilevel.storage.store import SimulationStore
    from sbi_multilevel.training.ensemble import Ensemble, train_ensemble
    from sbi_multilevel.training.schedule import OneCycle

__version__ = "0.1.0"

# Modules are imported when a name is used: training needs no simulation or storage.
_MODULES = {
    "Acquisition": "methods.sequential.acquisition",
    "Advice": "allocation.advice",
    "BudgetedSimulations": "allocation.spending",
    "Ensemble": "training.ensemble",
    "HybridBNRE": "methods.nre_variants",
    "HybridConfig": "methods.hybrid.config",
    "HybridFMPE": "methods.fmpe",
    "HybridNLE": "methods.nle",
    "HybridNPE": "methods.npe",
    "HybridNPSE": "methods.npse",
    "HybridNRE": "methods.nre",
    "HybridNRE_A": "methods.nre_variants",
    "HybridNRE_C": "methods.nre_variants",
    "HybridTSNPE": "methods.sequential.hybrid_tsnpe",
    "LevelSimulations": "data.simulations",
    "MFBNRE": "methods.nre_variants",
    "MFFMPE": "methods.fmpe",
    "MFNLE": "methods.nle",
    "MFNPE": "methods.npe",
    "MFNPSE": "methods.npse",
    "MFNRE": "methods.nre",
    "MFNRE_A": "methods.nre_variants",
    "MFNRE_C": "methods.nre_variants",
    "MFSNLE": "methods.sequential.mfsnle",
    "MFTSNPE": "methods.sequential.mftsnpe",
    "MLBNRE": "methods.nre_variants",
    "MLFMPE": "methods.fmpe",
    "MLNLE": "methods.nle",
    "MLNPE": "methods.npe",
    "MLNPSE": "methods.npse",
    "MLNRE": "methods.nre",
    "MLNRE_A": "methods.nre_variants",
    "MLNRE_C": "methods.nre_variants",
    "MLTSNPE": "methods.sequential.hybrid_tsnpe",
    "MultilevelConfig": "methods.multilevel",
    "MultilevelSimulations": "data.simulations",
    "OneCycle": "training.schedule",
    "Pilot": "allocation.pilot",
    "SimulationStore": "storage.store",
    "TooManyFailures": "simulation.filling",
    "TransferConfig": "methods.transfer",
    "Truncation": "methods.sequential.truncation",
    "advise": "allocation.advice",
    "allocate": "allocation.optimal",
    "pilot": "allocation.pilot",
    "simulate_budget": "allocation.spending",
    "simulate_multilevel": "simulate",
    "to_datatree": "arviz",
    "train_ensemble": "training.ensemble",
    "unconstrained": "estimators.transformed",
    "vectorize_simulator": "simulation.noise",
    "without_prior": "estimators.mixture",
}

__all__ = list(_MODULES)


_deprecated = deprecated_name(
    __name__,
    {
        "Hybrid": f"{__name__}.HybridConfig",
        "Multilevel": f"{__name__}.MultilevelConfig",
        "Transfer": f"{__name__}.TransferConfig",
        "one_at_a_time": f"{__name__}.vectorize_simulator",
    },
    since=__version__,
)


def __getattr__(name: str) -> Any:
    if name not in _MODULES:
        return _deprecated(name)
    module = importlib.import_module(f"{__name__}.{_MODULES[name]}")
    value = getattr(module, name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
