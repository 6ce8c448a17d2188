"""Effective sample size of training with lower fidelities."""

import math

import numpy as np
import pytest
from matplotlib import pyplot as plt

from sbi_multilevel.diagnostics import EffectiveSampleSize, effective_sample_size
from sbi_multilevel.plots.hybrid import _plot_effective_sample_size


def law(n, limit=1.0, slope=50.0):
    return np.full(80, limit + slope / n)


def noisy(n, seed, deviation=0.05):
    return law(n) + deviation * np.random.default_rng(seed).normal(size=80)


@pytest.mark.parametrize("limit", (-3.0, 0.0, 10.0))
@pytest.mark.parametrize("size", (30, 100, 1_000))
def test_the_estimate_is_exact_if_losses_follow_the_law(limit, size):
    losses = [law(n, limit) for n in (size, 100, 50)]
    result = effective_sample_size(*losses, num_high=100)
    assert result.estimate == pytest.approx(size)
    assert result.interval == pytest.approx((size, size), rel=1e-6)
    assert result.gain == pytest.approx(50 / 100 - 50 / size)
    assert result.gain_error == pytest.approx(0.0, abs=1e-12)


@pytest.mark.parametrize("loss", (1.0, 0.9))
def test_the_estimate_is_infinite_at_or_below_the_limit(loss):
    result = effective_sample_size(np.full(80, loss), law(100), law(50), num_high=100)
    assert result.estimate == math.inf
    assert result.interval == (math.inf, math.inf)


def test_the_estimate_is_nan_if_more_simulations_do_not_improve_the_loss():
    result = effective_sample_size(law(400), law(100), law(120), num_high=100)
    assert math.isnan(result.estimate)
    assert all(math.isnan(end) for end in result.interval)
    assert result.gain == pytest.approx(50 / 100 - 50 / 400)


@pytest.mark.parametrize("deviation", (0.05, 0.3))
def test_the_interval_has_coverage_of_nine_in_ten(deviation):
    covered = []
    for seed in range(30):
        losses = [noisy(n, 1_000 * seed + n, deviation) for n in (150, 100, 50)]
        result = effective_sample_size(*losses, num_high=100)
        low, high = result.interval
        assert 0 < low <= result.estimate <= high
        covered.append(low < 150 < high)
    assert np.mean(covered) > 0.9 - 4 * math.sqrt(0.9 * 0.1 / 30)


def test_the_interval_may_end_at_infinity():
    noise = 0.5 * np.random.default_rng(0).normal(size=(3, 80))
    noise -= noise.mean(axis=1, keepdims=True)
    losses = [law(n) + each for n, each in zip((100_000, 100, 50), noise)]
    low, high = effective_sample_size(*losses, num_high=100).interval
    assert math.isfinite(low) and high == math.inf


def test_noise_common_to_all_losses_cancels():
    common = 5 * np.random.default_rng(0).normal(size=80)
    losses = [law(n) + common for n in (400, 100, 50)]
    result = effective_sample_size(*losses, num_high=100)
    assert result.estimate == pytest.approx(400)
    assert result.interval == pytest.approx((400, 400), rel=1e-6)


def test_the_error_of_the_gain_is_its_standard_error():
    plain = noisy(100, 0, deviation=1.0)
    result = effective_sample_size(law(400), plain, law(50), num_high=100)
    gain = plain - law(400)
    assert result.gain == pytest.approx(gain.mean())
    assert result.gain_error == pytest.approx(gain.std(ddof=1) / np.sqrt(80))


def test_results_are_floats_and_are_printed():
    result = effective_sample_size(law(400), law(100), law(50), num_high=100)
    start = "effective sample size of the 100 high-fidelity simulations: 400 (400 to "
    assert str(result).startswith(start) and "400); log score +0.38" in str(result)
    assert type(result.estimate) is float and type(result.gain) is float


@pytest.mark.parametrize(
    ("estimate", "interval", "words"),
    (
        (math.inf, (45, math.inf), "too large to be estimated (45 or more);"),
        (math.inf, (math.inf, math.inf), "too large to be estimated;"),
        (601.0, (189, math.inf), "601 (189 or more);"),
        (44.0, (30, 60), "44 (30 to 60);"),
        (math.nan, (math.nan, math.nan), "not identified;"),
    ),
)
def test_infinity_and_nan_are_printed_in_words(estimate, interval, words):
    text = str(EffectiveSampleSize(40, estimate, interval, 0.35, 0.2))
    assert f"40 high-fidelity simulations: {words} log score +0.35" in text
    assert " inf" not in text and "nan" not in text


@pytest.mark.parametrize(
    ("estimate", "interval"),
    (
        (math.inf, (45, math.inf)),
        (math.inf, (math.inf, math.inf)),
        (45.0, (20, math.inf)),
        (44.0, (30, 60)),
        (8e4, (3_000, math.inf)),
        (7.0, (5, 9)),
    ),
)
def test_text_of_the_figure_stays_within_the_panel_and_off_the_line(estimate, interval):
    figure, axes = plt.subplots(figsize=(3.6, 3.0), layout="constrained")
    _plot_effective_sample_size(
        axes, EffectiveSampleSize(40, estimate, interval, 0.35, 0.2)
    )
    figure.canvas.draw()
    dashed = axes.lines[0].get_window_extent()
    panel = axes.get_window_extent()
    for text in axes.texts:
        box = text.get_window_extent()
        assert not (box.x0 < dashed.x0 < box.x1 and box.y1 > dashed.y0)
        assert panel.x0 - 1 <= box.x0 and box.x1 <= panel.x1 + 1
    plt.close(figure)
