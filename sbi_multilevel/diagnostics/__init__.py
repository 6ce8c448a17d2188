"""Diagnostics: before simulations are spent, of a training, and of what it was worth.

`check_pairing` runs the simulators a few times, `fidelity_report` takes rows that are
there, `check_training` a trainer, and `effective_sample_size` compares training with the lower
levels to training without.
"""

from sbi_multilevel.diagnostics.coherence import Coherence, coherence
from sbi_multilevel.diagnostics.fidelity import fidelity_report
from sbi_multilevel.diagnostics.information import (
    Information,
    informational_r2,
    mutual_information,
    uncertainty_coefficient,
)
from sbi_multilevel.diagnostics.level_fidelity import FidelityReport, LevelFidelity
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
    "EffectiveRows",
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
    "effective_sample_size",
    "fidelity_report",
    "informational_r2",
    "mutual_information",
    "effective_num_high",
    "uncertainty_coefficient",
]
