"""The contract of every family and method beside NPE and NLE: ratios, vector fields.

That of NPE and NLE is in `test_trainers.py`.
"""

import inspect
import pickle

import pytest
import torch
from sbi.inference import BNRE, FMPE, NPSE, NRE_A, NRE_B, NRE_C
from sbi.inference.posteriors import MCMCPosterior, VectorFieldPosterior
from sbi.neural_nets import classifier_nn, posterior_flow_nn, posterior_score_nn
from sbi.neural_nets.embedding_nets import FCEmbedding
from scipy.stats import kstest
from torch.distributions import kl_divergence

import sbi_multilevel as sml
from sbi_multilevel import (
    HybridConfig,
    LevelSimulations,
    MultilevelConfig,
    MultilevelSimulations,
    OneCycle,
    TransferConfig,
    train_ensemble,
)
from sbi_multilevel.estimators.vector_field_density import VectorFieldDensity
from tests.linear_gaussian import SilentTracker, posterior, prior, simulate, simulations

PARENTS = {"NRE": NRE_B, "NRE_A": NRE_A, "NRE_C": NRE_C, "BNRE": BNRE}
PARENTS |= {"FMPE": FMPE, "NPSE": NPSE}
RATIOS = ("NRE", "NRE_A", "NRE_C", "BNRE")
BUILDERS = {"FMPE": posterior_flow_nn, "NPSE": posterior_score_nn}
SHORT = HybridConfig(
    num_members=2,
    level_maps=("shift",),
    schedule=OneCycle(num_steps=40, fine_tuning_steps=20),
)
SMALL = (200, 40, 30)

slow = {"NRE_A", "BNRE", "NPSE"}
FAMILIES = [
    pytest.param(name, marks=[pytest.mark.slow] * (name in slow)) for name in PARENTS
]

family = pytest.mark.parametrize("family", FAMILIES)
single = pytest.mark.parametrize("method", ("ML", "MF"))
every = pytest.mark.parametrize("method", ("ML", "MF", "Hybrid"))
pytestmark = [
    pytest.mark.filterwarnings("ignore:Maximum number of epochs"),
    pytest.mark.filterwarnings("ignore:When the inference object is pickled"),
    pytest.mark.filterwarnings("ignore:std\\(\\). degrees of freedom"),
]


def make(method, family, sims=None, **options):
    cls = getattr(sml, f"{method}{family}")
    if method == "Hybrid":
        options = {"config": SHORT, **options}
    options = {"tracker": SilentTracker(), "show_progress_bars": False, **options}
    trainer = cls(prior(), **options)
    return trainer.append_multilevel_simulations(sims or simulations(SMALL))


def train(trainer, **options):
    torch.manual_seed(1)
    return trainer.train(**{
        "max_num_epochs": 2,
        "training_batch_size": 100,
        **options,
    }).eval()


def outputs(network, family):
    """What a network computes for three simulations."""
    rows = simulations(SMALL)[2]
    theta, x = rows.theta[:3], rows.x[:3]
    with torch.no_grad():
        if family in RATIOS:
            return network(theta, x)
        return network.ode_fn(theta, x, torch.full((3,), 0.4))


# ------------------------------------------------------------- as its parent


@every
@family
def test_with_append_simulations_alone_weights_are_those_of_the_parent(method, family):
    rows = simulations(SMALL)[0]
    found = []
    for cls in (getattr(sml, f"{method}{family}"), PARENTS[family]):
        torch.manual_seed(5)
        trainer = cls(prior(), tracker=SilentTracker(), show_progress_bars=False)
        trainer.append_simulations(rows.theta, rows.x)
        found.append(outputs(trainer.train(max_num_epochs=3), family))
    assert torch.equal(*found)


@every
@family
def test_arguments_are_those_of_the_parent_and_ours(method, family):
    cls, parent = getattr(sml, f"{method}{family}"), PARENTS[family]
    ours, parents = (inspect.signature(c).parameters for c in (cls, parent))
    assert list(ours) == [*parents, "config", "parameters"]
    assert all(ours[name].default == parents[name].default for name in parents)
    assert inspect.signature(cls.train) == inspect.signature(parent.train)


# ------------------------------------------------------------- training


@every
@family
def test_training_on_levels_is_deterministic_by_seed(method, family):
    found = [outputs(train(make(method, family)), family) for _ in range(2)]
    assert torch.equal(*found)
    assert found[0].isfinite().all()


@single
@family
def test_the_loss_decreases(method, family):
    trainer = make(method, family, simulations((400, 60)))
    train(trainer, max_num_epochs=30, stop_after_epochs=40)
    losses = torch.tensor(trainer.summary["training_loss"])[:30]
    assert losses[-5:].mean() < losses[:5].mean()


@single
@pytest.mark.parametrize("family", ("FMPE", "NPSE"))
def test_vector_fields_have_a_schedule_by_default(method, family):
    assert make(method, family)._config.schedule == OneCycle()
    assert make(method, "NRE")._config.schedule is None


@pytest.mark.parametrize("family", ("NRE", "BNRE", "FMPE"))
@pytest.mark.parametrize(
    "config",
    [
        MultilevelConfig(adjustment="none", stopping="telescoping"),
        MultilevelConfig(alignment="affine"),
        MultilevelConfig(early_stopping=False, schedule=OneCycle(num_steps=20)),
        TransferConfig(alignment=None, rehearsal=0.3),
        TransferConfig(joint_pretraining=True, fine_tuning_rate=0.1),
    ],
    ids=str,
)
def test_all_settings_train(family, config):
    method = "ML" if isinstance(config, MultilevelConfig) else "MF"
    network = train(make(method, family, config=config))
    assert outputs(network, family).isfinite().all()


@pytest.mark.filterwarnings("ignore:The pairing of level 1 looks broken")
@pytest.mark.parametrize("family", ("NRE", "FMPE"))
def test_levels_of_the_same_outputs_have_no_correction(family):
    """With the same random numbers on both sides of a pair, f_1 - f_0 is zero."""
    rows = simulations((100, 40))
    pairs = LevelSimulations(1, rows[1].theta, rows[1].x, rows[1].x)
    trainer = make("ML", family, MultilevelSimulations((rows[0], pairs)))
    train(trainer, max_num_epochs=3)
    corrections = trainer.summary["training_loss_level_1"]
    assert corrections == pytest.approx([0.0] * len(corrections), abs=1e-6)


@pytest.mark.parametrize("name", ("mlp", "builder", "embedding"))
@pytest.mark.parametrize("family", ("NRE_C", "FMPE", "NPSE"))
def test_any_network_of_the_parent_trains(family, name):
    argument = "classifier" if family in RATIOS else "vf_estimator"
    build = classifier_nn if family in RATIOS else BUILDERS[family]
    network = name
    if name == "builder":
        network = build("mlp", z_score_x="structured")
    elif name == "embedding":
        net = FCEmbedding(input_dim=2, output_dim=3, num_hiddens=5)
        option = "embedding_net_x" if family in RATIOS else "embedding_net"
        network = build("mlp", **{option: net})
    trained = train(make("MF", family, **{argument: network}))
    assert outputs(trained, family).isfinite().all()


@family
def test_ensembles(family):
    trainer = make("MF", family)
    options = {"max_num_epochs": 1, "training_batch_size": 100}
    ensemble = train_ensemble(trainer, 2, train_options=options)
    first, second = (outputs(each.eval(), family) for each in ensemble.estimators)
    assert not torch.equal(first, second)


@single
@family
def test_training_starts_from_weights(method, family, tmp_path):
    source = make("MF", family)
    network = train(source)
    torch.save(network.state_dict(), tmp_path / "weights.pt")
    trainer = make(method, family)
    if method == "ML":  # the network of a multilevel trainer has no map of x
        trainer.warm_start(network)
    else:
        trainer.warm_start(tmp_path / "weights.pt")
    assert outputs(train(trainer), family).isfinite().all()


# ------------------------------------------------------------- afterwards


@every
@family
def test_pickling(method, family):
    trainer = make(method, family)
    network = train(trainer)
    copy = pickle.loads(pickle.dumps(trainer))
    torch.testing.assert_close(
        outputs(copy._neural_net, family), outputs(network, family)
    )


@every
@pytest.mark.parametrize("family", FAMILIES)
def test_posteriors_are_those_of_sbi(method, family):
    trainer = make(method, family)
    train(trainer)
    built = trainer.build_posterior()
    wanted = MCMCPosterior if family in RATIOS else VectorFieldPosterior
    assert isinstance(built, wanted)
    built = pickle.loads(pickle.dumps(built))
    options = {"show_progress_bars": False}
    if family in RATIOS:
        options |= {"num_chains": 5, "warmup_steps": 5, "thin": 1}
        options["init_strategy_parameters"] = {"num_candidate_samples": 20}
    samples = built.sample((20,), x=torch.zeros(1, 2), **options)
    assert samples.shape == (20, 2)
    assert samples.isfinite().all()
    with pytest.warns(UserWarning, match="far outside of the training simulations"):
        built.sample((1,), x=torch.full((1, 2), 1e4), **options)


@pytest.mark.parametrize("family", ("NRE", "NRE_C", "FMPE"))
def test_a_hybrid_reports_what_it_chose(family):
    trainer = make("Hybrid", family)
    train(trainer)
    summary = trainer.hybrid_summary
    assert sum(summary.weights.values()) == pytest.approx(1)
    assert set(summary.log_scores) == {
        "with lower levels",
        "high fidelity alone",
        "prior",
    }
    # the prior is the standard normal distribution of two parameters
    assert summary.log_scores["prior"] == pytest.approx(-2.84, abs=0.5)
    assert (summary.distillation is None) == (family in RATIOS)
    assert summary.level_maps == ("shift", "shift")


def test_an_interrupted_hybrid_of_vector_fields_has_no_network(monkeypatch):
    trainer = make("Hybrid", "FMPE")

    def interrupt(*args):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr("sbi_multilevel.methods.hybrid.pool.MapSelector.steps", interrupt)
        with pytest.raises(KeyboardInterrupt):
            train(trainer)
    with pytest.raises(AssertionError, match="estimator"):
        trainer.build_posterior()
    train(trainer)
    assert trainer.build_posterior() is not None


# ------------------------------------------------------------- exactness


def observations(num=40):
    torch.manual_seed(2)
    return simulate(prior().sample((num,)), torch.randn(num, 2), level=2)


def gap(network):
    """Mean divergence of the exact posterior from that of a ratio, in nats."""
    grid = torch.linspace(-4.5, 4.5, 61)
    points = torch.cartesian_prod(grid, grid)
    gaps = []
    for x in observations():
        exact = posterior(x).log_prob(points).log_softmax(0)
        with torch.no_grad():
            found = network(points, x.expand(len(points), -1)) + prior().log_prob(
                points
            )
        gaps.append(float((exact.exp() * (exact - found.log_softmax(0))).sum()))
    return sum(gaps) / len(gaps)


@pytest.mark.slow
@pytest.mark.parametrize("family", RATIOS)
def test_ratios_of_the_highest_level_are_learned(family):
    """The divergence is far below that of the exact posteriors of level 0."""
    of_level_0 = [
        kl_divergence(posterior(x), posterior(x, level=0)) for x in observations()
    ]
    torch.manual_seed(0)
    config = MultilevelConfig(schedule=OneCycle())
    trainer = make("ML", family, simulations((4_000, 400, 100)), config=config)
    network = trainer.train(training_batch_size=400).eval()
    assert gap(network) < 0.5 * float(sum(of_level_0) / len(of_level_0))


# ------------------------------------------------------------- bad input


@family
def test_an_unknown_network_is_refused(family):
    argument = "classifier" if family in RATIOS else "vf_estimator"
    with pytest.raises(ValueError, match=f"{argument}='nsf' is no network of sbi"):
        make("ML", family, **{argument: "nsf"})
    with pytest.raises(TypeError, match=f"{argument} is a Linear"):
        make("ML", family, **{argument: torch.nn.Linear(2, 2)})


@pytest.mark.parametrize(
    ("family", "build"), [("NRE", posterior_flow_nn), ("FMPE", classifier_nn)]
)
def test_a_builder_of_another_family_is_refused(family, build):
    argument = "classifier" if family in RATIOS else "vf_estimator"
    with pytest.raises(TypeError, match=f"{argument} builds a .* but must build a"):
        train(make("ML", family, **{argument: build("mlp")}))


@every
@pytest.mark.parametrize("family", ("NRE", "FMPE"))
def test_one_theta_is_refused(method, family):
    trainer = make(method, family)
    for index, theta in enumerate(trainer._theta_roundwise):
        trainer._theta_roundwise[index] = torch.ones_like(theta)
    with pytest.raises(ValueError, match="theta"):
        train(trainer)


@pytest.mark.parametrize("family", RATIOS)
def test_weights_are_refused_for_ratios(family):
    trainer = make("MF", family)
    rows = simulations(SMALL)[2]
    with pytest.raises(ValueError, match="weights were passed"):
        trainer.append_weighted_simulations(rows.theta, rows.x, torch.ones(len(rows)))


@every
@family
def test_proposals_are_refused(method, family):
    trainer = make(method, family)
    rows = simulations(SMALL)[0]
    proposal = torch.distributions.MultivariateNormal(torch.zeros(2), torch.eye(2))
    with pytest.raises(ValueError, match="proposal is a MultivariateNormal"):
        trainer.append_multilevel_simulations(
            rows.theta, rows.x, level=0, proposal=proposal
        )


def test_a_network_that_is_not_trained_is_refused():
    with pytest.raises(ValueError, match="density_estimator='tabpfn' is a network"):
        sml.MLNPE(prior(), density_estimator="tabpfn")


# ------------------------------------------------------------- calibration


@pytest.mark.slow
@pytest.mark.parametrize("family", ("NRE", "FMPE", "NPSE"))
def test_posteriors_of_hybrids_are_calibrated(family):
    """Ranks of true parameters among posterior samples are uniform."""
    torch.manual_seed(0)
    sims = simulations((3_000, 300, 100))
    trainer = make("Hybrid", family, sims, config=HybridConfig(level_maps=("paired",)))
    network = trainer.train(training_batch_size=200).eval()
    theta = prior().sample((200,))
    x = simulate(theta, torch.randn(200, 2), level=2)
    candidates = prior().sample((20_000,))
    ranks = torch.empty(200, 2)
    for index in range(200):
        given = x[index].expand(len(candidates), -1)
        if family == "NRE":
            with torch.no_grad():
                weights = network(candidates, given).softmax(0)
            draws = candidates[torch.multinomial(weights, 200)]
        else:
            draws = VectorFieldDensity(network).sample(torch.Size((200,)), x[[index]])
            draws = draws[:, 0]
        ranks[index] = (draws < theta[index]).float().mean(dim=0)
    for column in ranks.T:
        assert kstest(column.numpy(), "uniform").statistic < 2.0 / 200**0.5
