"""Figures of trainings and posteriors, in the style of sbi."""

from sbi_multilevel.plots.comparison import compare
from sbi_multilevel.plots.training import plot_training

__all__ = ["compare", "plot_training"]
