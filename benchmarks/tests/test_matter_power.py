"""The matter power task: the formula, CAMB, errors and stored simulations."""

import importlib.util
import math

import numpy as np
import pytest
import torch
from scipy.integrate import quad

from sbi_multilevel_benchmarks.registry import get_task
from sbi_multilevel_benchmarks.stored_task import STORE_VARIABLE
from sbi_multilevel_benchmarks.tasks import matter_power as mp

HAS_CAMB = importlib.util.find_spec("camb") is not None
HAS_ZARR = importlib.util.find_spec("zarr") is not None
needs_zarr = pytest.mark.skipif(not HAS_ZARR, reason="zarr is not installed")
needs_camb = pytest.mark.skipif(not HAS_CAMB, reason="camb is not installed")
CENTERS = torch.as_tensor(mp.CENTERS)


def some_theta(n):
    return mp.MatterPower.prior.sample((n,))


# ------------------------------------------------------------- level 0


def deviation(row):
    """Standard deviation of the linear density in spheres of 8 Mpc/h."""

    def integrand(log_k):
        k = math.exp(log_k)
        power = mp.linear_power(row[None], torch.tensor([k])).item()
        y = 8 * k
        window = 3 * (math.sin(y) - y * math.cos(y)) / y**3
        return power * window**2 * k**3 / (2 * math.pi**2)

    return math.sqrt(quad(integrand, math.log(1e-3), math.log(30), limit=500)[0])


def test_the_linear_density_in_spheres_has_the_deviation_sigma8():
    for row in some_theta(3):
        assert deviation(row) == pytest.approx(row[1].item(), rel=2e-3)


# of the package colossus 1.4.0, model "sugiyama95" with a temperature of 2.7 K
WAVES = (1e-3, 0.02, 0.1, 0.5, 3.0)
TRANSFER = {
    (0.3, 0.7): (0.98489716, 0.561969254, 0.138332634, 1.43328627e-2, 7.24799139e-4),
    (0.15, 0.85): (
        0.964378325,
        0.337851869,
        5.31888322e-2,
        0.00439916878,
        0.000199882631,
    ),
}


@pytest.mark.parametrize("index", [1.0, 0.8])
@pytest.mark.parametrize("matter, hubble", TRANSFER)
def test_the_transfer_function_is_that_of_another_package(matter, hubble, index):
    theta, waves = torch.tensor([[matter, 0.8, hubble, index]]), torch.tensor(WAVES)
    power = mp.linear_power(theta, waves)[0]
    transfer = torch.tensor(TRANSFER[matter, hubble], dtype=torch.float64)
    expected = waves.double() ** index * transfer**2
    ratio = power / expected
    assert torch.allclose(ratio / ratio[0], torch.ones(5).double(), rtol=1e-5)


def test_the_window_is_continuous():
    y = torch.tensor([0.00999999, 0.01000001], dtype=torch.float64)
    assert mp._window(y).diff().abs() < 1e-8


# ------------------------------------------------------------- errors


def test_errors_are_those_of_the_number_of_modes():
    theta, noise = some_theta(50), torch.randn(50, mp.NUM_BINS)
    x = mp.linear_theory(theta, noise)
    without = mp.linear_theory(theta, torch.zeros_like(noise))
    exact = (mp.linear_power(theta, CENTERS) + 1 / 3e-4).log().float()
    assert torch.equal(without, exact) and x.dtype == torch.float32
    # wave vectors of the volume in each shell; opposite ones are the same mode
    shells = 4 / 3 * math.pi * np.diff(mp.EDGES**3) / (2 * math.pi) ** 3 * 1e9
    expected = noise * torch.as_tensor((2 / shells) ** 0.5).float()
    assert torch.allclose(x - without, expected, atol=1e-5)


# ------------------------------------------------------------- level 1


@needs_camb
def test_camb_is_linear_on_large_scales_and_grows_on_small_ones():
    theta = torch.tensor([[0.3, sigma, 0.7, 0.96] for sigma in (0.6, 0.9)])
    waves = np.array([0.005, 0.02, 1.0])
    power = mp.nonlinear_power(theta, waves)
    growth = (power[1] / power[0]).sqrt() / 1.5
    assert torch.allclose(growth[:2], torch.ones(2).double(), atol=0.01)
    assert growth[2] > 1.15  # nonlinear
    linear = mp.linear_power(theta, torch.as_tensor(waves))
    assert ((power / linear)[:, :2] - 1).abs().max() < 0.25
    assert (power / linear)[1, 2] > 2


@needs_camb
def test_the_task_is_registered_with_two_levels():
    task = get_task("matter-power")
    sims = task.simulate((20, 2), seed=0)
    assert sims.num_simulations == (20, 2)
    theta, x_coarse, x = sims[1].theta, sims[1].x_coarse, sims[1].x
    power = [mp.linear_power(theta, CENTERS), mp.nonlinear_power(theta, mp.CENTERS)]
    errors = [x_coarse, x]
    errors = [a - (b + 1 / 3e-4).log() for a, b in zip(errors, power)]
    assert torch.allclose(errors[0], errors[1], atol=1e-5)  # shared by the levels


# ------------------------------------------------------------- stored simulations


@pytest.fixture
def fast(monkeypatch):
    """The task with a formula in place of CAMB."""
    find = importlib.util.find_spec

    def find_spec(name, *package):
        return name if name == "camb" else find(name, *package)

    monkeypatch.setattr(importlib.util, "find_spec", find_spec)
    monkeypatch.setattr(mp, "version", lambda name: "2.0.5")

    def power(theta, waves):
        return 1.1 * mp.linear_power(theta, torch.as_tensor(waves))

    monkeypatch.setattr(mp, "nonlinear_power", power)


def test_the_folder_depends_on_the_constants(fast, tmp_path, monkeypatch):
    first = mp.MatterPower(tmp_path).folder
    assert mp.MatterPower(tmp_path).folder == first
    monkeypatch.setattr(mp, "BARYONS", 0.05)
    assert mp.MatterPower(tmp_path).folder != first


@needs_zarr
def test_simulations_are_run_once(fast, tmp_path, monkeypatch):
    monkeypatch.delenv(STORE_VARIABLE, raising=False)
    assert mp.MatterPower().folder is None
    monkeypatch.setenv(STORE_VARIABLE, str(tmp_path))
    task = get_task("matter-power")
    assert "_observed" not in vars(task)  # not at construction
    sims, test = task.simulate((30, 10), seed=2), task.simulate_test(5)
    theta, _ = task.simulate_high(5, seed=2)  # independent of those of the seed
    for level in sims:
        assert not (theta[:, None] == level.theta).all(dim=2).any()
    monkeypatch.setattr(mp, "nonlinear_power", None)
    again = mp.MatterPower(tmp_path)
    fewer = again.simulate((20, 4), seed=2)
    for level, part in zip(sims, fewer):
        assert part.x.equal(level.x[: len(part)])
        assert part.theta.equal(level.theta[: len(part)])
    assert again.simulate_test(5)[1].equal(test[1])


def test_a_task_without_camb_names_the_package(monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ValueError, match="pip install camb"):
        get_task("matter-power")
    with pytest.raises(TypeError, match="not known"):
        mp.MatterPower.reference(mp.MatterPower.__new__(mp.MatterPower), 0)
