"""Runs of `check_pairing`: simulations, seeds, costs, failures and text."""

import pytest
import torch
from sbi.utils import BoxUniform

from sbi_multilevel import simulate_multilevel
from sbi_multilevel.diagnostics import check_pairing
from sbi_multilevel.simulation import TooManyFailures
from tests.two_levels import PRIOR, coarse, fine, normal_noise


def check(simulators, prior=PRIOR, noise=normal_noise, **options):
    return check_pairing(simulators, prior, noise, **options)


def test_each_level_is_run_once_per_simulation_and_outputs_are_pairs():
    runs = []

    def counting(simulator, level):
        def simulate(theta, noise):
            runs.append((level, len(theta)))
            return simulator(theta, noise)

        return simulate

    simulators = [counting(coarse, 0), counting(fine, 1), counting(fine, 2)]
    report = check(simulators, num_repeats=7, costs=(1.0, 2.0, 10.0))
    # the last repeated simulation has a batch of its own
    assert sorted(runs) == [(level, n) for level in range(3) for n in (1, 56)]
    assert report.cost == 57 * 13
    sims = report.simulations
    assert sims.num_simulations == (50, 50, 50) and sims.costs == (1.0, 2.0, 10.0)
    assert len(sims[1].theta.unique(dim=0)) == 10
    assert torch.equal(sims[1].x_coarse, sims[0].x)
    assert torch.equal(sims[2].x_coarse, sims[2].x)
    # fine - coarse is a tenth of a noise
    assert (sims[1].x - sims[1].x_coarse).std() == pytest.approx(0.1, rel=0.4)


def test_results_depend_on_the_seed_and_leave_the_global_generator():
    state = torch.random.get_rng_state()
    one, same, other = (check([coarse, fine], seed=seed) for seed in (3, 3, 4))
    assert torch.equal(state, torch.random.get_rng_state())
    assert torch.equal(one.simulations[1].x, same.simulations[1].x)
    assert one.verdicts == same.verdicts
    assert not torch.equal(one.simulations[1].x, other.simulations[1].x)
    sims = simulate_multilevel(
        [coarse, fine], PRIOR, (50, 50), noise=normal_noise, seed=3,
        show_progress_bars=False,
    )  # fmt: skip
    for level in (0, 1):
        assert not torch.isin(one.simulations[1].theta, sims[level].theta).any()


def test_batches_and_workers_have_no_effect():
    one = check([coarse, fine])
    two = check([coarse, fine], simulation_batch_size=(7, 1), num_workers=1)
    assert torch.equal(one.simulations[1].x, two.simulations[1].x)
    assert one.verdicts == two.verdicts


def test_costs_are_measured(clock):
    def slow(theta, noise):
        clock.sleep(0.5 * len(theta))
        return coarse(theta, noise)

    assert check([slow, slow]).costs == pytest.approx((0.5, 0.5))


def test_a_theta_with_one_valid_simulation_is_left_out():
    first = check([coarse, fine]).simulations[0]

    def failing_but_once(theta, noise):
        x = fine(theta, noise)
        same_theta = (theta == first.theta[0]).all(dim=1)
        x[same_theta & (coarse(theta, noise) != first.x[0]).any(dim=1)] = torch.nan
        return x

    report = check([coarse, failing_but_once])
    assert report.is_paired and report.num_failed == 5
    assert len(report.simulations[0]) == 45


def failing(theta, noise):
    x = fine(theta, noise)
    x[theta[:, 0] > 0.5] = torch.nan
    return x


def test_failed_simulations_are_left_out_and_counted():
    report = check([coarse, failing])
    assert report.is_paired and report.num_failed > 0
    assert len(report.simulations[0]) == 50 - report.num_failed
    count = report.num_failed
    assert f"{count} simulations were left out ({count} with NaN" in str(report)
    assert report.num_invalid == count
    assert "left out" not in str(check([coarse, fine]))


def test_too_few_valid_simulations_are_rejected():
    with pytest.raises(ValueError, match="Only 0 of 50 simulations are valid at all"):
        check([coarse, lambda theta, noise: fine(theta, noise) * torch.nan])
    with pytest.raises(TooManyFailures):
        check([coarse, lambda theta, noise: 1 / 0])


@pytest.mark.parametrize(
    ("options", "message"),
    (
        ({"simulators": [coarse]}, "simulators has 1 levels"),
        ({"num_noises": 2}, "num_noises=2 are too small"),
        ({"num_simulations": 19}, "num_simulations=19"),
        ({"num_repeats": 0}, "num_repeats=0 must be between 1"),
        ({"num_repeats": 51}, "num_repeats=51 must be between 1"),
        ({"costs": (1.0,)}, "costs must hold one number for each of the 2"),
        ({"costs": 3}, "costs must hold one number .* but is 3"),
        ({"noise": 3}, "noise is 3, but must be a function"),
        ({"simulators": [coarse, lambda t, u: t[:, :1]]}, r"shapes \[\(2,\), \(1,\)\]"),
    ),
)
def test_invalid_arguments_are_rejected(options, message):
    options = {"simulators": [coarse, fine], **options}
    with pytest.raises(ValueError, match=message):
        check(**options)


def test_the_text_of_the_report():
    prior = BoxUniform(-torch.ones(1), torch.ones(1))
    report = check_pairing(
        [lambda t, u: t + u, lambda t, u: t + 2 * u],
        prior,
        lambda n, generator: torch.randn(n, 1, generator=generator),
        costs=(1.0, 9.0),
    )
    assert str(report).splitlines() == [
        "Pairing, from 60 runs of each level, at a cost of 600.",
        "Level 1 with level 0: paired: the correlation given theta is 1.00.",
        "  summary  corr. given theta  variance paired/unpaired       p  verdict",
        "        0        1.00 ± 0.00               0.20 ± 0.00   0.001  paired",
    ]


def test_many_summaries_are_abridged():
    def wide(theta, noise):
        return theta[:, :1] + noise

    def other(theta, noise):
        x = wide(theta, noise)
        x[:, 17] = theta[:, 0] + noise[:, 18] ** 2
        return x

    def noise(n, generator):
        return torch.randn(n, 20, generator=generator)

    lines = str(check([wide, other], noise=noise)).splitlines()
    assert lines[-1] == "  and 8 with smaller p" and len(lines) == 3 + 12 + 1
    assert lines[3].split()[0] == "17"
