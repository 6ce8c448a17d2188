"""The pyramidal cell: its morphology, summaries, stored simulations and simulator."""

import importlib.util
import json
import math
import subprocess
import sys
from dataclasses import replace

import numpy as np
import pytest
import torch
from sbi.utils import BoxUniform

from sbi_multilevel import simulate_multilevel
from sbi_multilevel_benchmarks.neuron import simulate, summaries
from sbi_multilevel_benchmarks.neuron.__main__ import main
from sbi_multilevel_benchmarks.neuron.morphology import (
    Branch,
    Tree,
    read_swc_file,
    thick_tufted,
)
from sbi_multilevel_benchmarks.neuron.simulate import CellSimulator, StepCurrent
from sbi_multilevel_benchmarks.registry import get_task
from sbi_multilevel_benchmarks.stored_task import STORE_VARIABLE, Runs, settings_folder
from sbi_multilevel_benchmarks.tasks import l5pc

DT = 0.025
TIMES = torch.arange(4_801) * DT
has = importlib.util.find_spec
needs_jaxley = pytest.mark.skipif(not has("jaxley"), reason="jaxley is not installed")
needs_zarr = pytest.mark.skipif(not has("zarr"), reason="zarr is not installed")
SMALL = Tree((
    Branch("soma", -1, 20.0, 10.0, 10.0),
    Branch("basal", 0, 80.0, 1.0, 0.6),
    Branch("apical", 0, 120.0, 1.5, 1.0),
    Branch("apical", 2, 60.0, 0.8, 0.5),
))
SWC = """# a soma, and two branches
1 1 0 0 0 10 -1
2 1 20 0 0 10 1
3 3 20 10 0 1 2
4 3 20 90 0 1 3
5 4 30 0 0 1.5 2
6 4 150 0 0 1.5 5
"""


# ------------------------------------------------------------- morphology


def test_the_morphology_is_a_tree_of_realistic_size():
    tree = thick_tufted()
    assert 90 <= len(tree.branches) <= 155
    soma, *others = tree.branches
    assert soma.kind == "soma" and soma.parent == -1
    assert all(0 <= b.parent < i for i, b in enumerate(others, start=1))
    length = {
        kind: sum(b.length for b in others if b.kind == kind)
        for kind in ("basal", "apical")
    }
    assert 4_000 < length["basal"] < 6_000 and 5_000 < length["apical"] < 8_000
    assert min(min(b.start, b.end) for b in others) >= 0.27
    # tips: branches without daughters
    parents = {b.parent for b in tree.branches}
    kinds = [b.kind for i, b in enumerate(tree.branches) if i not in parents]
    assert kinds.count("basal") == 32 and kinds.count("apical") == 32
    assert thick_tufted() == tree and thick_tufted().digest == tree.digest
    assert SMALL.digest != tree.digest


def test_compartments_keep_the_area_of_branches():
    for tree in (thick_tufted(), SMALL):
        for n in (1, 3, 8):
            lengths = np.repeat([b.length / n for b in tree.branches], n)
            area = 2 * np.pi * (tree.radii(n) * lengths).sum()
            assert area == pytest.approx(sum(b.area for b in tree.branches))


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        ("1 1 0 0 0 1\n", "7 numbers"),
        ("some text\n", "could not convert"),
        ("1 1 0 0 0 nan -1\n", "NaN"),
        ("1 1 0 0 0 -1 -1\n", "positive"),
        ("1 3 0 0 0 1 -1\n", "soma"),
        ("1 1 0 0 0 1 -1\n2 3 0 0 9 1 -1\n", "one point"),
        ("1 1 0 0 0 1 -1\n1 3 0 0 9 1 1\n", "repeat"),
        ("1 1 0 0 0 1 -1\n2 3 0 0 9 1 7\n", "after their parents"),
    ],
)
def test_files_that_hold_no_morphology_raise(content, reason, tmp_path):
    file = tmp_path / "cell.swc"
    file.write_text(content)
    with pytest.raises(ValueError, match=f"{reason}.*Name an SWC file"):
        read_swc_file(file)


def test_files_are_identified_by_their_content(tmp_path):
    file, same = tmp_path / "cell.swc", tmp_path / "copy.swc"
    file.write_text(SWC)
    same.write_text(SWC)
    digest = read_swc_file(file).digest
    assert digest == read_swc_file(same).digest
    same.write_text(SWC.replace("150", "151"))
    assert digest != read_swc_file(same).digest
    with pytest.raises(ValueError, match="is no file. Name an SWC file by `--data"):
        read_swc_file(tmp_path / "missing.swc")


# ------------------------------------------------------------- summaries


@pytest.mark.parametrize("period", [4.0, 7.0, 20.0])
def test_each_period_of_a_large_sine_is_a_spike(period):
    voltage = -20 + 60 * torch.sin(2 * math.pi * (TIMES - 10.01) / period)
    x = summaries.summarize(voltage.unsqueeze(0), DT)
    # upward crossings of -10 mV come shortly after the start of each period
    assert x[0, 0] == math.ceil(100 / period)
    if 100 % period == 0:
        assert x[0, 3].item() == pytest.approx(-20, abs=0.1)


def test_noise_at_the_threshold_is_no_spike():
    noise = torch.randn(50, 4_801, generator=torch.Generator().manual_seed(0))
    plateau = torch.where(TIMES < 50, -60.0, summaries.THRESHOLD) + noise
    onsets = summaries.spike_onsets(plateau)
    assert (onsets.sum(dim=1) == 1).all()
    # a voltage that begins above the threshold did not rise
    assert not summaries.spike_onsets(torch.zeros(2, 30)).any()
    assert not summaries.spike_onsets(torch.full((2, 30), -15.0)).any()


def test_spikes_outside_of_the_step_are_not_counted():
    def pulse(start):
        is_on = (start - TIMES).le(0) & (start + 1 - TIMES).gt(0)
        return torch.where(is_on, 30.0, -65.0)

    starts = (5.0, 9.5, 10.5, 109.5, 110.5, 115.0)
    voltage = torch.stack([pulse(start) for start in starts])
    counts = summaries.summarize(voltage, DT)[:, 0]
    assert counts.tolist() == [0, 0, 1, 1, 0, 0]


def test_summaries_of_lines_are_exact():
    voltage = torch.stack((torch.full_like(TIMES, -65.0), -70 + 0.1 * TIMES))
    x = summaries.summarize(voltage, DT)
    assert x.shape == (2, 4) and x.dtype == torch.float32
    assert torch.allclose(x[0], torch.tensor([0.0, -65.0, 0.0, -65.0]))
    # 400 times before the step, 40 of them in its last tenth, 4 000 in it
    spread = 0.1 * DT * ((40**2 - 1) / 12) ** 0.5
    expected = [0, -70 + 0.1 * DT * 199.5, spread, -70 + 0.1 * (10 + DT * 1999.5)]
    assert torch.allclose(x[1], torch.tensor(expected), atol=1e-4)


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf, 151.0, -151.0])
def test_implausible_traces_are_invalid_alone(value):
    voltage = torch.full((3, 4_801), -65.0)
    voltage[1, -1] = value
    invalid = summaries.summarize(voltage, DT).isnan()
    assert invalid.all(dim=1).tolist() == [False, True, False]
    assert not invalid[[0, 2]].any()
    with pytest.raises(ValueError, match="voltage has shape"):
        summaries.summarize(voltage[:, :4_000], DT)


# ------------------------------------------------------------- current


def test_the_current_is_a_step_with_noise_at_all_times():
    noise = torch.randn(3, simulate.NUM_STEPS).numpy()
    for name, amplitude, duration in (
        ("section-4.2", 0.3, 100),
        ("appendix-f", 0.55, 100),
        ("code", 0.55, 10),
    ):
        current = l5pc.CURRENTS[name].values(noise)
        step = current - 0.01 * noise
        on = slice(400, 400 + 40 * duration)
        assert np.allclose(step[:, on], amplitude)
        assert np.allclose(np.delete(step, on, axis=1), 0)


# ------------------------------------------------------------- stored simulations


class Counted:
    """A simulator that is invalid for a third of theta, and counts its simulations."""

    def __init__(self, scale):
        self.scale, self.number = scale, 0

    def __call__(self, theta, noise):
        self.number += len(theta)
        x = self.scale * theta + noise
        return torch.where(theta > 1 / 3, x, torch.nan).repeat(1, 3)


def toy_runs():
    """Runs of two counted simulators of one parameter."""
    simulators = (Counted(1.0), Counted(2.0))
    prior = BoxUniform(torch.zeros(1), torch.ones(1))

    def noise(n, generator):
        return torch.randn(n, 1, generator=generator)

    return Runs(simulators, prior, noise, (1.0, 2.0)), simulators


def first(runs, num_simulations, seed, store=None):
    """The first simulations, without the warning of invalid ones."""
    with pytest.warns(UserWarning):
        return runs.first(num_simulations, seed, store)


def columns(sims):
    """Theta, x and x of the level below of all levels."""
    levels = [(level.theta, level.x, level.x_coarse) for level in sims]
    return [value for level in levels for value in level if value is not None]


def test_invalid_simulations_are_replaced_by_later_draws():
    runs, _ = toy_runs()
    sims = first(runs, (50, 20), 1)
    assert sims.num_simulations == (50, 20) and sims.costs == (1.0, 2.0)
    assert all((level.theta > 1 / 3).all() for level in sims)
    with pytest.warns(UserWarning):
        drawn = simulate_multilevel(
            runs.simulators,
            runs.prior,
            (200, 100),
            noise=runs.noise,
            seed=1,
            show_progress_bars=False,
        )
    for mine, valid in zip(sims, drawn):
        assert torch.equal(mine.theta, valid.theta[: len(mine)])
        assert torch.equal(mine.x, valid.x[: len(mine)])


@needs_zarr
def test_stored_simulations_are_those_without_a_store_and_run_once(tmp_path):
    store = tmp_path / "pairs-1.zarr"
    for counts in ((30, 10), (90, 40), (20, 40)):
        runs, _ = toy_runs()
        stored = first(runs, counts, 1, store)
        pairs = zip(columns(stored), columns(first(toy_runs()[0], counts, 1)))
        assert all(torch.equal(a, b) for a, b in pairs)
    runs, simulators = toy_runs()
    again = first(runs, (90, 40), 1, store)
    assert [s.number for s in simulators] == [0, 0]
    assert again.num_simulations == (90, 40)


@needs_zarr
def test_an_interrupted_store_is_continued(tmp_path):
    class Interrupted(Counted):
        def __call__(self, theta, noise):
            if self.number >= 64:
                raise KeyboardInterrupt
            return super().__call__(theta, noise)

    Interrupted.__qualname__ = Counted.__qualname__  # a store compares names
    store = tmp_path / "pairs-1.zarr"
    runs, (_, high) = toy_runs()
    low = Interrupted(1.0)
    with pytest.raises(KeyboardInterrupt):
        Runs((low, high), runs.prior, runs.noise, runs.costs).first((90, 5), 1, store)
    runs, (low, _) = toy_runs()
    sims = first(runs, (90, 5), 1, store)
    whole, (other, _) = toy_runs()
    pairs = zip(columns(sims), columns(first(whole, (90, 5), 1)))
    assert all(torch.equal(a, b) for a, b in pairs)
    assert 0 < low.number < other.number


def test_seeds_have_no_simulation_in_common():
    thetas = [first(toy_runs()[0], (40, 20), seed)[1].theta for seed in range(5)]
    assert len(torch.cat(thetas).unique()) == 100


def test_the_folder_is_named_by_all_settings(tmp_path):
    settings = {"current": {"amplitude": 0.3}, "compartments": [1, 8]}
    folder = settings_folder(tmp_path, "l5pc", settings)
    assert settings_folder(tmp_path, "l5pc", dict(reversed(settings.items()))) == folder
    assert json.loads((folder / "settings.json").read_text()) == settings
    changed = settings | {"compartments": [1, 4]}
    assert settings_folder(tmp_path, "l5pc", changed) != folder


# ------------------------------------------------------------- task


def test_importing_the_task_does_not_import_jax():
    code = (
        "import sys; import sbi_multilevel_benchmarks.tasks.l5pc; "
        "sys.exit(any(n in sys.modules for n in ('jax', 'jaxley')))"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_the_task_without_jaxley_raises_with_the_remedy(monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ValueError, match="pip install 'sbi_multilevel_benchmarks"):
        get_task("l5pc")


@needs_jaxley
def test_arguments_of_the_task_are_checked(monkeypatch, tmp_path, capsys):
    monkeypatch.delenv(STORE_VARIABLE, raising=False)
    with pytest.raises(ValueError, match="current='appendix' must be one of"):
        l5pc.L5PC(current="appendix")
    with pytest.raises(ValueError, match="axial_resistivity=0 must be positive"):
        l5pc.L5PC(axial_resistivity=0)
    with pytest.raises(ValueError, match="Pass double_precision=True"):
        l5pc.L5PC(axial_resistivity=100.0)
    with pytest.raises(ValueError, match="num_observations=1 must be at least 2"):
        l5pc.L5PC(num_observations=1)
    with pytest.raises(ValueError, match="is no file"):
        get_task("l5pc", tmp_path / "missing.swc")
    with pytest.raises(SystemExit):
        main(["--seeds", "1"])
    assert STORE_VARIABLE in capsys.readouterr().err


@needs_jaxley
def test_settings_differ_between_options_but_not_seeds(tmp_path):
    file = tmp_path / "cell.swc"
    file.write_text(SWC)
    tasks = [
        l5pc.L5PC(folder=tmp_path),
        l5pc.L5PC(folder=tmp_path, current="code"),
        l5pc.L5PC(folder=tmp_path, axial_resistivity=2_000.0),
        l5pc.L5PC(folder=tmp_path, double_precision=True),
        l5pc.L5PC(file, folder=tmp_path),
    ]
    assert len({task.folder for task in tasks}) == 5
    assert l5pc.L5PC(folder=tmp_path, num_observations=5).folder == tasks[0].folder
    assert all(task.folder.parent == tmp_path for task in tasks)


# ------------------------------------------------------------- simulator


def silent(morphology, num_compartments, amplitude=0.0, resistivity=5_000.0):
    """A simulator without noise, in double precision."""
    current = StepCurrent(amplitude, 100.0, noise=0.0)
    return CellSimulator(
        morphology, num_compartments, current, resistivity, double_precision=True
    )


def voltage_of(simulator, *theta):
    """The voltage for one theta."""
    noise = torch.zeros(1, simulate.NUM_STEPS)
    return simulator.voltages(torch.tensor([theta]), noise)[0].double()


@needs_jaxley
@pytest.mark.parametrize("num_compartments", [1, 8])
def test_a_cell_without_channels_relaxes_to_the_leak(num_compartments):
    voltage = voltage_of(silent(SMALL, num_compartments), 0.0, 0.0)
    assert voltage.shape == (simulate.NUM_STEPS + 1,)
    # implicit Euler with the time constant 1 uF/cm^2 / 0.3 mS/cm^2, in any morphology
    decay = (1 + DT * 0.3) ** -torch.arange(simulate.NUM_STEPS + 1).double()
    exact = -54.3 + (-65 + 54.3) * decay
    assert torch.allclose(voltage, exact, atol=1e-6)
    single = replace(silent(SMALL, num_compartments), double_precision=False)
    assert torch.allclose(voltage_of(single, 0.0, 0.0), exact, atol=0.05)


@needs_jaxley
def test_a_cell_without_resistance_is_one_compartment():
    area = sum(branch.area for branch in SMALL.branches) * 1e-8  # cm^2
    for num_compartments in (1, 4):
        simulator = silent(SMALL, num_compartments, amplitude=0.02, resistivity=0.5)
        voltage = voltage_of(simulator, 0.0, 0.0)
        rise = 0.02e-9 / (area * 3e-4) * 1e3  # mV, current / conductance
        assert voltage[4_350].item() == pytest.approx(-54.3 + rise, abs=0.01)


@needs_jaxley
def test_the_cell_of_hodgkin_and_huxley_rests_at_minus_65_and_fires_if_driven():
    rest = voltage_of(silent(SMALL, 1), 0.12, 0.036)
    assert (rest + 65).abs().max() < 0.2
    driven = voltage_of(silent(SMALL, 1, amplitude=0.3), 0.12, 0.036)
    assert summaries.summarize(driven.unsqueeze(0), DT)[0, 0] >= 1
    assert driven.min() > -80 and 0 < driven.max() < 50
    # without sodium there are no spikes
    blocked = voltage_of(silent(SMALL, 1, amplitude=0.3), 0.0, 0.036)
    assert blocked.max() < -10


@needs_jaxley
def test_rates_are_finite_where_jaxley_divides_zero_by_zero():
    channel = simulate._stable_channel()
    values = np.array([-40.0, -55.0, -40.0 + 1e-6, -55.0 - 1e-6, -65.0], np.float32)
    alpha_m = np.asarray(channel.m_gate(values)[0])
    alpha_n = np.asarray(channel.n_gate(values)[0])
    assert np.isfinite(alpha_m).all() and np.isfinite(alpha_n).all()
    assert alpha_m[[0, 2]] == pytest.approx([1.0, 1.0])
    assert alpha_n[[1, 3]] == pytest.approx([0.1, 0.1])
    # Hodgkin and Huxley (1952) at rest
    assert alpha_m[4] == pytest.approx(2.5 / (np.exp(2.5) - 1), rel=1e-5)
    assert alpha_n[4] == pytest.approx(0.1 / (np.e - 1), rel=1e-5)


@needs_jaxley
def test_simulations_do_not_depend_on_their_number():
    simulator = CellSimulator(SMALL, 1, l5pc.CURRENTS["section-4.2"], 5_000.0)
    theta = l5pc.L5PC.prior.sample((11,))
    noise = l5pc.L5PC.noise(11, torch.Generator().manual_seed(0))
    voltage = simulator.voltages(theta, noise)
    assert voltage.shape == (11, simulate.NUM_STEPS + 1)
    assert torch.isfinite(simulator(theta, noise)).all()
    for rows in (slice(0, 3), slice(8, 11)):
        part = simulator.voltages(theta[rows], noise[rows])
        assert torch.allclose(part[:, :400], voltage[rows, :400], atol=1e-3)


@needs_jaxley
def test_a_file_is_a_morphology(tmp_path):
    file = tmp_path / "cell.swc"
    file.write_text(SWC)
    shape = read_swc_file(file)
    cell = shape.build(4)
    assert cell.nodes["length"].sum() == pytest.approx(230, abs=25)
    voltage = voltage_of(silent(shape, 4), 0.0, 0.0)
    assert voltage[-1].item() == pytest.approx(-54.3, abs=0.01)


@needs_jaxley
@needs_zarr
@pytest.mark.slow
def test_the_task_has_paired_levels_and_plausible_spikes(tmp_path, monkeypatch):
    monkeypatch.setenv(STORE_VARIABLE, str(tmp_path))
    options = ["--num-simulations", "48,16", "--seeds", "1", "--test", "4"]
    main(options)
    task = l5pc.L5PC(num_observations=4)
    for simulator in task.simulators:
        monkeypatch.setattr(type(simulator), "voltages", None)  # only read from now on
    sims = task.simulate((40, 16), seed=0)
    assert sims.num_simulations == (40, 16) and sims[1].x_coarse is not None
    low, high = sims[1].x_coarse.double(), sims[1].x.double()
    assert torch.allclose(low[:, 1], high[:, 1], atol=1.0)
    gaps = (low[:, 3] - high[:, 3]).abs()
    assert 0.01 < gaps.median() < 2
    counts = sims[0].x[:, 0]
    assert (counts >= 1).float().mean() > 0.5 and counts.max() < 15
    assert len(counts.unique()) > 3
    assert task.observations.shape == (4, 4) and task.true_theta.shape == (4, 2)
    assert torch.isfinite(task.observations).all()
    assert torch.isfinite(task.prior.log_prob(task.true_theta)).all()
    with pytest.raises(TypeError, match="not known"):
        task.reference(0)
