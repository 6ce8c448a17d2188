"""Fixtures of all tests."""

import os
import time

import numpy as np
import pytest
import torch

# adds tasks and methods when it is imported, which looking for doctests would do
collect_ignore = ["benchmark_plugin.py"]


@pytest.fixture(autouse=True)
def isolated(tmp_path, monkeypatch):
    """Every test is seeded, and writes sbi's log folder to a place of its own."""
    monkeypatch.chdir(tmp_path)
    torch.manual_seed(1)
    np.random.seed(1)  # what scikit-learn draws from, in L-C2ST for one


class Clock:
    """Stands still but for `sleep`, in seconds."""

    def __init__(self):
        self.now = 0.0

    def sleep(self, seconds):
        self.now += seconds


@pytest.fixture
def clock(monkeypatch):
    """What costs are measured by, the same on a machine that is slow or busy."""
    clock = Clock()
    monkeypatch.setattr(time, "perf_counter", lambda: clock.now)
    return clock


@pytest.fixture
def camels_file():
    """The real CAMELS spectra, where the environment or a sibling folder has them."""
    from sbi_multilevel_benchmarks.tasks.camels import DATA_VARIABLE

    path = os.environ.get(DATA_VARIABLE)
    if not path:
        pytest.skip(f"set {DATA_VARIABLE} to the file of CAMELS power spectra")
    return path
