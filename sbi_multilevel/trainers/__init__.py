"""Trainers of sbi that learn from several levels."""

from sbi_multilevel.trainers.ensemble import Ensemble, train_ensemble
from sbi_multilevel.trainers.nle import MFNLE, MLNLE
from sbi_multilevel.trainers.npe import MFNPE, MLNPE

__all__ = ["MFNLE", "MFNPE", "MLNLE", "MLNPE", "Ensemble", "train_ensemble"]
