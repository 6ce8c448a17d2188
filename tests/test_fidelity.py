"""`fidelity_report`: estimates and verdicts for known simulators."""

import pytest
import torch
from sbi.inference import NPE
from sbi.utils import BoxUniform

from sbi_multilevel import LevelSimulations, MultilevelSimulations
from sbi_multilevel.diagnostics import (
    Coherence,
    Information,
    LevelFidelity,
    critic,
    fidelity,
    fidelity_report,
    loss_variance,
)
from sbi_multilevel.diagnostics.loss_variance import Estimate, LossVariance
from sbi_multilevel.diagnostics.probes import Score
from tests.fidelity_levels import (
    FAST,
    high,
    near,
    other_noise,
    simulations,
    unpaired,
    useless,
)

pytestmark = pytest.mark.filterwarnings("ignore:The pairing of level")


@pytest.fixture(autouse=True)
def short(monkeypatch):
    """Few training steps; the initial critic is sufficient for normal variables."""
    monkeypatch.setattr(critic, "_MAX_STEPS", 30)


@pytest.fixture
def no_losses(monkeypatch):
    """Omit the quick fits."""
    monkeypatch.setattr(
        fidelity, "loss_variances", lambda sims, **options: [None] * (len(sims) - 1)
    )


def report(*simulators, **options):
    return fidelity_report(simulations(*simulators), train_options=FAST, **options)


# --- verdicts of known estimates ----------------------------------------------------


def informativeness(below, transfer, own, information=None):
    """That of known scores, each with an error of 0.02."""
    below, transfer, own = (Score(value, 0.02) for value in (below, transfer, own))
    probe = Coherence(1, 60, below, transfer, transfer, Score(0.0, 0.02), own, ())
    return LevelFidelity(1, probe, information=information).informativeness


@pytest.mark.parametrize(
    ("estimates", "expected"),
    (
        ((0.8, 0.7, 0.6), "high"),
        ((0.8, 0.6, 0.6), "moderate"),
        ((0.8, 0.01, 0.6), "low"),
        ((0.8, -2.0, 0.6), "low"),
        # transfer by chance from an uninformative level
        ((0.01, 0.1, 0.0), "none"),
        ((0.01, 0.0, 0.6, Information(1.0, 0.1, 60, 1)), "high"),
        ((0.01, 0.0, 0.6, Information(1.0, 0.1, 60, 2)), "moderate"),
        ((0.01, 0.0, 0.6, Information(0.05, 0.01, 60, 1)), "low"),
        ((0.01, 0.0, 0.6, Information(0.15, 0.1, 60, 1)), "none"),
    ),
)
def test_informativeness_of_known_estimates(estimates, expected):
    assert informativeness(*estimates) == expected


def verdict(value, interval, num_high=40):
    """The verdict on a known effective number of simulations."""
    unit = Estimate(1.0, (0.9, 1.1))
    loss = LossVariance(num_high, 1_000, unit, unit, Estimate(value, interval))
    score = Score(0.8, 0.02)
    probe = Coherence(1, 60, score, score, score, Score(0.0, 0.02), score, ())
    return LevelFidelity(1, probe, loss=loss).verdict


def test_pairs_that_are_too_few_are_reported():
    for interval in ((40.0, 46.2), (43.9, 44.1), (40.0, 303.0)):
        text = verdict(43.0, interval)
        few = "For the multilevel loss, 40 pairs are too few to estimate their"
        assert few in text and "equivalent" not in text
    many = verdict(400.5, (400.0, 410.0), num_high=400)
    text = "hardly more than the pairs alone (400 to 410 simulations of level 1)"
    assert text in many
    clear = verdict(130.0, (90.0, 210.0))
    text = "40 pairs and 1000 simulations of level 0 are equivalent to about 130 (90 to"
    assert text in clear
    assert "too few" not in many + clear


# --- the report ---------------------------------------------------------------------


def test_a_similar_level_is_highly_informative():
    found = report(near, high).levels[0]
    assert found.informativeness == "high" and found.is_paired
    assert found.coherence.transfer.value > 0.5
    assert found.information.informational_r2 > 0.5
    assert found.uncertainty_coefficient > 0
    assert (found.correlations.given_theta > 0.6).all()
    assert found.loss.effective_num_high.value > 120
    start = "Informativeness of level 0 about level 1: high. At level 1, a probe"
    assert found.verdict.startswith(start)
    text = "60 pairs and 400 simulations of level 0 are equivalent to about "
    assert text in found.verdict
    assert not any(word in found.verdict for word in ("worse", "sign"))


def test_a_level_of_pure_noise_is_not_informative():
    found = report(useless, high).levels[0]
    assert found.informativeness == "none"
    assert found.information.informational_r2 < 0.1
    assert (abs(found.correlations.raw) < 0.6).all()
    assert "equivalent to about" not in found.verdict
    start = "Informativeness of level 0 about level 1: none."
    assert found.verdict.startswith(start)


def test_reversed_summaries_are_reported(no_losses):
    def reversed_near(theta, noise):
        return -near(theta, noise)

    found = report(reversed_near, high).levels[0]
    assert found.coherence.transfer.value < -1
    assert found.coherence.reversed_summaries == (0, 1)
    assert (found.correlations.given_theta < -0.6).all()
    assert found.information.informational_r2 > 0.5
    assert "worse than its mean" in found.verdict
    assert "sign reversed: 0, 1" in found.verdict
    assert "Levels 0 and 1 differ in the sign of summaries 0, 1." in found.verdict


def test_pairs_of_independent_noise_have_only_theta_in_common():
    found = report(other_noise, high).levels[0]
    assert (found.correlations.raw > 0.6).all()
    assert (abs(found.correlations.given_theta) < 0.5).all()
    assert found.loss.effective_num_high.value < 80
    # and yet it is informative about theta
    assert found.informativeness in ("high", "moderate")


@pytest.mark.parametrize(
    ("simulator", "expected"), ((useless, {"none"}), (high, {"moderate", "high"}))
)
def test_simulations_that_are_not_paired(simulator, expected, monkeypatch):
    monkeypatch.setattr(loss_variance, "held_out_losses", None)  # is not called
    found = fidelity_report(unpaired(simulations(simulator, high, counts=(400, 20))))
    (level,) = found.levels
    assert level.informativeness in expected and not level.is_paired
    assert (level.correlations, level.information, level.loss) == (None, None, None)
    assert str(found).count("unknown: simulations are not paired") == 6


def test_information_that_a_probe_cannot_use(no_losses):
    """x of the lower level depends on the noise only, part of which pairs share."""

    def noise_only(theta, noise):
        return noise[:, :2] + 0.5 * noise[:, 2:]

    sims = simulations(noise_only, high, counts=(400, 200))
    found = fidelity_report(sims, train_options=FAST).levels[0]
    assert found.informativeness in ("low", "moderate")
    assert not found.coherence.is_informative


def test_heavy_tails_are_transformed(no_losses):
    def tail(simulator):
        return lambda theta, noise: torch.sinh(12 * simulator(theta, noise))

    found = report(tail(near), tail(high)).levels[0]
    assert found.informativeness == "high" and found.coherence.transfer.value > 0.5
    assert (found.correlations.given_theta > 0.8).all()


def test_images_need_an_embedding(no_losses):
    sims = simulations(near, high, counts=(60, 30))

    def image(x):
        return x[:, :, None, None].expand(-1, -1, 2, 2).contiguous()

    images = MultilevelSimulations(
        tuple(
            LevelSimulations(
                s.level, s.theta, image(s.x), image(s.x_coarse) if s.level else None
            )
            for s in sims
        )
    )
    with pytest.raises(ValueError, match=r"x has shape \(2, 2, 2\), but.*embedding="):
        fidelity_report(images)
    with pytest.raises(ValueError, match=r"embedding returned shape \(60,\)"):
        fidelity_report(images, embedding=lambda x: x[:, 0, 0, 0])
    options = {"train_options": {"max_num_epochs": 1}}
    one = fidelity_report(images, embedding=lambda x: x[..., 0, 0], **options)
    two = fidelity_report(sims, **options)
    assert str(one) == str(two)


def test_the_text_of_three_levels_with_few_pairs(no_losses):
    sims = simulations(useless, near, high, counts=(300, 40, 15))
    found = fidelity_report(sims, train_options={"max_num_epochs": 1})
    assert [each.level for each in found.levels] == [1, 2]
    assert found.levels[0].information and not found.levels[1].information
    lines = str(found).splitlines()
    assert lines[0] == "Fidelity, from 300 + 40 + 15 simulations."
    assert lines[1] == found.verdicts[0] and found.verdicts[1] in lines
    assert "information I(x; x_coarse)            unknown: too few pairs" in str(found)
    assert "summary    correlation    given theta" in str(found)


def test_results_depend_on_the_seed_and_leave_the_global_generator():
    sims = simulations(near, high, counts=(60, 24))
    options = {"train_options": {"max_num_epochs": 1}, "seed": 5}
    state = torch.random.get_rng_state()
    texts = [str(fidelity_report(sims, **options)) for _ in range(2)]
    assert texts[0] == texts[1]
    assert torch.equal(state, torch.random.get_rng_state())


def test_the_loss_is_that_of_the_trainer():
    prior = BoxUniform(-torch.ones(2), torch.ones(2))
    priors = []

    def trainer(prior):
        priors.append(prior)
        return NPE(prior, density_estimator="mdn", show_progress_bars=False)

    sims = simulations(near, high, counts=(60, 30))
    options = {"train_options": {"max_num_epochs": 1}}
    fidelity_report(sims, inference=trainer, prior=prior, **options)
    assert priors == [prior]


def test_a_single_level_is_rejected():
    with pytest.raises(ValueError, match="simulations has 1 level"):
        fidelity_report(simulations(high, counts=(20,)))
