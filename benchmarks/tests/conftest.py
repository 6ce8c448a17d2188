"""Fixtures of the tests of the benchmark."""

import os

import numpy as np
import pytest
import torch

from sbi_multilevel_benchmarks.tasks.camels import DATA_VARIABLE

# registers tasks and methods when it is imported
collect_ignore = ["plugin.py"]


@pytest.fixture(autouse=True)
def isolated(tmp_path, monkeypatch):
    """Every test is seeded, and runs in a folder of its own."""
    monkeypatch.chdir(tmp_path)
    torch.manual_seed(1)
    np.random.seed(1)


@pytest.fixture
def camels_file():
    """The file of CAMELS power spectra, if the environment names it."""
    path = os.environ.get(DATA_VARIABLE)
    if not path:
        pytest.skip(f"set {DATA_VARIABLE} to the file of CAMELS power spectra")
    return path
