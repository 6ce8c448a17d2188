"""Number of simulations of each level: pilot, allocation, advice, budgets, cost."""

from sbi_multilevel.allocation.advice import Advice, advise
from sbi_multilevel.allocation.cost_aware import CostAwareProposal, fit_cost
from sbi_multilevel.allocation.optimal import allocate
from sbi_multilevel.allocation.pilot import Pilot, pilot
from sbi_multilevel.allocation.spending import BudgetedSimulations, simulate_budget

__all__ = [
    "Advice",
    "BudgetedSimulations",
    "CostAwareProposal",
    "Pilot",
    "advise",
    "allocate",
    "fit_cost",
    "pilot",
    "simulate_budget",
]
