"""Sequential inference: rounds of simulations near one observation."""

from sbi_multilevel.methods.sequential.acquisition import Acquisition
from sbi_multilevel.methods.sequential.mftsnpe import MFTSNPE
from sbi_multilevel.methods.sequential.truncation import Truncation

__all__ = ["MFTSNPE", "Acquisition", "Truncation"]
