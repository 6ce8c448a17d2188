"""Diagnostics of simulators, simulations and trainings of several fidelities.

`check_pairing` tests whether simulators share their noise, `fidelity_report` compares
the levels of available simulations, `check_training` inspects the losses of a trainer,
and `effective_sample_size` compares trainings with and without lower fidelities.
"""

from sbi_multilevel.diagnostics.coherence import Coherence, coherence
from sbi_multilevel.diagnostics.fidelity import (
    FidelityReport,
    LevelFidelity,
    fidelity_report,
)
from sbi_multilevel.diagnostics.information import (
    Information,
    informational_r2,
    mutual_information,
    uncertainty_coefficient,
)
from sbi_multilevel.diagnostics.pairing import check_pairing
from sbi_multilevel.diagnostics.pairing_report import LevelPairing, PairingReport
from sbi_multilevel.diagnostics.training_report import TrainingReport, check_training
from sbi_multilevel.losses.control_variate import best_weight, effective_num_high
from sbi_multilevel.losses.effective_sample_size import (
    EffectiveSampleSize,
    effective_sample_size,
)

__all__ = [
    "Coherence",
    "EffectiveSampleSize",
    "FidelityReport",
    "Information",
    "LevelFidelity",
    "LevelPairing",
    "PairingReport",
    "TrainingReport",
    "best_weight",
    "check_pairing",
    "check_training",
    "coherence",
    "effective_num_high",
    "effective_sample_size",
    "fidelity_report",
    "informational_r2",
    "mutual_information",
    "uncertainty_coefficient",
]
