"""Pytest plugin: sbi's own tests with our classes in their parents' place.

With `-p sbi_swap_plugin`, `from sbi.inference import NPE` gives `MLNPE`, and `NLE`
gives `MLNLE`, under every name and path of the two. See `run.py`.
"""

import sbi.inference
import sbi.inference.trainers.nle
import sbi.inference.trainers.npe

from sbi_multilevel import MLNLE, MLNPE

SWAPPED = {sbi.inference.NPE: MLNPE, sbi.inference.NLE: MLNLE}
MODULES = (sbi.inference, sbi.inference.trainers.npe, sbi.inference.trainers.nle)


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
