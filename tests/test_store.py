"""Stores: resumed runs equal uninterrupted ones, and no simulation is lost."""

import json
import sys
import warnings

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sbi.utils import BoxUniform

from sbi_multilevel import SimulationStore, TooManyFailures
from tests.two_levels import PRIOR, assert_same, coarse, contents, fine, normal_noise
from tests.two_levels import simulate as run_

zarr = pytest.importorskip("zarr")

ROWS = (60, 25)


def run(n=ROWS, **options):
    return run_(n=n, **options)


class Counted:
    """A simulator that records its theta, and raises an interrupt after some."""

    def __init__(self, simulator, stop_after=None):
        self.simulator, self.stop_after, self.rows = simulator, stop_after, []
        self.__qualname__ = simulator.__qualname__

    def __call__(self, theta, noise):
        if self.stop_after is not None and len(self.rows) >= self.stop_after:
            raise KeyboardInterrupt
        self.rows += [tuple(row) for row in theta.tolist()]
        return self.simulator(theta, noise)


@pytest.fixture
def path(tmp_path):
    return tmp_path / "run.zarr"


# ------------------------------------------------------------- the same arrays


@settings(max_examples=10, deadline=None)
@given(batch=st.integers(1, 70), chunk=st.integers(1, 70), seed=st.integers(0, 2**40))
def test_a_store_holds_the_same_simulations_as_memory(
    tmp_path_factory, batch, chunk, seed
):
    path = tmp_path_factory.mktemp("store") / "run.zarr"
    SimulationStore.create(
        path, PRIOR, ROWS, noise=normal_noise, seed=seed, chunk_size=chunk
    )
    stored = run(store=path, seed=seed, simulation_batch_size=batch)
    assert_same(stored, run(seed=seed))


@pytest.mark.parametrize("stop_after", (0, 1, 13, 59))
def test_an_interrupted_run_resumes_without_repeating_simulations(path, stop_after):
    first = Counted(coarse, stop_after)
    with pytest.raises(KeyboardInterrupt):
        run(simulators=(first, fine), store=path, simulation_batch_size=1)
    second = Counted(coarse)
    resumed = run(simulators=(second, fine), store=path, simulation_batch_size=1)
    assert_same(resumed, run())
    level_0 = [row for row in first.rows + second.rows]
    assert len(level_0) == len(set(level_0)) == sum(ROWS)


def test_a_finished_run_is_not_run_again(path):
    before = run(store=path)
    again = Counted(coarse)
    assert_same(run(simulators=(again, fine), store=path), before)
    assert again.rows == []


def test_larger_numbers_add_simulations_and_smaller_ones_read_the_first(path):
    run(store=path)
    counted = Counted(coarse)
    more = run(n=(2_500, 30), simulators=(counted, fine), store=path)
    assert_same(more, run(n=(2_500, 30)))
    assert len(counted.rows) == 2_500 - ROWS[0] + 30 - ROWS[1]
    assert_same(run(n=(10, 5), store=path), run(n=(10, 5)))


def test_zarr_alone_reads_a_store(path):
    sims = run(store=path, costs=(1.0, 2.0))
    group = zarr.open_group(str(path), mode="r")
    assert group.attrs["statuses"]["1"] == "ok"
    assert np.array_equal(group["level_1/x"][:], sims[1].x.numpy())
    assert np.array_equal(group["level_1/x_coarse"][:], sims[1].x_coarse.numpy())
    assert (group["level_0/status"][:] == 1).all()
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # nothing in it that zarr does not know
        assert {name for name, _ in group.members()} == {"level_0", "level_1"}


def test_memory_mapped_simulations_and_batches_are_the_same(path, tmp_path):
    def sometimes_nan(theta, noise):
        return torch.where(theta[:, :1] > 0.8, torch.nan, fine(theta, noise))

    with pytest.warns(UserWarning, match="NaN or inf"):
        sims = run(simulators=(coarse, sometimes_nan), store=path)
    store = SimulationStore.open(path)
    mapped = store.to_simulations(memory_map=tmp_path / "map")
    assert_same(mapped, sims)
    assert mapped.costs == sims.costs
    mapped[0].x[:] = 0  # changes no file
    assert_same(store.to_simulations(memory_map=tmp_path / "map"), sims)
    parts = list(store.batches(1, batch_size=4))
    assert len(parts) > 5
    assert torch.equal(torch.cat([part.x for part in parts]), sims[1].x)


# ------------------------------------------------------------ another run


@pytest.mark.parametrize(
    "other, named",
    [
        (dict(seed=3), "seed: 0 stored, 3 requested"),
        (
            dict(prior=BoxUniform(-2 * torch.ones(2), torch.ones(2))),
            "draws from the pri",
        ),
        (dict(prior=BoxUniform(-torch.ones(3), torch.ones(3))), "draws from the prior"),
        (dict(noise=None), "draws of the noise: .*'seeds' requested"),
        (dict(noise=lambda n, g: torch.rand(n, 4, generator=g)), "draws of the noise"),
        (dict(simulators=(fine, coarse)), r"simulators: \['coarse', 'fine'\] stored"),
        (
            dict(simulators=(coarse, fine, fine), n=(60, 25, 2)),
            "number of levels: 2 stored, 3 requested",
        ),
    ],
)
def test_a_store_of_another_run_raises_and_is_not_changed(path, other, named):
    run(store=path)
    before = contents(path)
    with pytest.raises(ValueError, match=named):
        run(store=path, **{"n": (70, 25), **other})
    if "simulators" not in other or len(other["simulators"]) == 3:
        assert contents(path) == before
    assert_same(run(store=path), run())


def test_a_path_without_a_store_raises_and_is_not_changed(tmp_path):
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(ValueError, match="exists and is not a store"):
        run(store=tmp_path)
    with pytest.raises(ValueError, match="does not hold a store"):
        SimulationStore.open(tmp_path / "nothing")
    zarr.open_group(str(tmp_path / "other.zarr"), mode="w")
    with pytest.raises(ValueError, match="exists and is not a store"):
        run(store=tmp_path / "other.zarr")
    assert [p.name for p in tmp_path.glob("*.txt")] == ["notes.txt"]


def test_a_newer_format_raises(path):
    run(store=path)
    meta = json.loads((path / "zarr.json").read_text())
    meta["attributes"]["version"] = 99
    (path / "zarr.json").write_text(json.dumps(meta))
    with pytest.raises(ValueError, match="version 99"):
        SimulationStore.open(path)


def test_a_missing_zarr_raises_with_the_install_command(path, monkeypatch):
    monkeypatch.setitem(sys.modules, "zarr", None)
    with pytest.raises(ImportError, match=r"pip install 'sbi_multilevel\[store\]'"):
        run(store=path)
    assert len(run()) == 2  # memory needs none


def test_a_level_without_valid_simulations_raises(path):
    store = SimulationStore.create(path, PRIOR, (4, 3))
    with pytest.raises(ValueError, match="Level 0 has 0 valid simulations of 4"):
        store.to_simulations()


def test_too_many_failures_keep_finished_simulations(path):
    def bad(theta, noise):
        raise ArithmeticError("step size 0")

    bad.__qualname__ = "fine"
    with pytest.raises(TooManyFailures, match="5 x ArithmeticError: step size 0"):
        run(simulators=(coarse, bad), store=path, simulation_batch_size=1)
    store = SimulationStore.open(path)
    assert "level 0: 60 ok" in store.summary() and "5 failed" in store.summary()
    resumed = run(store=path, retry=("failed",))
    assert_same(resumed, run())


def test_growing_with_another_prior_changes_nothing(path):
    store = SimulationStore.create(path, PRIOR, (30, 3))
    marked = np.full((20, 2), 0.5, "float32")
    store.tables[0].columns["theta"][:20] = marked
    with pytest.raises(ValueError, match="prior draws other parameters"):
        SimulationStore.create(path, PRIOR, (40, 3))
    assert store.num_simulations == (30, 3)


def test_a_partial_file_of_an_interrupted_run_is_ignored(path):
    path.mkdir()
    (path / "zarr.123.partial").write_text("{")
    assert_same(run(store=path), run())


def test_an_incomplete_store_raises_and_can_be_completed(path):
    from sbi_multilevel.storage import layout
    from sbi_multilevel.storage.fingerprint import Fingerprint

    fingerprint = Fingerprint.of(PRIOR, 2, 0, normal_noise)
    layout.make(path, fingerprint, (5, 5))
    with pytest.raises(ValueError, match="lacks level 0.*Run it again"):
        SimulationStore.open(path, read_only=True).summary()
    assert_same(run(store=path), run())


def test_mapped_tensors_keep_their_file(path, tmp_path):
    run(store=path)
    store = SimulationStore.open(path)
    first = store.to_simulations(memory_map=tmp_path / "map")
    again = store.to_simulations((10, 2), memory_map=tmp_path / "map")
    assert_same(first, run())
    assert_same(again, run(n=(10, 2)))
    empty = SimulationStore.create(tmp_path / "empty.zarr", PRIOR, (5, 5))
    with pytest.raises(ValueError, match="0 valid simulations"):
        empty.to_simulations(memory_map=tmp_path / "map")


def test_names_of_simulators_are_read_again_and_can_be_changed(path):
    store = SimulationStore.create(path, PRIOR, ROWS, noise=normal_noise)
    run(store=path)
    with pytest.raises(ValueError, match="or `rename_simulators`, if only names"):
        store.run([fine, coarse], show_progress_bars=False)
    with pytest.raises(ValueError, match="simulators has 1 entries"):
        store.rename_simulators([fine])
    assert SimulationStore.open(path).fingerprint.simulators == ["coarse", "fine"]
    store.rename_simulators([fine, coarse])
    store.run([fine, coarse], show_progress_bars=False)


@pytest.mark.parametrize(
    "call, named",
    [
        (lambda s: s.run([coarse, fine], num_simulations=(5,)), "no more than"),
        (lambda s: s.run([coarse, fine], num_simulations=(500, 500)), "no more than"),
        (lambda s: s.to_simulations((4,)), "no more than"),
        (lambda s: s.create(s.path, PRIOR, (-5, 10)), "num_simulations"),
        (lambda s: s.retry("lost"), "'lost' is unknown"),
    ],
)
def test_bad_numbers_are_refused_by_name(path, call, named):
    run(store=path)
    store = SimulationStore.open(path, noise=normal_noise)
    with pytest.raises(ValueError, match=named):
        call(store)


def test_numbers_may_be_numpy_integers_and_a_status_may_be_text(path):
    sims = run(n=np.array(ROWS), store=path, simulation_batch_size=np.int64(7))
    assert_same(sims, run(store=path, retry="ok"))


def test_a_store_whose_growth_was_interrupted_can_grow_again(path, monkeypatch):
    from sbi_multilevel.simulation import table

    run(store=path)

    def killed(*arguments):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(table, "simulation_seeds", killed)
        with pytest.raises(KeyboardInterrupt):
            run(n=(100, 40), store=path)
    assert SimulationStore.open(path).num_simulations == ROWS
    assert_same(run(store=path), run())
    assert_same(run(n=(100, 40), store=path), run(n=(100, 40)))
