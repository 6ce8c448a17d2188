"""Figures show the values of the summary with their epochs and labels."""

from types import SimpleNamespace

import matplotlib
import numpy as np
import pytest
import torch
from matplotlib import pyplot as plt
from matplotlib.colors import to_hex
from sbi.inference import NPE

from sbi_multilevel import (
    MFNPE,
    MLNPE,
    HybridConfig,
    HybridNPE,
    TransferConfig,
)
from sbi_multilevel.diagnostics import EffectiveSampleSize
from sbi_multilevel.methods.hybrid.summary import HybridSummary
from sbi_multilevel.plots import compare, plot_training
from sbi_multilevel.plots.style import COLORS
from sbi_multilevel.training.history import curve
from tests.linear_gaussian import SilentTracker, prior, simulations

pytestmark = [
    pytest.mark.filterwarnings("ignore:Maximum number of epochs"),
    pytest.mark.filterwarnings("error:.*(layout|tight|glyph).*:UserWarning"),
]
QUICK = dict(max_num_epochs=4, training_batch_size=100)


@pytest.fixture(autouse=True)
def no_window():
    matplotlib.use("Agg")
    yield
    plt.close("all")


def trained(cls, sims=None, **options):
    trainer = cls(
        prior(),
        density_estimator="mdn",
        tracker=SilentTracker(),
        show_progress_bars=False,
        **options,
    )
    if sims is None:
        level = simulations((100,))[0]
        trainer.append_simulations(level.theta, level.x)
    else:
        trainer.append_multilevel_simulations(sims)
    trainer.train(**QUICK)
    return trainer


def lines(axes, label):
    return [line for line in axes.lines if line.get_label() == label]


def labels(axes):
    legend = axes.get_legend()
    return [] if legend is None else [text.get_text() for text in legend.get_texts()]


def assert_shows(line, points):
    assert np.array_equal(line.get_xdata(), points[0])
    assert np.array_equal(line.get_ydata(), points[1], equal_nan=True)


# ------------------------------------------------------------- training


@pytest.fixture(scope="module")
def multilevel():
    torch.manual_seed(1)
    return trained(MLNPE, simulations())


def test_a_multilevel_training_shows_all_metrics(multilevel):
    figure, axes = plot_training(multilevel, title="all")
    figure.canvas.draw()
    summary = multilevel.summary
    losses, levels, norms, angles, sizes = axes
    assert_shows(*lines(losses, "training"), curve(summary, "training_loss"))
    assert_shows(*lines(losses, "validation"), curve(summary, "validation_loss"))
    best = int(np.argmin(summary["validation_loss"]))
    (kept,) = lines(losses, "kept weights")
    assert list(kept.get_xdata()) == [best, best]
    for level in range(3):
        name = f"level {level}"
        points = curve(summary, f"training_loss_level_{level}")
        assert_shows(*lines(levels, name), points)
        points = curve(summary, f"gradient_norm_level_{level}")
        assert_shows(*lines(norms, name), points)
        drawn = [*lines(levels, name), *lines(norms, name)]
        assert {line.get_color() for line in drawn} == {COLORS[level]}
    assert_shows(*lines(norms, "step"), curve(summary, "gradient_norm"))
    for level in (1, 2):
        points = curve(summary, f"control_variate_level_{level}")
        assert_shows(*lines(angles, f"$\\beta_{level}$"), points)
    assert_shows(angles.lines[0], curve(summary, "gradient_cosine"))
    assert_shows(sizes.lines[0], curve(summary, "effective_sample_size"))
    assert [axis.get_ylabel() != "" for axis in axes] == [True] * 5
    assert axes[-1].get_xlabel() == "epoch" and figure.get_suptitle() == "all"


def test_stages_of_a_transfer_are_marked():
    trainer = trained(MFNPE, simulations())
    figure, (axes,) = plot_training(trainer)
    figure.canvas.draw()
    assert [text.get_text() for text in axes.texts] == ["level 0", "level 1", "level 2"]
    starts = [line.get_xdata()[0] for line in axes.lines if line.get_linestyle() == "-"]
    assert {4.5, 9.5} <= set(starts)
    solid = [line for line in axes.lines if len(line.get_xdata()) == 5][::2]
    assert [line.get_color() for line in solid] == list(COLORS[:3])
    assert [list(line.get_xdata()) for line in solid] == [
        [*range(start, start + 5)] for start in (0, 5, 10)
    ]
    assert labels(axes) == ["training", "validation", "kept weights"]
    # lines and labels of a stage have the color of its level, the legend has none
    assert [text.get_color() for text in axes.texts] == list(COLORS[:3])
    handles = axes.get_legend().legend_handles
    assert [handle.get_color() for handle in handles[:2]] == ["black"] * 2


def test_rehearsal_shows_gradients_of_the_second_stage_only():
    sims = simulations((200, 60))
    trainer = trained(MFNPE, sims, config=TransferConfig(rehearsal=0.5))
    _, (losses, levels, norms, sizes) = plot_training(trainer)
    assert [text.get_text() for text in losses.texts] == ["level 0", "levels 0, 1"]
    assert list(lines(levels, "level 0")[0].get_xdata()) == [*range(10)]
    for axes in (norms, sizes):
        assert list(axes.lines[0].get_xdata()) == [5, 6, 7, 8, 9]


@pytest.mark.parametrize("cls", (MLNPE, NPE))
def test_trainings_on_one_level_have_one_panel(cls):
    trainer = trained(cls)
    _, (axes,) = plot_training(trainer)
    assert_shows(*lines(axes, "training"), curve(trainer.summary, "training_loss"))
    assert len(axes.texts) == 0


def test_losses_are_drawn_into_the_axes_passed(multilevel):
    figure, (left, right) = plt.subplots(1, 2)
    found, axes = plot_training(multilevel, ax=right)
    assert found is figure and axes.tolist() == [right]
    assert len(left.lines) == 0 and lines(right, "training")


def test_very_large_losses_have_a_logarithmic_axis(multilevel):
    summary = {k: v for k, v in multilevel.summary.items()}
    summary["training_loss"] = [2.0, 1e5, float("nan"), 1e9, -1e12]
    figure, axes = plot_training(SimpleNamespace(summary=summary))
    figure.canvas.draw()
    assert axes[0].get_yscale() == "symlog"


def test_trainers_without_a_training_are_rejected():
    trainer = MLNPE(prior(), tracker=SilentTracker(), show_progress_bars=False)
    with pytest.raises(ValueError, match="Call `inference.train"):
        plot_training(trainer)
    with pytest.raises(ValueError, match="is a SimpleNamespace.*members"):
        plot_training(SimpleNamespace(members=(trainer,)))


# ------------------------------------------------------------- hybrid


def hybrid_summary(size):
    scores = {"none": -900.0, "shift": -1.5, "full (transformed tails)": -1.0}
    return HybridSummary(
        ("full (transformed tails), shift",),
        (scores,),
        {"with lower levels": 0.9, "prior": 0.1},
        {"with lower levels": -0.5, "high fidelity alone": -1.25, "prior": -2.0},
        num_epochs=12,
        effective_sample_size=size,
    )


def test_a_hybrid_shows_its_summary():
    size = EffectiveSampleSize(20, 55.0, (30.0, np.inf), 0.75, 0.1)
    inference = SimpleNamespace(hybrid_summary=hybrid_summary(size))
    figure, (maps, weights, scores, sizes) = plot_training(inference)
    figure.canvas.draw()
    kinds = [label.get_text() for label in maps.get_yticklabels()]
    assert kinds == ["none", "shift", "full (transformed tails)"]
    assert [line.get_xdata()[0] for line in maps.lines] == [-899.0, -0.5, 0.0]
    filled = [to_hex(line.get_markerfacecolor()) != "#ffffff" for line in maps.lines]
    assert filled == [False, True, True]
    names = [label.get_text() for label in weights.get_yticklabels()]
    assert names == ["prior", "high fidelity\nalone", "with lower\nlevels"]
    assert [bar.get_width() for bar in weights.patches] == [0.1, 0.0, 0.9]
    assert list(scores.lines[0].get_xdata()) == [-2.0, -1.25, -0.5]
    texts = [text.get_text() for text in sizes.texts]
    assert texts == [" actual: 20", "effective: 55"]
    assert "+0.75 ± 0.10" in sizes.get_title()
    assert any(list(line.get_xdata()) == [55.0] for line in sizes.lines)


@pytest.mark.parametrize("estimate", (np.nan, np.inf, 7.0))
def test_any_effective_sample_size_can_be_drawn(estimate):
    interval = (np.nan, np.nan) if np.isnan(estimate) else (5.0, np.inf)
    size = EffectiveSampleSize(20, estimate, interval, 0.1, 0.1)
    inference = SimpleNamespace(hybrid_summary=hybrid_summary(size))
    figure, axes = plot_training(inference)
    figure.canvas.draw()
    text = axes[-1].texts[-1].get_text()
    words = {"nan": "not identified", "inf": "too large", "7.0": "7"}
    assert words[str(estimate)] in text


def test_a_trained_hybrid_is_plotted():
    config = HybridConfig(num_members=2, level_maps=("none", "shift"))
    trainer = trained(HybridNPE, simulations((100, 12)), config=config)
    figure, axes = plot_training(trainer)
    assert len(axes) == 3
    trainer.estimate_gain()
    figure, axes = plot_training(trainer)
    figure.canvas.draw()
    assert len(axes) == 4
    # the axes passed show the losses of members
    figure, (left, right) = plt.subplots(1, 2)
    found, axes = plot_training(trainer, ax=right)
    figure.canvas.draw()
    assert found is figure and axes.tolist() == [right] and not left.lines
    names = ["with lower levels", "high fidelity alone"]
    runs = trainer.hybrid_summary.runs
    for index, name in enumerate(names):
        drawn = [line for line in right.lines if line.get_color() == COLORS[index]]
        members = [runs[name][f"member {number}"] for number in (1, 2)]
        assert_shows(
            *lines(right, name), (members[0][0].epochs, members[0][0].training_loss)
        )
        for run in [run for member in members for run in member]:
            assert any(
                np.array_equal(line.get_ydata(), run.validation_loss) for line in drawn
            )
            kept = (run.best_epoch, np.nanmin(run.validation_loss))
            assert kept in [
                (line.get_xdata()[0], line.get_ydata()[0])
                for line in drawn
                if line.get_marker() == "o"
            ]
        # both losses of each training and the kept weights
        assert len(drawn) == 3 * sum(map(len, members))
    assert set(labels(right)) == {
        *names,
        "pre-training",
        "training",
        "validation",
        "kept weights",
    }
    assert right.get_ylabel() == "loss [nats]"


def test_a_summary_without_losses_of_members_is_rejected():
    inference = SimpleNamespace(hybrid_summary=hybrid_summary(None))
    with pytest.raises(ValueError, match="no losses of members"):
        plot_training(inference, ax=plt.figure().subplots())


# ------------------------------------------------------------- posteriors


def samples(*shape):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(0))


def test_posteriors_are_overlaid_with_a_legend():
    first, second = samples(300, 2), samples(400, 2).double().numpy() + 1
    second[0, 0] = np.inf  # sbi drops it, in place
    before = first.clone(), second.copy()
    figure, axes = compare(
        {"low": first, "high": second}, truth=[0.5, 0.25], labels=["a", "b"]
    )
    figure.canvas.draw()
    assert labels(axes[1, 0]) == ["low", "high", "truth"]
    diagonal = axes[0, 0].lines
    assert [to_hex(line.get_color()) for line in diagonal[:2]] == [
        color.lower() for color in COLORS[:2]
    ]
    assert len({line.get_linestyle() for line in diagonal[:2]}) == 2
    peaks = [line.get_xdata()[np.argmax(line.get_ydata())] for line in diagonal[:2]]
    assert abs(peaks[0]) < 0.5 < peaks[1]
    assert np.allclose(diagonal[2].get_xdata(), 0.5)
    point = axes[0, 1].lines[-1]
    assert (point.get_xdata().item(), point.get_ydata().item()) == (0.25, 0.5)
    assert axes[0, 0].get_xlabel() == "a" and axes[1, 1].get_xlabel() == "b"
    assert axes[1, 0].get_xlabel() == ""
    assert torch.equal(first, before[0]) and np.array_equal(second, before[1])


def test_posteriors_are_sampled_at_the_observation():
    drawn = []

    class Posterior:
        def sample(self, shape, x, show_progress_bars):
            drawn.append((shape, x))
            return samples(*shape, 3)

    x_o = torch.ones(1, 4)
    limits = [[-4.0, 4.0]] * 3
    _, axes = compare({"a": Posterior()}, x_o, num_samples=50, limits=limits)
    assert axes.shape == (3, 3) and drawn == [((50,), x_o)]
    assert axes[0, 1].get_xlim() == (-4.0, 4.0)


def test_one_parameter_has_one_panel():
    figure, axes = compare({"a": samples(50, 1), "b": samples(60, 1) + 1})
    figure.canvas.draw()
    assert axes.shape == (1, 1) and labels(axes[0, 0]) == ["a", "b"]


@pytest.mark.parametrize("layout", (None, "constrained"))
def test_posteriors_are_drawn_into_the_axes_passed(layout):
    figure = plt.figure(layout=layout)
    figure.suptitle("mine")
    margins = figure.subplotpars.top
    left, right = figure.subfigures(1, 2)
    axes = right.subplots(2, 2)
    both = {"a": samples(50, 2), "b": samples(60, 2) + 1}
    found, grid = compare(both, axes=axes, truth=torch.zeros(2), title="not mine")
    figure.canvas.draw()
    assert found is right and grid.tolist() == axes.tolist()
    assert labels(axes[1, 0]) == ["a", "b", "truth"]
    assert not left.axes and len(plt.get_fignums()) == 1
    assert figure.get_suptitle() == "mine" and not right.get_suptitle()
    assert figure.subplotpars.top == margins


@pytest.mark.parametrize("as_array", (True, False))
def test_one_parameter_is_drawn_into_the_axes_passed(as_array):
    figure, axes = plt.subplots()
    given = np.array([[axes]]) if as_array else axes
    found, grid = compare({"a": samples(50, 1)}, axes=given, labels=["mu"])
    figure.canvas.draw()
    assert found is figure and grid.shape == (1, 1) and grid[0, 0] is axes
    assert labels(axes) == ["a"] and axes.get_xlabel() == "mu" and len(axes.lines) == 1


def test_a_new_figure_has_the_size_and_title_passed():
    figure, _ = compare({"a": samples(50, 2)}, figsize=(3.0, 4.0), title="mine")
    assert figure.get_suptitle() == "mine"
    assert figure.get_size_inches().tolist() == [3.0, 4.0]


@pytest.mark.parametrize(
    "posteriors, options, message",
    [
        ({}, {}, "empty"),
        ({"a": samples(9, 2), "b": samples(9, 3)}, {}, r"posteriors\['b'\] has 3"),
        ({"a": samples(9)}, {}, r"posteriors\['a'\] has shape \(9,\)"),
        ([samples(9, 2)], {}, "posteriors is a list. Pass a dict of names and"),
        ({"a": samples(9, 2)}, {"truth": torch.zeros(3)}, "truth has 3"),
        ({"a": samples(9, 2)}, {"labels": ["one"]}, "labels has 1"),
        ({"a": samples(9, 2)}, {"limits": [[0, 1]] * 3}, "limits has 3"),
        (
            {"a": samples(9, 2)},
            {"axes": np.empty((2, 3))},
            r"axes has shape \(2, 3\)",
        ),
        ({"a": samples(9, 2)}, {"axes": np.empty(2)}, r"axes has shape \(1, 2\)"),
    ],
)
def test_invalid_arguments_are_rejected(posteriors, options, message):
    with pytest.raises(ValueError, match=message):
        compare(posteriors, **options)
