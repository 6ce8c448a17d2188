"""Transfer: stages, alignment, unconstrained theta, warm starts, freezing, columns."""

import pickle
from copy import deepcopy

import pytest
import torch
from sbi.neural_nets import posterior_nn
from sbi.neural_nets.embedding_nets import FCEmbedding
from sbi.utils import BoxUniform

from sbi_multilevel import MFNLE, MFNPE, MLNPE, TransferConfig
from sbi_multilevel.estimators.transformed import MappedEstimator
from sbi_multilevel.training.schedule import Term
from tests.linear_gaussian import SilentTracker, posterior, prior, simulations
from tests.test_trainers import weights

pytestmark = [
    pytest.mark.filterwarnings("ignore:Maximum number of epochs"),
    pytest.mark.filterwarnings("ignore:When the inference object is pickled"),
]
BOX = BoxUniform(torch.tensor([-2.0, 0.0]), torch.tensor([1.0, 5.0]))
both = pytest.mark.parametrize("cls", (MFNPE, MFNLE))
FEW = dict(max_num_epochs=2, training_batch_size=100)
SIMS = simulations((400, 60, 60))
QUIET = {"show_progress_bars": False}


def make(cls=MFNPE, the_prior=None, density_estimator="mdn", low=True, **options):
    options = {"tracker": SilentTracker(), "show_progress_bars": False, **options}
    trainer = cls(the_prior or prior(), density_estimator, **options)
    if low:
        for rows in SIMS.levels[:2]:
            trainer.append_lowfidelity_simulations(rows.theta, rows.x, rows.level)
    return trainer.append_simulations(SIMS[2].theta, SIMS[2].x)


def box_rows(n, shift=0.0):
    theta = BOX.sample((n,))
    return theta, theta + shift + 0.3 * torch.randn(n, 2)


# ------------------------------------------------------------- stages


def test_stages_of_transfer():
    names = [stage.levels for stage in TransferConfig().stages(3)]
    assert names == [(0,), (1,), (2,)]
    joint = TransferConfig(joint_pretraining=True, fine_tuning_rate=0.1, freeze=("a",))
    first, last = joint.stages(3)
    assert (first.levels, last.levels) == ((0, 1, 2), (2,))
    assert (first.rate, first.freeze, first.is_warm) == (1.0, (), False)
    assert (last.rate, last.freeze, last.is_warm) == (0.1, ("a",), True)
    assert joint.stages(1)[0].terms == (Term(0),)
    (only,) = joint.stages(1, is_pretrained=True)
    assert (only.rate, only.is_warm) == (0.1, True)


def test_stages_of_rehearsal():
    first, second, third = TransferConfig(rehearsal=0.4, freeze=("a",)).stages(3)
    assert first.terms == (Term(0),) and first.num_batches is None
    assert second.terms == (Term(0, 0.4), Term(1, 0.6))
    assert third.terms == (Term(0, 0.2), Term(1, 0.2), Term(2, 0.6))
    assert (third.freeze, third.is_warm, third.adjustment) == (("a",), True, "none")
    assert third.num_batches == 10


def test_without_rehearsal_stages_are_those_of_the_paper():
    for stage in (
        *TransferConfig().stages(3),
        *TransferConfig().stages(2, is_pretrained=True),
    ):
        assert len(stage.terms) == 1 and stage.terms[0].weight == 1.0
        assert stage.num_batches is None


def test_only_levels_above_the_first_rehearse():
    config = TransferConfig(rehearsal=0.4)
    (only,) = config.stages(1, is_pretrained=True)
    assert only.terms == (Term(0),) and only.is_warm
    joint = TransferConfig(rehearsal=0.4, joint_pretraining=True)
    for is_pretrained in (False, True):
        first, last = joint.stages(3, is_pretrained)
        assert first.terms == (Term(0), Term(1), Term(2))
        assert last.terms == config.stages(3)[-1].terms


@both
def test_simulations_without_a_level_are_of_highest_level_in_any_order(cls):
    first = make(cls)
    other = make(cls, low=False)
    for rows in SIMS.levels[:2]:
        other.append_lowfidelity_simulations(rows.theta, rows.x, rows.level)
    for trainer in (first, other):
        counts = trainer._check_trainable().num_simulations
        assert counts == (400, 60, 60)
        assert torch.equal(trainer._check_trainable()[2].x, SIMS[2].x)


def test_coarse_sides_of_pairs_join_the_level_below():
    trainer = MFNPE(prior(), tracker=SilentTracker())
    trainer.append_multilevel_simulations(SIMS)
    arranged = trainer._check_trainable()
    assert arranged.num_simulations == (460, 120, 60)
    assert torch.equal(arranged[0].x[400:], SIMS[1].x_coarse)
    assert torch.equal(arranged[1].theta[60:], SIMS[2].theta)


@both
def test_each_stage_trains_on_its_level_until_it_stops_by_itself(cls):
    trainer = make(cls)
    trainer.train(learning_rate=0.02, stop_after_epochs=3)
    epochs = trainer.summary["epochs_trained"]
    assert len(epochs) == len(trainer.summary["best_validation_loss"]) == 3
    assert sum(epochs) == len(trainer.summary["training_loss"])
    for level in range(3):
        losses = trainer.summary[f"validation_loss_level_{level}"]
        assert len(losses) == epochs[level] >= 3
        best = trainer.summary["best_validation_loss"][level]
        assert best <= min(losses)
        assert level > 0 or best == min(losses)


def test_a_stage_that_only_harms_keeps_the_weights_it_started_from():
    trainer = make(config=TransferConfig(fine_tuning_rate=200.0, alignment=None))
    states = []
    run = trainer._plan.stages_to_train
    trainer._plan.stages_to_train = lambda resume: run(resume)[:1]
    trainer.train(stop_after_epochs=3, max_num_epochs=30)
    states.append(weights(trainer._neural_net))
    trainer._plan.stages_to_train = lambda resume: [2]
    trainer.train(force_first_round_loss=True, stop_after_epochs=3)
    assert torch.equal(states[0], weights(trainer._neural_net))


@both
def test_new_simulations_train_only_the_stages_they_belong_to(cls):
    trainer = make(cls)
    trainer.train(**FEW)
    assert len(trainer.summary["epochs_trained"]) == 3
    trainer.append_simulations(SIMS[2].theta, SIMS[2].x)
    force = {"force_first_round_loss": True} if cls is MFNPE else {}
    trainer.train(**force, **FEW)
    assert len(trainer.summary["epochs_trained"]) == 4
    trainer.train(retrain_from_scratch=True, **force, **FEW)
    assert len(trainer.summary["epochs_trained"]) == 7


def test_pretraining_alone():
    low = SIMS[0]
    trainer = MFNPE(prior(), "mdn", tracker=SilentTracker(), show_progress_bars=False)
    trainer.append_lowfidelity_simulations(low.theta, low.x)
    trainer.train(**FEW)
    assert len(trainer.summary["epochs_trained"]) == 1
    trainer.append_simulations(SIMS[2].theta, SIMS[2].x)
    trainer.train(force_first_round_loss=True, **FEW)
    assert len(trainer.summary["epochs_trained"]) == 2


@both
def test_training_resumes_in_the_stage_it_was_in(cls):
    trainer = make(cls)
    run, calls = trainer._plan.stages_to_train, []

    def interrupted(resume):
        for index in run(resume):
            calls.append(index)
            if index == 1 and len(calls) == 2:
                raise KeyboardInterrupt
            yield index

    trainer._plan.stages_to_train = interrupted
    with pytest.raises(KeyboardInterrupt):
        trainer.train(**FEW)
    trainer._plan.stages_to_train = run
    trainer.train(resume_training=True, training_batch_size=100, max_num_epochs=4)
    assert trainer.summary["epochs_trained"] == [3, 5, 5, 5]


# ------------------------------------------------------------- settings


def test_frozen_parameters_stay_and_others_move():
    embedding = FCEmbedding(input_dim=2, output_dim=3, num_hiddens=5)
    build = posterior_nn("maf", embedding_net=embedding)
    config = TransferConfig(freeze=("*embedding_net*",))
    trainer = make(density_estimator=build, config=config)
    run = trainer._plan.stages_to_train
    trainer._plan.stages_to_train = lambda resume: run(resume)[:1]
    trainer.train(**FEW)
    before = deepcopy(dict(trainer._neural_net.named_parameters()))
    trainer._plan.stages_to_train = run
    trainer.train(force_first_round_loss=True, **FEW)
    after = dict(trainer._neural_net.named_parameters())
    moved = {name for name in after if not torch.equal(before[name], after[name])}
    frozen = {name for name in after if "embedding_net" in name}
    assert frozen and moved and not (moved & frozen)
    assert all(p.requires_grad for p in after.values())


@pytest.mark.parametrize(
    "freeze, named", [(("*nothing*",), "matches no parameter"), (("*",), "matches all")]
)
def test_freezing_nothing_or_all_is_refused(freeze, named):
    with pytest.raises(ValueError, match=named):
        make(config=TransferConfig(freeze=freeze)).train(**FEW)


@both
def test_rehearsed_levels_enter_the_held_out_loss_by_their_shares(cls):
    trainer = make(cls, config=TransferConfig(rehearsal=0.4, alignment=None))
    trainer.train(**FEW)
    network, split = trainer._neural_net.eval(), trainer._plan.split
    assert split is not None
    shares = []
    for level in range(3):
        theta = SIMS[level].theta[split.validation[level]]
        x = SIMS[level].x[split.validation[level]]
        pair = (theta, x) if cls is MFNPE else (x, theta)
        shares.append(network.loss(*pair).mean().item() * (0.2, 0.2, 0.6)[level])
    running = trainer._plan.running
    found = running._term_losses(running.held_out).means
    assert found == pytest.approx(shares, rel=1e-4, abs=1e-4)


def test_rehearsal_keeps_the_network_near_the_fit_of_lower_levels():
    """A few distant high-fidelity simulations cost less on level 0 with rehearsal."""
    losses = {}
    for rehearsal in (0.0, 0.5):
        torch.manual_seed(0)
        config = TransferConfig(
            rehearsal=rehearsal, alignment=None, early_stopping=False
        )
        trainer = MFNPE(prior(), "mdn", config=config, tracker=SilentTracker(), **QUIET)
        trainer.append_lowfidelity_simulations(SIMS[0].theta, SIMS[0].x)
        trainer.append_simulations(SIMS[2].theta[:12], SIMS[2].x[:12] + 3.0)
        network = trainer.train(learning_rate=0.01, max_num_epochs=40).eval()
        losses[rehearsal] = network.loss(SIMS[0].theta, SIMS[0].x).mean().item()
    assert losses[0.5] < losses[0.0] - 0.1


def test_the_rate_of_fine_tuning_reaches_the_optimizer():
    trainer = make(config=TransferConfig(fine_tuning_rate=0.1))
    trainer.train(learning_rate=2e-3, **FEW)
    assert trainer.optimizer.param_groups[0]["lr"] == pytest.approx(2e-4)


@pytest.mark.parametrize(
    "bad",
    [
        dict(alignment="paired"),
        dict(fine_tuning_rate=0.0),
        dict(freeze="net*"),
        dict(rehearsal=-0.1),
        dict(rehearsal=1.0),
        dict(rehearsal=float("nan")),
    ],
)
def test_bad_settings_are_refused(bad):
    with pytest.raises(ValueError, match=next(iter(bad))):
        TransferConfig(**bad)


# ------------------------------------------------------------- alignment


@both
def test_x_is_read_at_the_scale_of_level_0(cls):
    """An affine change of all high-fidelity x changes nothing but their density."""
    scale, shift = torch.tensor([3.0, 0.5]), torch.tensor([-7.0, 2.0])
    networks, high = [], SIMS[2]
    for x in (high.x, (high.x - shift) / scale):
        torch.manual_seed(0)
        trainer = make(cls, low=False)
        trainer._x_roundwise[0] = x
        trainer.append_lowfidelity_simulations(SIMS[0].theta, SIMS[0].x)
        networks.append(trainer.train(**FEW).eval())
    theta, x = high.theta[:5], high.x[:5]
    moved = (x - shift) / scale
    if cls is MFNPE:
        first = networks[0].log_prob(theta[None], x)
        second = networks[1].log_prob(theta[None], moved)
    else:
        first = networks[0].log_prob(x[None], theta)
        second = networks[1].log_prob(moved[None], theta) - scale.abs().log().sum()
    assert torch.allclose(first, second, atol=2e-3)


def test_without_alignment_x_is_read_as_it_is():
    network = make(config=TransferConfig(alignment=None)).train(**FEW)
    assert torch.equal(network.x_scale, torch.ones(2))
    assert torch.equal(network.x_shift, torch.zeros(2))
    network = make().train(**FEW)
    rows = SIMS[2].x
    assert not torch.equal(network.x_scale, torch.ones(2))
    assert torch.allclose(network.x_scale, SIMS[0].x.std(0) / rows.std(0), atol=0.3)


def test_images_share_one_scale():
    theta, x = box_rows(60)
    images = x[:, :, None].repeat(1, 1, 3)
    embedding = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(6, 4))
    build = posterior_nn("maf", embedding_net=embedding)
    trainer = make(the_prior=BOX, density_estimator=build, low=False)
    trainer._theta_roundwise[0], trainer._x_roundwise[0] = theta, 2 * images
    trainer.append_lowfidelity_simulations(theta, images)
    network = trainer.train(**FEW)
    assert network.x_scale.shape == ()
    assert network.x_scale == pytest.approx(0.5, abs=0.05)


# ------------------------------------------------------------- weights and the rest


def test_weights_enter_the_loss():
    theta, x = SIMS[2].theta, SIMS[2].x
    chosen = torch.rand(len(theta)) < 0.5
    networks = []
    for rows, w in ((chosen, None), (slice(None), chosen.float() + 1e-7)):
        trainer = MFNPE(prior(), "mdn", tracker=SilentTracker())
        weight = torch.ones(int(chosen.sum())) if w is None else w
        trainer.append_weighted_simulations(theta[rows], x[rows], weight)
        trainer.get_dataloaders()
        networks.append(trainer._plan.layout.dataset.dataset.tensors[3])
    assert torch.equal(networks[0], torch.ones(int(chosen.sum())))
    assert networks[1].mean() == pytest.approx(1.0, abs=1e-5)
    assert networks[1][~chosen].max() < 1e-5


@pytest.mark.parametrize(
    "w", (torch.zeros(60), torch.ones(59), torch.full((60,), torch.nan))
)
def test_bad_weights_are_refused(w):
    trainer = MFNPE(prior(), "mdn", tracker=SilentTracker())
    with pytest.raises(ValueError, match="weights of level 0"):
        trainer.append_weighted_simulations(SIMS[2].theta, SIMS[2].x, w)
    with pytest.raises(ValueError, match="weights were passed"):
        MLNPE(prior(), tracker=SilentTracker()).append_weighted_simulations(
            SIMS[2].theta, SIMS[2].x, torch.ones(60)
        )


def test_simulations_of_another_shape_are_refused():
    with pytest.raises(ValueError, match=r"x of level 0 has shape \(3,\)"):
        make(low=False).append_lowfidelity_simulations(
            torch.randn(20, 2), torch.randn(20, 3)
        )


def test_a_proposal_that_is_not_the_prior_is_refused():
    trainer = make()
    trainer.append_simulations(SIMS[2].theta, SIMS[2].x, proposal=BOX)
    with pytest.raises(ValueError, match="later round"):
        trainer.train(**FEW)


def test_the_working_copy_of_the_simulations_is_not_pickled():
    trainer = make()
    trainer.train(**FEW)
    assert trainer._plan.layout is not None
    assert pickle.loads(pickle.dumps(trainer))._plan.layout is None


def test_low_fidelity_simulations_help():
    """With 15 high-fidelity simulations, similar low-fidelity ones lower the error."""
    errors = {True: [], False: []}
    x_o = torch.tensor([[0.5, -0.4]])
    exact = posterior(x_o[0])
    for seed in range(3):
        sims = simulations((2_000, 30, 15), seed=seed)
        for low in errors:
            torch.manual_seed(seed)
            trainer = MFNPE(
                prior(), "mdn", tracker=SilentTracker(), show_progress_bars=False
            )
            if low:
                trainer.append_lowfidelity_simulations(sims[0].theta, sims[0].x)
            trainer.append_simulations(sims[2].theta, sims[2].x)
            network = trainer.train(learning_rate=2e-3)
            samples = network.sample((2_000,), x_o)[:, 0]
            gap = (samples.mean(0) - exact.mean).norm() + (
                samples.std(0) - exact.stddev
            ).norm()
            errors[low].append(gap.item())
    assert sum(errors[True]) < sum(errors[False])


def test_mapped_estimators_pickle():
    network = make().train(**FEW).eval()
    copy = pickle.loads(pickle.dumps(network))
    assert isinstance(copy, MappedEstimator)
    x = SIMS[2].x[:2]
    a, b = (n.log_prob(SIMS[2].theta[None, :2], x) for n in (network, copy))
    assert torch.equal(a, b)
