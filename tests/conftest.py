"""Fixtures of all tests."""

import time

import numpy as np
import pytest
import torch


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
