"""Pictures of a training and of posteriors side by side, in the look of sbi."""

from sbi_multilevel.plots.comparison import compare
from sbi_multilevel.plots.training import plot_training

__all__ = ["compare", "plot_training"]
