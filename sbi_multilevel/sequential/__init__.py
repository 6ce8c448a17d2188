"""Rounds of simulation near one observation."""

from sbi_multilevel.sequential.acquisition import Acquisition
from sbi_multilevel.sequential.mftsnpe import MFTSNPE
from sbi_multilevel.sequential.truncation import Truncation

__all__ = ["MFTSNPE", "Acquisition", "Truncation"]
