"""Trainers of sbi that learn from several levels."""

from sbi_multilevel.trainers.nle import MLNLE
from sbi_multilevel.trainers.npe import MLNPE

__all__ = ["MLNLE", "MLNPE"]
