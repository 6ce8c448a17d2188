"""What the rows say about the level below, and the verdicts made of it."""

import pytest
import torch
from sbi.inference import NPE
from sbi.utils import BoxUniform

from sbi_multilevel import LevelSimulations, MultilevelSimulations
from sbi_multilevel.allocation import quick_fit
from sbi_multilevel.diagnostics import (
    Coherence,
    Information,
    LevelFidelity,
    critic,
    fidelity,
    fidelity_report,
)
from sbi_multilevel.diagnostics.level_fidelity import LITTLE, MUCH, NOTHING, SOMETHING
from sbi_multilevel.diagnostics.losses import Estimate, LossPairs
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
    """The critic learns little beyond its start, which does for normal rows."""
    monkeypatch.setattr(critic, "_MOST_STEPS", 30)


@pytest.fixture
def no_losses(monkeypatch):
    """Leaves out the quick fits, which take longest."""
    monkeypatch.setattr(
        fidelity, "loss_pairs", lambda rows, **options: [None] * (len(rows) - 1)
    )


def report(*simulators, **options):
    return fidelity_report(simulations(*simulators), train_options=FAST, **options)


# --- verdicts by their figures ------------------------------------------------------


def judged(below, transfer, own, information=None):
    """The verdict on known figures, all scores with an error of 0.02."""
    below, transfer, own = (Score(value, 0.02) for value in (below, transfer, own))
    probe = Coherence(1, 60, below, transfer, transfer, Score(0.0, 0.02), own, ())
    return LevelFidelity(1, probe, information=information).tells


@pytest.mark.parametrize(
    ("figures", "tells"),
    (
        ((0.8, 0.7, 0.6), MUCH),
        ((0.8, 0.6, 0.6), SOMETHING),
        ((0.8, 0.01, 0.6), LITTLE),
        ((0.8, -2.0, 0.6), LITTLE),
        # a reading by chance, of a level that does not know theta
        ((0.01, 0.1, 0.0), NOTHING),
        ((0.01, 0.0, 0.6, Information(1.0, 0.1, 60, 1)), MUCH),
        ((0.01, 0.0, 0.6, Information(1.0, 0.1, 60, 2)), SOMETHING),
        ((0.01, 0.0, 0.6, Information(0.05, 0.01, 60, 1)), LITTLE),
        ((0.01, 0.0, 0.6, Information(0.15, 0.1, 60, 1)), NOTHING),
    ),
)
def test_how_much_it_tells_by_its_figures(figures, tells):
    assert judged(*figures) == tells


def worded(value, interval, num_high=40):
    """What is said of rows that pairs stand for."""
    unit = Estimate(1.0, (0.9, 1.1))
    loss = LossPairs(num_high, 1_000, unit, unit, Estimate(value, interval))
    score = Score(0.8, 0.02)
    probe = Coherence(1, 60, score, score, score, Score(0.0, 0.02), score, ())
    return LevelFidelity(1, probe, loss=loss).verdict


def test_pairs_too_few_to_tell_are_said_to_be():
    for interval in ((40.0, 46.2), (43.9, 44.1), (40.0, 303.0)):
        text = worded(43.0, interval)
        assert (
            "For the multilevel loss, 40 pairs are too few to tell what they save (4"
            in text
        )
        assert "stand for" not in text
    many = worded(400.5, (400.0, 410.0), num_high=400)
    assert "stand for hardly more than themselves (400 to 410 rows of level 1)" in many
    clear = worded(130.0, (90.0, 210.0))
    assert "with 1000 cheap rows stand for about 130 (90 to 210 rows of level 1)" in (
        clear
    )
    assert "too few" not in many + clear


# --- the report: it fires, and stays silent -----------------------------------------


def test_a_near_level_tells_much():
    found = report(near, high).levels[0]
    assert found.tells == MUCH and found.is_paired
    assert found.coherence.transfer.value > 0.5
    assert found.information.share > 0.5 and found.published > 0
    assert (found.correlations.beyond_theta > 0.6).all()
    assert found.loss.worth.value > 120
    assert found.verdict.startswith("Level 0 tells much about level 1. A probe")
    assert "60 pairs with 400 cheap rows stand for about " in found.verdict
    assert not any(word in found.verdict for word in ("misreads", "fall", "reversing"))


def test_a_useless_level_tells_nothing():
    found = report(useless, high).levels[0]
    assert found.tells == NOTHING
    assert found.information.share < 0.1
    assert (abs(found.correlations.raw) < 0.6).all()
    assert "stand for about" not in found.verdict
    assert found.verdict.startswith("Level 0 tells nothing about level 1.")


def test_reversed_summaries_show_and_are_mended(no_losses):
    def reversed_near(theta, noise):
        return -near(theta, noise)

    found = report(reversed_near, high).levels[0]
    assert found.coherence.transfer.value < -1
    assert found.coherence.reversed_summaries == (0, 1)
    assert (found.correlations.beyond_theta < -0.6).all()
    assert found.information.share > 0.5
    assert "misreads level 1" in found.verdict and "reversing 0, 1" in found.verdict
    text = "Summaries 0, 1 fall at level 1 where they rise at level 0."
    assert text in found.verdict


def test_broken_pairs_have_theta_in_common_only():
    found = report(other_noise, high).levels[0]
    assert (found.correlations.raw > 0.6).all()
    assert (abs(found.correlations.beyond_theta) < 0.5).all()
    assert found.loss.worth.value < 80
    # and yet it teaches theta
    assert found.tells in (MUCH, SOMETHING)


# as much as twenty rows of the level itself, or more
@pytest.mark.parametrize(
    ("simulator", "tells"), ((useless, {NOTHING}), (high, {SOMETHING, MUCH}))
)
def test_rows_that_are_not_paired(simulator, tells, monkeypatch):
    monkeypatch.setattr(quick_fit, "held_out_losses", None)  # is not called
    rows = unpaired(simulations(simulator, high, counts=(400, 20)))
    found = fidelity_report(rows)
    (one,) = found.levels
    assert one.tells in tells and not one.is_paired
    assert (one.correlations, one.information, one.loss) == (None, None, None)
    assert str(found).count("not known: rows are not paired") == 6


def test_information_that_a_probe_cannot_use(no_losses):
    """x below tells the spread of the noise only; pairs share a little."""

    def spread_only(theta, noise):
        return noise[:, :2] + 0.5 * noise[:, 2:]

    rows = simulations(spread_only, high, counts=(400, 200))
    found = fidelity_report(rows, train_options=FAST).levels[0]
    assert found.tells in (LITTLE, SOMETHING)
    assert not found.coherence.is_informative


def test_heavy_tails_are_tamed(no_losses):
    def tail(simulator):
        return lambda theta, noise: torch.sinh(12 * simulator(theta, noise))

    found = report(tail(near), tail(high)).levels[0]
    assert found.tells == MUCH and found.coherence.transfer.value > 0.5
    assert (found.correlations.beyond_theta > 0.8).all()


def test_images_need_an_embedding(no_losses):
    rows = simulations(near, high, counts=(60, 30))

    def image(x):
        return x[:, :, None, None].expand(-1, -1, 2, 2).contiguous()

    images = MultilevelSimulations(
        tuple(
            LevelSimulations(
                r.level, r.theta, image(r.x), image(r.x_coarse) if r.level else None
            )
            for r in rows
        )
    )
    with pytest.raises(ValueError, match=r"x has shape \(2, 2, 2\) a row.*embedding="):
        fidelity_report(images)
    with pytest.raises(ValueError, match=r"embedding returned shape \(60,\)"):
        fidelity_report(images, embedding=lambda x: x[:, 0, 0, 0])
    options = {"train_options": {"max_num_epochs": 1}}
    one = fidelity_report(images, embedding=lambda x: x[..., 0, 0], **options)
    two = fidelity_report(rows, **options)
    assert str(one) == str(two)


def test_three_levels_few_pairs_and_text(no_losses):
    rows = simulations(useless, near, high, counts=(300, 40, 15))
    found = fidelity_report(rows, train_options={"max_num_epochs": 1})
    assert [one.level for one in found.levels] == [1, 2]
    assert found.levels[0].information and not found.levels[1].information
    lines = str(found).splitlines()
    assert lines[0] == "Fidelity, from 300 + 40 + 15 rows."
    assert lines[1] == found.verdicts[0] and found.verdicts[1] in lines
    assert "information I(x; x_coarse)       not known: too few pairs" in str(found)
    assert "summary    correlation   beyond theta" in str(found)


def test_seeds_decide_and_the_order_of_levels_does_not_leak():
    rows = simulations(near, high, counts=(100, 40))
    options = {"train_options": {"max_num_epochs": 1}, "seed": 5}
    state = torch.random.get_rng_state()
    assert str(fidelity_report(rows, **options)) == str(
        fidelity_report(rows, **options)
    )
    assert torch.equal(state, torch.random.get_rng_state())


def test_the_loss_is_that_of_the_trainer():
    prior = BoxUniform(-torch.ones(2), torch.ones(2))
    seen = []

    def trainer(prior):
        seen.append(prior)
        return NPE(prior, density_estimator="mdn", show_progress_bars=False)

    rows = simulations(near, high, counts=(60, 30))
    options = {"train_options": {"max_num_epochs": 1}}
    fidelity_report(rows, inference=trainer, prior=prior, **options)
    assert seen == [prior]


def test_one_level_is_too_few():
    with pytest.raises(ValueError, match="simulations has 1 level"):
        fidelity_report(simulations(high, counts=(20,)))
