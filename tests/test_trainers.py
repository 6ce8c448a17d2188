"""One contract that every multilevel trainer must keep."""

import inspect
import pickle
import warnings
from functools import cache

import pytest
import torch
from sbi.inference import NLE, NPE
from sbi.neural_nets import likelihood_nn, posterior_nn
from sbi.neural_nets.embedding_nets import FCEmbedding

from sbi_multilevel import (
    MFNLE,
    MFNPE,
    MLNLE,
    MLNPE,
    HybridNLE,
    HybridNPE,
    MultilevelConfig,
    TransferConfig,
)
from tests.linear_gaussian import SilentTracker, posterior, prior, simulations

PARENTS = {
    MLNPE: NPE,
    MLNLE: NLE,
    MFNPE: NPE,
    MFNLE: NLE,
    HybridNPE: NPE,
    HybridNLE: NLE,
}
BUILDERS = {NPE: posterior_nn, NLE: likelihood_nn}
STRINGS = ("mdn", "maf", "nsf", "made")
FEW = dict(max_num_epochs=1, training_batch_size=100)
COUNTS = (200, 40, 30)

every = pytest.mark.parametrize("cls", tuple(PARENTS))
# those that train one network; for ensembles see `test_hybrid.py`
multilevel = pytest.mark.parametrize("cls", (MLNPE, MLNLE))
single = pytest.mark.parametrize("cls", tuple(PARENTS)[:4])
pytestmark = [
    pytest.mark.filterwarnings("ignore:Maximum number of epochs"),
    pytest.mark.filterwarnings("ignore:When the inference object is pickled"),
]


def make(cls, density_estimator="mdn", sims=None, **options):
    options = {"tracker": SilentTracker(), "show_progress_bars": False, **options}
    trainer = cls(prior(), density_estimator=density_estimator, **options)
    return trainer.append_multilevel_simulations(sims or simulations(COUNTS))


@pytest.fixture(scope="module")
def trained():
    """A trained trainer of each class, for tests that do not change it."""

    @cache
    def train(cls):
        torch.manual_seed(1)
        trainer = make(cls)
        trainer.train(**FEW)
        return trainer

    return train


def weights(network):
    return torch.cat([
        value.flatten().float() for value in network.state_dict().values()
    ])


def single_level_simulations():
    rows = simulations(COUNTS)[0]
    return rows.theta, rows.x


# ------------------------------------------------------------- as its parent


@every
@pytest.mark.parametrize("density_estimator", STRINGS)
def test_with_append_simulations_alone_weights_are_those_of_the_parent(
    cls, density_estimator
):
    networks = []
    for trainer_class in (cls, PARENTS[cls]):
        torch.manual_seed(5)
        trainer = trainer_class(
            prior(),
            density_estimator=density_estimator,
            tracker=SilentTracker(),
            show_progress_bars=False,
        )
        trainer.append_simulations(*single_level_simulations())
        networks.append(trainer.train(max_num_epochs=2))
    assert torch.equal(*(weights(network) for network in networks))


@every
def test_arguments_are_those_of_the_parent_and_ours(cls):
    ours = inspect.signature(cls).parameters
    parents = inspect.signature(PARENTS[cls]).parameters
    assert list(ours) == [*parents, "config", "parameters"]
    assert all(ours[name].default == parents[name].default for name in parents)
    ours, parents = (inspect.signature(c.train) for c in (cls, PARENTS[cls]))
    assert ours == parents


# ------------------------------------------------------------- estimators


@single
@pytest.mark.parametrize(
    "density_estimator", (*STRINGS, "zuko_nsf", "zuko_maf", "maf_rqs", "embedding")
)
def test_any_estimator_of_the_parent_trains(cls, density_estimator):
    build = BUILDERS[PARENTS[cls]]
    if density_estimator == "embedding":
        net = FCEmbedding(input_dim=2, output_dim=3, num_hiddens=5)
        density_estimator = build("maf", embedding_net=net)
    elif density_estimator not in STRINGS:
        density_estimator = build(density_estimator)
    trainer = make(cls, density_estimator)
    network = trainer.train(**FEW)
    assert torch.isfinite(weights(network)).all()
    assert all(torch.isfinite(torch.tensor(trainer.summary["training_loss"])))


@pytest.mark.parametrize("family", (0, 1), ids=("NPE", "NLE"))
@pytest.mark.parametrize(
    "config",
    [
        *(MultilevelConfig(adjustment=a) for a in ("rescale", "project", "none")),
        *(MultilevelConfig(alignment=kind) for kind in ("affine", "standardize", None)),
        MultilevelConfig(early_stopping=False, betas=(0.85, 0.999), weight_decay=1e-3),
        TransferConfig(),
        TransferConfig(alignment=None, joint_pretraining=True),
        TransferConfig(early_stopping=False, fine_tuning_rate=0.1),
    ],
    ids=str,
)
@pytest.mark.parametrize("levels", (pytest.param(2, marks=pytest.mark.slow), 3))
def test_any_settings_train_any_number_of_levels(family, config, levels):
    is_multilevel = isinstance(config, MultilevelConfig)
    cls = ((MLNPE, MLNLE) if is_multilevel else (MFNPE, MFNLE))[family]
    sims = simulations((200, 30, 20)[:levels])
    trainer = make(cls, sims=sims, config=config)
    trainer.train(max_num_epochs=10, training_batch_size=100, learning_rate=5e-3)
    losses = trainer.summary["training_loss"]
    assert losses[-1] < losses[0]


@multilevel
def test_the_network_is_built_on_the_aligned_training_simulations(cls):
    seen, build = [], BUILDERS[PARENTS[cls]]("mdn")

    def builder(theta, x):
        seen.append((theta, x))
        return build(theta, x)

    trainer = make(cls, builder, config=MultilevelConfig(alignment="affine"))
    trainer.train(**FEW)
    theta, x, *_ = trainer._plan.layout.dataset.dataset[trainer.train_indices]
    assert len(seen) == 1
    assert torch.equal(seen[0][0], theta) and torch.equal(seen[0][1], x)


@single
def test_settings_of_the_optimizer_reach_it(cls):
    config = cls._config_type(betas=(0.85, 0.99), weight_decay=0.01)
    trainer = make(cls, config=config)
    trainer.train(learning_rate=3e-4, **FEW)
    (group,) = trainer.optimizer.param_groups
    assert group["betas"] == (0.85, 0.99) and group["weight_decay"] == 0.01
    assert group["lr"] == 3e-4


# ------------------------------------------------------------- training


@single
def test_training_is_deterministic_by_seed(cls):
    def train(seed):
        torch.manual_seed(seed)
        return weights(make(cls).train(**FEW))

    assert torch.equal(train(3), train(3))
    assert not torch.equal(train(3), train(4))


@single
def test_simulations_in_parts_are_the_same_simulations(cls):
    sims = simulations(COUNTS)
    trainer = cls(
        prior(),
        density_estimator="mdn",
        tracker=SilentTracker(),
        show_progress_bars=False,
    )
    trainer.append_lowfidelity_simulations(sims[0].theta[:90], sims[0].x[:90])
    trainer.append_multilevel_simulations(sims[0].theta[90:], sims[0].x[90:], level=0)
    for rows in sims.levels[1:]:
        trainer.append_multilevel_simulations(
            rows.theta, rows.x, rows.x_coarse, level=rows.level
        )
    networks = []
    for one in (trainer, make(cls, sims=sims)):
        torch.manual_seed(3)
        networks.append(one.train(**FEW))
    assert torch.equal(*(weights(network) for network in networks))


@multilevel
def test_early_stopping_keeps_the_best_weights(cls):
    trainer = make(cls, "mdn")
    trainer.train(learning_rate=0.02, stop_after_epochs=3, max_num_epochs=300)
    losses = trainer.summary["validation_loss"]
    assert len(losses) < 300
    assert trainer.summary["best_validation_loss"] == [min(losses)]
    _, loader = trainer.get_dataloaders(resume_training=True)
    trainer._neural_net.eval()
    arguments = None
    if PARENTS[cls] is NPE:
        from sbi.inference.trainers._contracts import LossArgsNPE

        arguments = LossArgsNPE(calibration_kernel=lambda x: torch.ones(len(x)))
    loss = trainer._validate_epoch(loader, arguments)
    assert loss == pytest.approx(min(losses), abs=1e-4)


@multilevel
def test_without_early_stopping_the_last_weights_of_all_simulations_are_kept(cls):
    trainer = make(cls, "mdn", config=cls._config_type(early_stopping=False))
    states = []
    step = trainer._train_epoch

    def spy(*arguments):
        value = step(*arguments)
        states.append(weights(trainer._neural_net))
        return value

    trainer._train_epoch = spy
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # asked for, so nothing to warn of
        network = trainer.train(max_num_epochs=7, learning_rate=0.05)
    assert len(states) == 8  # sbi counts epochs from 0 to max_num_epochs
    assert torch.equal(weights(network), states[-1])
    assert len(trainer.val_indices) == 0
    assert all(value != value for value in trainer.summary["validation_loss"])  # NaN


@single
def test_training_resumes(cls):
    trainer = make(cls)
    trainer.train(**FEW)
    split, epochs = trainer._plan.split, len(trainer.summary["training_loss"])
    before = weights(trainer._neural_net)
    trainer.train(resume_training=True, training_batch_size=100, max_num_epochs=5)
    assert trainer._plan.split is split
    assert len(trainer.summary["training_loss"]) > epochs
    assert not torch.equal(before, weights(trainer._neural_net))


@single
def test_a_network_is_retrained_from_scratch(cls):
    trainer = make(cls)
    first = trainer.train(**FEW)
    force = {"force_first_round_loss": True} if PARENTS[cls] is NPE else {}
    second = trainer.train(retrain_from_scratch=True, **force, **FEW)
    assert first is not second


@single
def test_more_simulations_continue_training(cls):
    trainer = make(cls)
    network = trainer.train(**FEW)
    trainer.append_multilevel_simulations(simulations(COUNTS, seed=9))
    assert trainer.multilevel_simulations.num_simulations == (400, 80, 60)
    force = {"force_first_round_loss": True} if PARENTS[cls] is NPE else {}
    assert trainer.train(**force, **FEW) is network


@multilevel
def test_the_summary_and_the_tracker_distinguish_levels(cls, capsys):
    tracker = SilentTracker()
    config = MultilevelConfig(stopping="telescoping")
    trainer = make(cls, tracker=tracker, config=config)
    trainer.train(show_train_summary=True, **FEW)
    assert "Best validation performance" in capsys.readouterr().out
    logged = {}
    for name, value, step in tracker.metrics:
        logged.setdefault(name, []).append((step, value))
    for kind in ("training_loss", "validation_loss"):
        steps, totals = zip(*sorted(logged[kind]))
        parts = [dict(logged[f"{kind}/level_{level}"]) for level in range(3)]
        for step, total in zip(steps, totals):
            in_all = sum(p.get(step, 0.0) for p in parts)
            assert in_all == pytest.approx(total, abs=1e-4)


@single
def test_pickling(cls):
    trainer = make(cls)
    trainer.train(**FEW)
    copy = pickle.loads(pickle.dumps(trainer))
    assert torch.equal(weights(copy._neural_net), weights(trainer._neural_net))
    rows = copy.multilevel_simulations, trainer.multilevel_simulations
    assert all(torch.equal(a.x, b.x) for a, b in zip(*rows))
    copy.train(resume_training=True, training_batch_size=100, max_num_epochs=4)
    copy.build_posterior(sample_with="importance")


@single
def test_options_of_the_data_loaders_are_passed_on(cls):
    trainer = make(cls)
    trainer.train(dataloader_kwargs={"num_workers": 1}, **FEW)
    loaders = trainer.get_dataloaders(dataloader_kwargs={"num_workers": 1})
    assert [loader.num_workers for loader in loaders] == [1, 1]


def ways_to_sample():
    for cls in tuple(PARENTS)[:4]:
        for sample_with in ("mcmc", "rejection", "vi", "importance", "direct"):
            if PARENTS[cls] is NLE and sample_with == "direct":
                continue  # sbi's NLE has no direct posterior
            # MCMC is the default of NLE, and each chain of sbi has 50 tuning steps
            is_slow = PARENTS[cls] is NPE and sample_with == "mcmc"
            marks = [pytest.mark.slow] if is_slow else []
            yield pytest.param(cls, sample_with, marks=marks)


@pytest.mark.parametrize(("cls", "sample_with"), ways_to_sample())
def test_posteriors_are_those_of_sbi(cls, sample_with, trained):
    built = trained(cls).build_posterior(sample_with=sample_with)
    built.set_default_x(torch.zeros(2))
    options = {"show_progress_bars": False}
    if sample_with == "mcmc":
        options |= {"warmup_steps": 5, "num_chains": 4, "thin": 1}
        options["init_strategy_parameters"] = {"num_candidate_samples": 20}
    if sample_with == "vi":
        training = {"max_num_iters": 5, "warm_up_rounds": 5, "quality_control": False}
        built.train(**training, show_progress_bar=False)
        options = {}
    assert built.sample((20,), **options).shape == (20, 2)


# ------------------------------------------------------------- statistics


@pytest.mark.parametrize(
    "cls",
    (
        MLNPE,
        *(pytest.param(cls, marks=pytest.mark.slow) for cls in (MLNLE, MFNPE, MFNLE)),
    ),
)
def test_the_posterior_is_that_of_the_highest_level(cls):
    """Exact truth: low-fidelity simulations alone give another posterior."""
    fine_tuned = issubclass(cls, (MFNPE, MFNLE))  # needs more of the highest level
    sims = simulations((4_000, 400, 1_500 if fine_tuned else 200))
    trainer = make(cls, "mdn", sims)
    trainer.train(learning_rate=5e-3, training_batch_size=500)
    x_o = torch.tensor([1.0, 0.8])
    exact, low = posterior(x_o), posterior(x_o, level=0)
    built = trainer.build_posterior(
        sample_with="importance" if PARENTS[cls] is NLE else "direct"
    )
    samples = built.sample((4_000,), x=x_o, show_progress_bars=False)
    error = (samples.mean(dim=0) - exact.mean).abs() / exact.stddev
    gap = (low.mean - exact.mean).abs() / exact.stddev
    assert error.max() < 0.35 < gap.max()
    assert ((samples.std(dim=0) / exact.stddev).log().abs() < 0.25).all()
