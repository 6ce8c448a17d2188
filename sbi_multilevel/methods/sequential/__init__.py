"""Sequential inference: rounds of simulations near one observation."""

from sbi_multilevel.methods.sequential.acquisition import Acquisition
from sbi_multilevel.methods.sequential.hybrid_tsnpe import MLTSNPE, HybridTSNPE
from sbi_multilevel.methods.sequential.mfsnle import MFSNLE
from sbi_multilevel.methods.sequential.mftsnpe import MFTSNPE
from sbi_multilevel.methods.sequential.truncation import Truncation

__all__ = [
    "MFSNLE",
    "MFTSNPE",
    "MLTSNPE",
    "Acquisition",
    "HybridTSNPE",
    "Truncation",
]
