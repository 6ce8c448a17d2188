"""Number of simulations of each level: pilot, allocation, advice, and budgets."""

from sbi_multilevel.allocation.advice import Advice, advise
from sbi_multilevel.allocation.optimal import allocate
from sbi_multilevel.allocation.pilot import Pilot, pilot
from sbi_multilevel.allocation.spending import BudgetedSimulations, simulate_budget

__all__ = [
    "Advice",
    "BudgetedSimulations",
    "Pilot",
    "advise",
    "allocate",
    "pilot",
    "simulate_budget",
]
