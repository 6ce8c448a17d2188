"""Rounds of all levels: regions, steps, resuming, errors, and a known posterior."""

import math

import pytest
import torch
from sbi.neural_nets import posterior_nn
from sbi.utils import BoxUniform
from torch.distributions import Distribution, Normal

from sbi_multilevel import (
    MFSNLE,
    Acquisition,
    HybridConfig,
    HybridNPE,
    HybridTSNPE,
    Truncation,
    simulate_multilevel,
)
from sbi_multilevel.estimators.mixture import MixtureEstimator
from sbi_multilevel.methods.hybrid import HybridSummary
from sbi_multilevel.methods.sequential.multilevel_state import (
    RoundFit,
    weights_of_best,
)
from sbi_multilevel.methods.sequential.truncated_prior import Cut, TruncatedPrior
from sbi_multilevel.utils.seeds import seeded
from tests import linear_gaussian as problem
from tests.rounds import (
    BOTH,
    COARSE,
    EXPECTED_WARNINGS,
    FINE,
    RUN,
    SMALL,
    X_O,
    hybrid,
    likelihood,
    methods,
    multilevel,
    samples,
    step,
    truncating,
    with_slow,
)

pytestmark = EXPECTED_WARNINGS


# ------------------------------------------------------------- rounds


@with_slow
def test_rounds_can_be_done_step_by_step(make):
    inference = make()
    for _ in range(2):
        low, high = step(inference)
        assert low.shape[1] == 2 and high.shape == (12, 2)
    assert samples(inference).shape == (20, 2)
    assert [high for _, high in inference.summary["num_simulations"]] == [12, 12]
    first, second = inference.summary["acceptance_rate"]
    assert first == 1.0 and (second == 1.0 if make is likelihood else 0 < second < 1)


@methods
def test_run_simulates_all_levels(make):
    inference = make()
    posterior = inference.run(*BOTH, num_rounds=2, **RUN)
    assert posterior.sample((5,), show_progress_bars=False).shape == (5, 2)
    (n_0, n_1), (m_0, m_1) = inference.summary["num_simulations"]
    assert (n_0, n_1, m_1) == (200, 10, 10)
    inside = inference.summary["num_inside"][1]
    if make is likelihood:
        assert m_0 == 200 and inside == [400, 20]
    else:  # those of the first round that lie in the region are kept
        assert 0 <= m_0 < 200 and inside[0] == 200 and 10 <= inside[1] <= 20
    assert all(part.is_paired for part in inference._state.parts if part.level == 1)


@truncating
def test_regions_are_nested_and_hold_all_that_is_simulated(make):
    inference, draws, regions = make(), problem.prior().sample((2_000,)), []
    for round_ in range(3):
        region = inference.truncated_prior
        regions.append(region.contains(draws))
        proposed = step(inference, seed=round_)
        assert all(region.contains(theta).all() for theta in proposed)
    for outer, inner in zip(regions, regions[1:]):
        assert (outer | ~inner).all()
    if make is hybrid:  # networks of the other are wide after so few simulations
        assert regions[-1].sum() < regions[0].sum()
    rates = inference.summary["acceptance_rate"]
    assert rates == sorted(rates, reverse=True)


def test_a_round_is_trained_on_draws_from_the_truncated_prior():
    inference = hybrid()
    step(inference, (600, 12))
    step(inference, (300, 12))
    region = inference.truncated_prior
    used = torch.cat([p.theta for p in inference._state.parts_inside() if p.level == 0])
    torch.manual_seed(1)
    exact = region.sample((5_000,))
    error = exact.std(0) * (1 / len(used) + 1 / len(exact)) ** 0.5
    assert ((used.mean(0) - exact.mean(0)).abs() < 4 * error).all()
    spread = used.std(0) / exact.std(0)
    assert ((spread - 1).abs() < 4 / (2 * len(used)) ** 0.5).all()


@pytest.mark.parametrize(
    "prior", (problem.prior(), BoxUniform(-2 * torch.ones(2), 2 * torch.ones(2)))
)
def test_the_truncated_prior_is_a_density(prior):
    inference = hybrid(prior=prior)
    step(inference)
    step(inference)
    region = inference.truncated_prior
    torch.manual_seed(0)
    theta = inference.truncated_prior.whole.sample((20_000,))
    log_prob = region.log_prob(theta)
    inside = region.contains(theta)
    assert (log_prob.isfinite() == inside).all()
    total = (log_prob - region.whole.log_prob(theta)).exp().mean()
    assert abs(total - 1) < 5 / (len(theta) * region.acceptance) ** 0.5
    assert region.sample((2, 3)).shape == (2, 3, 2)
    # also where a uniform prior is drawn inside of a box
    drawn, exact = region.sample((5_000,)), theta[inside]
    error = exact.std(0) * (1 / 5_000 + 1 / len(exact)) ** 0.5
    assert ((drawn.mean(0) - exact.mean(0)).abs() < 4 * error).all()


def test_the_prior_component_plays_no_part_in_truncation():
    inference = hybrid()
    step(inference)
    assert inference._state.fits[0].prior is not None
    (cut,) = inference.truncated_prior.cuts
    assert cut.estimator.prior is None
    assert inference.truncated_prior.acceptance < 1


def test_low_fidelity_simulations_from_the_prior_are_used_first():
    low, pairs = problem.simulations((300, 12))
    inference = hybrid().append_lowfidelity_simulations(low.theta, low.x)
    inference.run(*BOTH, num_rounds=2, **RUN)
    assert inference.summary["num_simulations"][0] == [300, 10]
    assert inference.summary["num_inside"][0] == [300, 10]


def test_simulations_of_a_store_are_appended_at_once(tmp_path):
    simulations = simulate_multilevel(
        (COARSE, FINE), problem.prior(), (100, 12), store=tmp_path / "s", **RUN
    )
    inference = hybrid().append_multilevel_simulations(simulations)
    assert inference.num_inside == (100, 12)
    inference.train()
    assert inference.num_inside < (100, 12)


def test_three_levels():
    inference = multilevel()
    inference.run(problem.SIMULATORS, (200, 24, 20), 2, **RUN)
    assert [n[1:] for n in inference.summary["num_simulations"]] == [[12, 10]] * 2


def test_a_region_that_is_not_reduced_ends_the_rounds(caplog):
    # x does not depend on theta, so that the posterior is the prior
    def blind(theta, noise):
        return noise

    inference = hybrid(truncation=Truncation(epsilon=0.0, num_samples=2_000))
    inference.run((blind, blind), (200, 40), num_rounds=5, **RUN)
    summary = inference.summary
    assert "further rounds would simulate in the same region" in summary["stopped"]
    assert summary["stopped"] in caplog.text
    assert len(summary["log_score"]) < 5
    assert sum(high for _, high in summary["num_simulations"]) == 40


def test_active_points_are_those_of_largest_disagreement():
    inference = likelihood(acquisition=Acquisition(share=0.25, pool_size=200))
    step(inference)
    low, high = inference.propose((8, 8))
    (estimator,), x_o = inference._state.fits, inference.x_o
    candidates = problem.prior().sample((500,))

    def variance(theta):
        each = [
            q.log_prob(x_o.expand(len(theta), -1).unsqueeze(0), theta)[0].exp()
            for q in estimator.members
        ]
        return (torch.stack(each) * problem.prior().log_prob(theta).exp()).var(0)

    pending = inference._state.pending
    assert pending[0].is_active.sum() == 0
    assert pending[1].is_active.tolist() == [False] * 6 + [True] * 2
    with torch.no_grad():
        active, pool = variance(high[6:]), variance(candidates)
    assert (active > pool.quantile(0.9)).all()  # 2 of 200


@pytest.mark.parametrize("fixed", (True, pytest.param(False, marks=pytest.mark.slow)))
def test_a_fixed_pool_is_that_of_all_rounds(fixed):
    chosen = Acquisition(share=0.5, pool_size=6, fixed_pool=fixed)
    inference = likelihood(acquisition=chosen)
    step(inference)
    # active points are all six points of the pool
    active = [step(inference, seed=seed)[1][-6:] for seed in (1, 2)]
    first, second = ({tuple(each) for each in theta.tolist()} for theta in active)
    assert (first == second) == fixed


ACTIVE = Acquisition(share=0.25, pool_size=100, correct=True)


def test_active_points_of_a_region_have_weights():
    inference = hybrid(acquisition=ACTIVE)
    step(inference)
    ends = torch.full((2,), -0.2), torch.full((2,), 0.2)
    small = Cut(inference._state.fits[0], inference.x_o, -math.inf, *ends)
    inference._state.prior = inference.truncated_prior.inside(small)
    assert all(part.weights is None for part in inference._state.parts)
    low, high = inference.propose((50, 8))
    pending = inference._state.pending
    assert pending[0].is_active.sum() == 0 and (pending[0].weights == 1).all()
    active = pending[1].is_active
    assert active.tolist() == [False] * 6 + [True] * 2
    assert inference.truncated_prior.contains(high).all()
    # 1 / (1 - a), and 1 / (1 - a + a M / k) where the members disagree most
    passive, acquired = 1 / 0.75, 1 / (0.75 + 0.25 * 100 / 2)
    weights = pending[1].weights
    assert torch.allclose(weights[active], torch.tensor(acquired), rtol=1e-4)
    assert torch.allclose(weights[~active].max(), torch.tensor(passive), rtol=1e-4)
    with pytest.raises(ValueError, match="not proposed in this round"):
        inference.append_multilevel_simulations(high + 1e-3, high, high, level=1)
    kept = torch.tensor([7, 0, 3])
    x = problem.simulate(high, torch.zeros(8, 2), level=2)
    inference.append_multilevel_simulations(high[kept], x[kept], x[kept] + 0.1, level=1)
    assert torch.equal(inference._state.parts[-1].weights, weights[kept])


def test_a_run_with_active_points_trains_on_weights_and_resumes(tmp_path):
    path = tmp_path / "run.pt"
    inference = hybrid(acquisition=ACTIVE)
    options = {**RUN, "num_rounds": 2}
    posterior = inference.run(*BOTH, checkpoint=path, **options)
    pairs = [part for part in inference._state.parts if part.level == 1]
    assert [part.weights is not None for part in pairs] == [False, True]
    again = hybrid(acquisition=ACTIVE).load(path)
    saved = [part for part in again._state.parts if part.level == 1]
    assert torch.equal(saved[1].weights, pairs[1].weights)
    theta = torch.zeros(1, 2)
    restored = again.build_posterior()
    assert torch.equal(restored.log_prob(theta), posterior.log_prob(theta))
    with pytest.raises(ValueError, match="acquisition"):
        hybrid().load(path)


def test_a_single_proposal_is_no_active_point():
    inference = hybrid(acquisition=ACTIVE)
    step(inference)
    _, theta = inference.propose((0, 1))
    assert theta.shape == (1, 2)
    assert not inference._state.pending[1].is_active.any()


# ------------------------------------------------------------- seeds, pickles, files


@with_slow
def test_the_seed_determines_the_posterior(make):
    runs = [make(seed=seed) for seed in (1, 1, 2)]
    for inference in runs:
        inference.run(*BOTH, num_rounds=2, **RUN)
    first, same, other = map(samples, runs)
    assert torch.equal(first, same) and not torch.equal(first, other)


# ------------------------------------------------------------- errors


def test_truncation_that_keeps_nothing_is_an_error():
    inference = hybrid()
    step(inference)
    region = inference.truncated_prior
    nowhere = type(region)(region.whole, region.cuts, max_draws=10_000)
    object.__setattr__(nowhere.cuts[0], "threshold", float("inf"))
    with pytest.raises(RuntimeError, match="accepted 0 of 10000 draws"):
        nowhere.sample((1,))
    with pytest.raises(RuntimeError, match="truncation keeps nothing"):
        nowhere.cut(nowhere.cuts[0].estimator, inference.x_o, Truncation(0.1, 100))


def test_a_round_whose_simulations_all_fail_is_an_error():
    def failing(theta, noise):
        raise OSError("no license")

    with pytest.raises(RuntimeError, match="of round 1 failed.*no license"):
        hybrid().run((COARSE, failing), (200, 20), 2, **RUN)


def test_failed_simulations_are_replaced():
    def fine(theta, noise):
        x = FINE(theta, noise)
        return torch.where(theta[:, :1] > 0.5, torch.nan, x)

    inference = hybrid()
    inference.run((COARSE, fine), (200, 20), 2, **RUN)
    assert [n[1] for n in inference.summary["num_simulations"]] == [10, 10]
    assert "NaN" in inference.summary["failures"][0][0]


class WithoutSupport(Distribution):
    def __init__(self):
        super().__init__(torch.Size(), torch.Size((2,)), validate_args=False)

    def sample(self, sample_shape=()):
        return torch.zeros(*sample_shape, 2)

    def log_prob(self, value):
        return torch.zeros(len(value))


@pytest.mark.parametrize(
    ("prior", "lacks"),
    ((WithoutSupport(), "support"), (object(), "sample and log_prob")),
)
def test_a_prior_that_cannot_be_truncated_is_an_error(prior, lacks):
    with pytest.raises(ValueError, match=f"prior is a .* without {lacks}, which"):
        HybridTSNPE(prior, X_O)


@pytest.mark.parametrize(
    ("arguments", "message"),
    (
        (((COARSE, FINE), (200, 7), 2), "each round needs at least 4 of the highest"),
        (((COARSE, FINE), (200,), 2), "simulators has 2 levels, num_simulations 1"),
        (((FINE,), (200,), 2), "at least two, the lowest fidelity first"),
        (((COARSE, FINE), (200, 20), 0), "num_rounds=0"),
    ),
)
def test_numbers_that_do_not_fit_are_errors(arguments, message):
    with pytest.raises(ValueError, match=message):
        hybrid().run(*arguments, **RUN)


def test_too_few_simulations_in_the_region_are_an_error():
    inference = hybrid()
    with pytest.raises(RuntimeError, match="No simulations were appended"):
        inference.train()
    low, high = problem.simulations((100, 3))
    inference.append_lowfidelity_simulations(low.theta, low.x)
    with pytest.raises(ValueError, match="of level 0 alone"):
        inference.train()
    inference.append_multilevel_simulations(high.theta, high.x, high.x_coarse, level=1)
    with pytest.raises(ValueError, match="Level 1 has 3 .* needs at least 4"):
        inference.train()
    with pytest.raises(RuntimeError, match="Nothing was trained yet"):
        inference.build_posterior()


def test_bad_arguments_are_errors():
    with pytest.raises(ValueError, match="sample_with='sir'"):
        hybrid(truncation=Truncation(sample_with="sir"))
    with pytest.raises(ValueError, match="compares the members of a mixture"):
        MFSNLE(problem.prior(), X_O, acquisition=Acquisition())
    with pytest.raises(ValueError, match="gives active points no weights"):
        hybrid(acquisition=Acquisition())
    with pytest.raises(ValueError, match="there is one network"):
        multilevel(acquisition=ACTIVE)
    with pytest.raises(ValueError, match="there is one network"):
        hybrid(acquisition=ACTIVE, config=HybridConfig())
    with pytest.raises(ValueError, match="seed"):
        hybrid(seed=-1)
    with pytest.raises(TypeError, match="config"):
        multilevel(config=SMALL)
    with pytest.raises(ValueError, match="Ask for at least one"):
        hybrid().propose((0, 0))
    with pytest.raises(ValueError, match="x has shape"):
        hybrid().append_lowfidelity_simulations(torch.zeros(3, 2), torch.zeros(3, 5))
    with pytest.raises(ValueError, match="x is None and level is None"):
        hybrid().append_multilevel_simulations(torch.zeros(3, 2))


# ------------------------------------------------------------- a known posterior


# in standard deviations of the posterior, which is that of one draw. `MLNPE` without
# rounds is as far off, by 0.3 in the mean over five seeds
@pytest.mark.slow
@pytest.mark.parametrize(
    ("make", "tolerance"), ((hybrid, 0.25), (multilevel, 0.5), (likelihood, 0.25))
)
def test_the_posterior_is_the_exact_one(make, tolerance):
    config = HybridConfig(num_members=3, distill=False)
    options = {} if make is multilevel else {"config": config}
    if make is likelihood:
        options["mcmc_options"] = {"num_chains": 50, "warmup_steps": 20, "thin": 1}
    numbers = (600, 45) if make is likelihood else (2_000, 90)
    inference = make(train_options={"learning_rate": 2e-3}, **options)
    posterior = inference.run((COARSE, FINE), numbers, num_rounds=3, **RUN)
    exact = problem.posterior(X_O)
    with seeded(0):
        drawn = posterior.sample((2_000,), show_progress_bars=False)
    spread = exact.covariance_matrix.diagonal().sqrt()
    assert ((drawn.mean(0) - exact.mean).abs() < tolerance * spread).all()
    assert ((drawn.std(0) / spread).log().abs() < 0.25).all()


class Bell(MixtureEstimator):
    """The density of a normal distribution with a standard deviation of 0.1."""

    def __init__(self):
        net = posterior_nn("mdn")(torch.randn(50, 1), torch.randn(50, 1))
        super().__init__([net], torch.ones(1), "theta")

    def log_prob(self, input, condition, **kwargs):
        return Normal(0.0, 0.1).log_prob(input)[..., 0]

    def sample(self, sample_shape, condition, **kwargs):
        return 0.1 * torch.randn(*sample_shape, len(condition), 1)


def test_regions_are_wider_than_those_of_highest_density():
    torch.manual_seed(0)
    prior = TruncatedPrior(BoxUniform(-torch.ones(1), torch.ones(1)))
    truncation = Truncation(epsilon=0.05, num_samples=50_000)
    region = prior.cut(Bell(), torch.zeros(1, 1), truncation)
    theta = torch.linspace(-1, 1, 20_001)[:, None]
    half_width = theta[region.contains(theta)].max()
    # 1.96 standard deviations hold 95 %
    assert half_width == pytest.approx(1.25 * 0.196, rel=0.03)


class Spike(Bell):
    """The same with a density that is much too large near one point."""

    def log_prob(self, input, condition, **kwargs):
        near = input[..., 0].abs() < 1e-3
        return super().log_prob(input, condition) + 20.0 * near


def test_regions_do_not_depend_on_the_largest_density():
    theta = torch.linspace(-1, 1, 20_001)[:, None]
    truncation, widths = Truncation(epsilon=0.05, num_samples=20_000), []
    for density in (Bell(), Spike()):
        torch.manual_seed(0)
        prior = TruncatedPrior(BoxUniform(-torch.ones(1), torch.ones(1)))
        region = prior.cut(density, torch.zeros(1, 1), truncation)
        widths.append(float(theta[region.contains(theta)].max()))
    assert widths[1] == pytest.approx(widths[0], rel=0.05)


SIZES = {"with lower levels": 2, "high fidelity alone": 2, "prior": 0}


@pytest.mark.parametrize(
    "scores, sizes, expected",
    (
        ((-1.0, -2.0, 0.0), SIZES, [0.3, 0.3, 0.0, 0.0]),
        ((-2.0, -1.0, 0.0), SIZES, [0.0, 0.0, 0.15, 0.15]),
        ((-1.0, -2.0, 0.0), {}, [0.3, 0.3, 0.15, 0.15]),
    ),
)
def test_a_region_is_that_of_the_component_with_the_best_score(scores, sizes, expected):
    weights = torch.tensor([0.3, 0.3, 0.15, 0.15])
    by_name = dict(zip(SIZES, scores))
    summary = HybridSummary((), (), by_name, by_name, 1, num_networks=sizes)
    best = weights_of_best(weights, summary)
    assert torch.equal(best, torch.tensor(expected))
    none = weights_of_best(torch.tensor([0.0, 0.0, 0.5, 0.5]), summary)
    assert bool(none.sum() > 0)


def test_networks_of_the_best_component_decide_on_the_region(tmp_path):
    inference = hybrid()
    step(inference)
    (fit,) = inference._state.fits
    best = torch.zeros(len(fit.members))
    best[1] = 1.0
    region, _ = inference._region_after(RoundFit(fit, 0.0, best))
    inference._state.prior = TruncatedPrior(problem.prior(), region.cuts[-1:])
    (cut,) = inference.truncated_prior.cuts
    (member,) = cut.estimator.members
    assert member is fit.members[1] and cut.estimator.prior is None
    inference.save(tmp_path / "state.pt")
    (loaded,) = hybrid().load(tmp_path / "state.pt").truncated_prior.cuts
    theta = torch.rand(500, 2) * 2 - 1
    assert torch.equal(loaded.holds(theta), cut.holds(theta))
    assert len(loaded.estimator.members) == 1


def test_the_summary_counts_the_networks_of_the_mixture():
    inference = HybridNPE(problem.prior(), "mdn", config=SMALL)
    inference.append_multilevel_simulations(problem.simulations((200, 20)))
    mixture = inference.train(max_num_epochs=3)
    sizes = inference.hybrid_summary.num_networks
    assert sizes["with lower levels"] == 2
    assert sum(sizes.values()) == len(mixture.members)


def test_a_round_knows_which_simulations_are_in_its_region():
    inference = hybrid()
    step(inference, (300, 12))
    step(inference, (100, 12))
    state, region = inference._state, inference.truncated_prior
    inside = [region.contains(part.theta) for part in state.parts]
    assert sum(map(len, state.parts_inside())) == sum(int(m.sum()) for m in inside)
    assert sum(map(len, state.parts_outside())) == sum(int((~m).sum()) for m in inside)
    assert all(region.contains(part.theta).all() for part in state.parts_inside())
