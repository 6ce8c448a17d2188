"""External simulations: ids, records, costs, failures."""

import numpy as np
import pytest
import torch

from sbi_multilevel import SimulationStore
from tests.two_levels import PRIOR, assert_same, coarse, contents, fine, normal_noise
from tests.two_levels import simulate as run_

pytest.importorskip("zarr")

ROWS = (60, 25)


def run(n=ROWS, **options):
    return run_(n=n, **options)


@pytest.fixture
def path(tmp_path):
    return tmp_path / "run.zarr"


def test_external_simulations_equal_internal_ones(path):
    store = SimulationStore.create(path, PRIOR, ROWS, noise=normal_noise)
    generator = np.random.default_rng(0)
    for level, simulator in enumerate((coarse, fine)):
        rows = store.pending(level)
        assert len(rows) == ROWS[level]
        for part in np.array_split(generator.permutation(len(rows)), 7):
            theta, noise = rows.theta[part], rows.noise[part]
            below = coarse(theta, noise) if level else None
            record = dict(x=simulator(theta, noise), x_coarse=below, cost=2.0)
            assert store.record(rows.ids[part], **record) == len(part)
            assert store.record(rows.ids[part], **record) == 0  # without effect
        assert len(store.pending(level)) == 0
    sims = store.to_simulations()
    assert_same(sims, run())
    assert sims.costs == (2.0, 2.0)  # the cost of the coarse side is unknown


def test_costs_are_those_of_known_runs(path):
    store = SimulationStore.create(path, PRIOR, (4, 3))
    low, high = store.pending(0), store.pending(1)
    store.record(low.ids, low.theta)
    store.record(high.ids, high.theta + 1, x_coarse=high.theta, cost=10.0)
    assert store.costs is None and store.to_simulations().costs is None
    store.retry("ok")
    store.record(low.ids, low.theta, cost=[1.0, 2.0, 1.0, 2.0])
    cost = [[10.0, 3.0]] * 3
    store.record(high.ids, high.theta + 1, x_coarse=high.theta, cost=cost)
    assert store.costs == pytest.approx(((6 + 9) / 7, 10.0))


def test_simulations_recorded_out_of_order_are_stored_in_order(path):
    store = SimulationStore.create(path, PRIOR, (4, 3))
    rows = store.pending(0)
    order = [0, 2, 1, 3]  # complete from the first to the last
    store.record(rows.ids[order], rows.theta[order])
    assert torch.equal(next(store.batches(0)).x, rows.theta)


@pytest.mark.parametrize("level", (-1, 2))
def test_a_level_that_is_not_in_the_store_raises(path, level):
    store = SimulationStore.create(path, PRIOR, (4, 3))
    with pytest.raises(ValueError, match=f"level={level} .*levels are 0 to 1"):
        store.pending(level)


def test_ids_do_not_change_when_the_store_grows(path):
    store = SimulationStore.create(path, PRIOR, (4, 3))
    few = [store.pending(level) for level in (0, 1)]
    grown = SimulationStore.create(path, PRIOR, (9, 8))
    many = [grown.pending(level) for level in (0, 1)]
    for a, b in zip(few, many):
        assert np.array_equal(a.ids, b.ids[: len(a)])
        assert torch.equal(a.theta, b.theta[: len(a)])
        assert torch.equal(a.noise, b.noise[: len(a)])
    everything = np.concatenate([rows.ids for rows in many])
    assert len(np.unique(everything)) == 17
    assert len(grown.pending(0, max_simulations=3)) == 3


@pytest.mark.parametrize("kind", (tuple, list))
def test_noise_of_no_pending_simulations_has_the_form_of_some(tmp_path, kind):
    def one_at_a_time(n, generator):
        assert n == 1
        return normal_noise(n, generator)

    def several(n, generator):
        return kind((normal_noise(n, generator), torch.ones(n, 3, 5)))

    def none_left(name, noise):
        store = SimulationStore.create(tmp_path / name, PRIOR, (4, 3), noise=noise)
        rows = store.pending(0)
        store.record(rows.ids, rows.theta)
        left = store.pending(0)
        assert len(left) == 0 and left.theta.shape == (0, 2)
        return left

    left = none_left("a.zarr", one_at_a_time)
    assert left.noise.shape == (0, 4) and left.noise.dtype == torch.float32
    assert coarse(left.theta, left.noise).shape == (0, 2)
    parts = none_left("b.zarr", several).noise
    assert isinstance(parts, kind)
    assert [part.shape for part in parts] == [(0, 4), (0, 3, 5)]
    seeds = none_left("c.zarr", None).noise
    assert seeds.shape == (0,) and seeds.dtype == torch.int64


def test_another_output_for_a_simulation_warns_and_the_first_is_kept(path):
    store = SimulationStore.create(path, PRIOR, (4, 3))
    rows = store.pending(0)
    store.record(rows.ids, rows.theta)
    with pytest.warns(UserWarning, match="4 simulations of level 0 were recorded"):
        assert store.record(rows.ids[::-1], rows.theta) == 0
    assert torch.equal(torch.cat([b.x for b in store.batches(0)]), rows.theta)


def test_pairs_recorded_with_nan_are_invalid_together(path):
    store = SimulationStore.create(path, PRIOR, (4, 3))
    rows = store.pending(1)
    bad = rows.theta.clone()
    bad[1] = torch.nan
    assert store.record(rows.ids, rows.theta + 1, x_coarse=bad) == 3
    assert "2 ok, 1 invalid" in store.summary()
    assert store.retry("invalid") == 1
    assert store.pending(1).ids.tolist() == [rows.ids[1]]


@pytest.mark.parametrize("status", ("invalid", "failed"))
def test_only_simulations_that_are_not_ok_are_replaced(path, status):
    store = SimulationStore.create(path, PRIOR, (4, 3))
    rows = store.pending(0)
    x = rows.theta.clone()
    if status == "invalid":
        x[1] = torch.nan
        assert store.record(rows.ids, x) == 4
        assert store.record(rows.ids, x) == 1  # the invalid one, which stays invalid
    else:
        store.record_failures(rows.ids[1:2], "node down")
        store.record(rows.ids[[0, 2, 3]], x[[0, 2, 3]])
    assert f"3 ok, 1 {status}" in store.summary()
    assert store.record(rows.ids, rows.theta) == 1
    assert "level 0: 4 ok" in store.summary() and store.failures() == []
    assert torch.equal(next(store.batches(0)).x, rows.theta)
    assert store.record(rows.ids, rows.theta) == 0
    assert store.record_failures(rows.ids, "node down") == 0


def test_external_failures_are_stored_with_their_reason(path):
    store = SimulationStore.create(path, PRIOR, (4, 3))
    ids = store.pending(1).ids
    assert store.record_failures(ids[:2], "node down") == 2
    assert {(f.level, f.index, f.error) for f in store.failures()} == {
        (1, 0, "node down"),
        (1, 1, "node down"),
    }
    assert store.retry("failed") == 2 and store.failures() == []


@pytest.mark.parametrize(
    "change, named",
    [
        (dict(ids=[]), "ids must be one or more integers"),
        (dict(ids=[1.5]), "ids must be one or more integers"),
        (dict(ids=[1, 1, 3]), "twice"),
        (dict(ids=[1, 3, 999_999]), "999999"),
        (dict(ids=[1, 3, -1]), "-1"),
        (dict(ids=[0, 1, 3]), "belong to the levels"),
        (dict(x=torch.zeros(2, 2)), r"x has shape \(2, 2\)"),
        (dict(x=torch.zeros(3)), r"x has shape \(3,\)"),
        (dict(x_coarse=None), "need x_coarse"),
        (dict(x_coarse=torch.zeros(3, 5)), "one output of each"),
        (dict(cost=-1.0), "cost"),
        (dict(cost=[1.0, 2.0, 3.0, 4.0]), "cost"),
    ],
)
def test_bad_records_raise_with_their_name_and_write_nothing(path, change, named):
    store = SimulationStore.create(path, PRIOR, (4, 3))
    good = dict(ids=[1, 3, 5], x=torch.ones(3, 2), x_coarse=torch.zeros(3, 2), cost=1)
    before = contents(path)
    with pytest.raises(ValueError, match=named):
        store.record(**{**good, **change})
    assert contents(path) == before
    assert store.record(**good) == 3
    with pytest.raises(ValueError, match="must have shape"):
        store.record([0], torch.ones(1, 7))


def test_a_store_with_a_noise_sampler_requires_it(path):
    SimulationStore.create(path, PRIOR, (4, 3), noise=normal_noise)
    with pytest.raises(ValueError, match="noise=sampler"):
        SimulationStore.open(path).pending(0)
    with pytest.raises(ValueError, match="draws of the noise"):
        SimulationStore.open(path, noise=lambda n, g: torch.rand(n, 4, generator=g))
    assert len(SimulationStore.open(path, noise=normal_noise).pending(0)) == 4


def test_simulators_must_be_as_many_as_levels(path):
    store = SimulationStore.create(path, PRIOR, (4, 3), noise=normal_noise)
    with pytest.raises(ValueError, match="2 levels"):
        store.run([coarse], show_progress_bars=False)
