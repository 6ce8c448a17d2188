"""Ensembles of any trainer."""

import pytest
import torch
from sbi.inference import EnsemblePosterior
from sbi.neural_nets import posterior_nn
from sbi.neural_nets.embedding_nets import FCEmbedding

from sbi_multilevel import MFNLE, MFNPE, MLNLE, MLNPE, train_ensemble
from tests.linear_gaussian import SilentTracker, prior, simulations
from tests.test_trainers import weights

SIMS = simulations((200, 40, 40))
FEW = {"max_num_epochs": 2, "training_batch_size": 100}
OPTIONS = {"tracker": SilentTracker(), "show_progress_bars": False}
pytestmark = pytest.mark.filterwarnings("ignore:Maximum number of epochs")


def make(cls, density_estimator="mdn"):
    trainer = cls(prior(), density_estimator, **OPTIONS)
    return trainer.append_multilevel_simulations(SIMS)


@pytest.mark.parametrize("cls", (MLNPE, MLNLE, MFNPE, MFNLE))
def test_members_hold_out_different_folds_of_every_level(cls):
    trainer = make(cls)
    ensemble = train_ensemble(trainer, 4, train_options=FEW)
    assert trainer._neural_net is None  # stays as it was
    for level in range(3):
        held_out = [m._plan.split.validation[level] for m in ensemble.members]
        together = torch.cat(held_out)
        assert len(together.unique()) == len(together) > 0
        for member, rows in zip(ensemble.members, held_out):
            train = member._plan.split.train[level]
            assert not set(train.tolist()) & set(rows.tolist())
    networks = [weights(network) for network in ensemble.estimators]
    assert not torch.equal(networks[0], networks[1])


def test_members_of_one_level_hold_out_folds_too():
    trainer = MFNPE(prior(), "mdn", **OPTIONS)
    trainer.append_simulations(SIMS[0].theta, SIMS[0].x)
    ensemble = train_ensemble(trainer, 3, train_options=FEW)
    held_out = torch.cat([member.val_indices for member in ensemble.members])
    assert len(held_out.unique()) == len(held_out) == 60


def test_a_member_does_not_depend_on_workers_or_on_other_members():
    runs = [
        train_ensemble(make(MFNPE), n, num_workers=w, seed=3, train_options=FEW)
        for n, w in ((3, 1), (2, 2), (1, 1))
    ]
    first = [weights(run.estimators[0]) for run in runs]
    assert torch.equal(first[0], first[1]) and torch.equal(first[0], first[2])
    second = [weights(run.estimators[1]) for run in runs[:2]]
    assert torch.equal(*second)
    other = train_ensemble(make(MFNPE), 1, seed=4, train_options=FEW)
    assert not torch.equal(first[0], weights(other.estimators[0]))


def test_members_share_no_embedding_net():
    net = FCEmbedding(input_dim=2, output_dim=3, num_hiddens=5)
    before = weights(net)
    trainer = make(MFNPE, posterior_nn("maf", embedding_net=net))
    ensemble = train_ensemble(trainer, 2, train_options=FEW)
    assert torch.equal(before, weights(net))
    assert not torch.equal(*(weights(n.embedding_net) for n in ensemble.estimators))


def test_the_posterior_is_the_mixture_of_the_members():
    ensemble = train_ensemble(make(MFNPE), 2, train_options=FEW)
    built = ensemble.build_posterior(weights=[1.0, 3.0])
    assert isinstance(built, EnsemblePosterior)
    x_o, theta = torch.tensor([[0.3, 0.1]]), torch.randn(5, 2)
    each = [
        member.build_posterior().log_prob(theta, x=x_o) for member in ensemble.members
    ]
    mixture = 0.25 * each[0].exp() + 0.75 * each[1].exp()
    assert torch.allclose(built.log_prob(theta, x=x_o).exp(), mixture, atol=1e-3)


def test_likelihoods_make_an_ensemble():
    ensemble = train_ensemble(make(MFNLE), 2, train_options=FEW)
    built = ensemble.build_posterior(sample_with="importance")
    built.set_default_x(torch.tensor([[0.3, 0.1]]))
    assert built.sample((20,), show_progress_bars=False).shape == (20, 2)


def test_members_can_be_trained_on():
    ensemble = train_ensemble(make(MFNPE), 1, train_options=FEW)
    (member,) = ensemble.members
    member.append_simulations(SIMS[2].theta, SIMS[2].x)
    before = weights(member._neural_net)
    member.train(force_first_round_loss=True, **FEW)
    assert not torch.equal(before, weights(member._neural_net))


def test_bad_input_is_refused():
    with pytest.raises(ValueError, match="num_members must be >= 1"):
        train_ensemble(make(MFNPE), 0)
    trainer = make(MFNPE)
    trainer.train(**FEW)
    with pytest.raises(ValueError, match="trained already"):
        train_ensemble(trainer, 2)
