"""Pytest plugin: sbi's own tests with our classes in their parents' place.

With `-p sbi_swap_plugin`, `from sbi.inference import NPE` gives `MLNPE`, and so on for
each trainer of sbi that a multilevel trainer derives from, under every name and path of
it. See `run.py`.
"""

import sbi.inference as sbi_trainers
from sbi.inference.trainers import nle, npe, nre, vfpe

import sbi_multilevel

FAMILIES = ("NPE", "NLE", "NRE", "NRE_A", "NRE_C", "BNRE", "FMPE", "NPSE")
SWAPPED = {
    getattr(sbi_trainers, name): getattr(sbi_multilevel, f"ML{name}")
    for name in FAMILIES
}
MODULES = (sbi_trainers, npe, nle, nre, vfpe)


def pytest_configure() -> None:
    for module in MODULES:
        for name, value in list(vars(module).items()):
            if isinstance(value, type) and value in SWAPPED:
                setattr(module, name, SWAPPED[value])


def pytest_report_header() -> list[str]:
    return [
        f"{old.__name__} -> {new.__module__}.{new.__name__}"
        for old, new in SWAPPED.items()
    ]
