"""Simulations: validated once, masked jointly, written without pickle."""

import warnings

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from sbi_multilevel import LevelSimulations, MultilevelSimulations

N = 30


def make_level(level, n=N, d=2, k=3, seed=0):
    generator = torch.Generator().manual_seed(seed)
    theta = torch.rand(n, d, generator=generator)
    x = torch.randn(n, k, generator=generator)
    noise = 0.1 * torch.randn(n, k, generator=generator)
    return LevelSimulations(level, theta, x, None if level == 0 else x + noise)


def valid_pairs():
    part = make_level(1)
    return dict(level=1, theta=part.theta, x=part.x, x_coarse=part.x_coarse)


@pytest.mark.parametrize(
    "change, named",
    [
        (dict(level=-1), "level"),
        (dict(level=True), "level"),
        (dict(level=0), "x_coarse was passed with level=0"),
        (dict(theta=torch.rand(N - 1, 2)), "differ in length.*'theta': 29"),
        (dict(x_coarse=torch.rand(N + 1, 3)), "differ in length.*'x_coarse': 31"),
        (dict(x_coarse=torch.rand(N, 4)), "x_coarse.*\\(30, 4\\)"),
        (dict(x=torch.rand(N)), "x of level 1.*\\(30,\\)"),
        (dict(x=np.zeros((N, 3))), "x of level 1.*ndarray"),
        (dict(theta=torch.rand(N, 2).double()), "theta.*float64"),
        (dict(theta=torch.rand(N, 2, device="meta")), "several devices.*meta"),
        (dict(x=torch.full((N, 3), torch.nan)), "0 valid simulations of 30"),
    ],
)
def test_bad_simulations_are_refused_by_name(change, named):
    with pytest.raises(ValueError, match=named):
        LevelSimulations(**{**valid_pairs(), **change})


def test_one_valid_simulation_is_too_few():
    x = torch.full((5, 2), torch.inf)
    x[0] = 1.0
    with pytest.warns(UserWarning, match="Dropped 4 of 5"):
        one = LevelSimulations(0, torch.rand(5, 2), x)
    with pytest.raises(ValueError, match="has 1 valid simulations, but needs"):
        MultilevelSimulations((one,))


@settings(max_examples=30, deadline=None)
@given(
    bad_fine=st.sets(st.integers(0, N - 1), max_size=9),
    bad_coarse=st.sets(st.integers(0, N - 1), max_size=9),
    bad_theta=st.sets(st.integers(0, N - 1), max_size=9),
)
def test_pairs_are_masked_together(bad_fine, bad_coarse, bad_theta):
    columns = {k: v for k, v in valid_pairs().items() if k != "level"}
    columns = {k: v.clone() for k, v in columns.items()}
    columns["x"][list(bad_fine), 0] = torch.nan
    columns["x_coarse"][list(bad_coarse), 1] = torch.inf
    columns["theta"][list(bad_theta), 0] = torch.nan
    bad = bad_fine | bad_coarse | bad_theta
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        kept = LevelSimulations(1, **columns)
    good = [i for i in range(N) if i not in bad]
    for name, value in columns.items():
        assert torch.equal(getattr(kept, name), value[good])
    messages = [str(w.message) for w in caught if "Dropped" in str(w.message)]
    if not bad:
        assert messages == []
        return
    assert f"Dropped {len(bad)} of {N}" in messages[0]
    assert f"{len(bad_coarse)} in x_coarse" in messages[0]
    alone = len(bad_coarse - bad_fine)
    assert ("no lower bound" in messages[0]) == (alone > 0)
    assert alone == 0 or f"In {alone} of them x_coarse alone" in messages[0]


def broken_pairing_warnings(x, x_coarse):
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        LevelSimulations(1, torch.rand(len(x), 2), x, x_coarse)
    return [str(w.message) for w in caught]


def test_broken_pairing_is_warned_of():
    x = torch.randn(200, 4)
    assert "identical to x" in broken_pairing_warnings(x, x.clone())[0]
    assert "uncorrelated" in broken_pairing_warnings(x, torch.randn(200, 4))[0]


@pytest.mark.parametrize("n", (10, 20, 200))
@pytest.mark.parametrize("heavy_tailed", (False, True))
def test_sound_pairing_is_not_warned_of(n, heavy_tailed):
    x = torch.randn(n, 4)
    x = x**5 if heavy_tailed else x
    assert broken_pairing_warnings(x, 0.5 * x + 0.2 * torch.randn(n, 4)) == []


@pytest.mark.parametrize(
    "levels, named",
    [
        ((), "without a gap"),
        ((1,), "without a gap"),
        ((0, 2), "\\[0, 2\\]"),
        ((0, 2, 1), "\\[0, 2, 1\\]"),
        ((0, 1, 1), "\\[0, 1, 1\\]"),
    ],
)
def test_levels_must_be_consecutive(levels, named):
    with pytest.raises(ValueError, match=named):
        MultilevelSimulations(tuple(make_level(level) for level in levels))


def test_levels_must_fit_each_other():
    with pytest.raises(ValueError, match="x of level 1.*\\(4,\\).*\\(3,\\)"):
        MultilevelSimulations((make_level(0), make_level(1, k=4)))
    with pytest.raises(ValueError, match="theta of level 1"):
        MultilevelSimulations((make_level(0), make_level(1, d=5)))
    elsewhere = LevelSimulations.trusted(
        1, *(torch.rand(4, k).to("meta") for k in (2, 3, 3))
    )
    with pytest.raises(ValueError, match="level 1 are on device 'meta'"):
        MultilevelSimulations((make_level(0), elsewhere))


@pytest.mark.parametrize("costs", ((1.0,), (1.0, -2.0), (1.0, float("nan"))))
def test_costs_must_fit(costs):
    with pytest.raises(ValueError, match="costs"):
        MultilevelSimulations((make_level(0), make_level(1)), costs)


def test_total_cost_counts_both_sides_of_a_pair():
    sims = MultilevelSimulations(
        (make_level(0), make_level(1, 10), make_level(2, 4)),
        (1.0, 3.0, 9.0),
    )
    assert sims.total_cost == 30 * 1 + 10 * (3 + 1) + 4 * (9 + 3)
    unpaired = LevelSimulations(1, torch.rand(10, 2), torch.rand(10, 3))
    sims = MultilevelSimulations(
        (make_level(0), unpaired, make_level(2, 4)), (1.0, 3.0, 9.0)
    )
    assert sims.total_cost == 30 * 1 + 10 * 3 + 4 * (9 + 3)


def test_simulations_are_immutable():
    with pytest.raises(AttributeError):
        make_level(0).x = torch.zeros(1)
    with pytest.raises(AttributeError):
        MultilevelSimulations((make_level(0),)).levels = ()


@pytest.mark.parametrize("costs", (None, (1.0, 2.5)))
def test_save_and_load(tmp_path, costs):
    saved = MultilevelSimulations((make_level(0), make_level(1, 7)), costs)
    path = tmp_path / "simulations.data"  # the name is kept as it is
    saved.save(path)
    loaded = MultilevelSimulations.load(path)
    assert loaded.costs == costs
    assert loaded[0].x_coarse is None
    for old, new in zip(saved, loaded):
        assert torch.equal(old.theta, new.theta) and torch.equal(old.x, new.x)
    assert torch.equal(saved[1].x_coarse, loaded[1].x_coarse)


def test_load_refuses_pickles_and_other_files(tmp_path):
    np.savez(tmp_path / "other.npz", a=np.zeros(2))
    with pytest.raises(ValueError, match="cannot be read as multilevel simulations"):
        MultilevelSimulations.load(tmp_path / "other.npz")
    objects = np.array([{"a": 1}], dtype=object)
    np.savez(tmp_path / "pickled.npz", num_levels=1, theta_0=objects, x_0=objects)
    with pytest.raises(ValueError, match="allow_pickle"):
        MultilevelSimulations.load(tmp_path / "pickled.npz")
