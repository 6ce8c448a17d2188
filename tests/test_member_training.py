"""Training of members: progress bar, warnings, and the calibration kernel."""

import warnings

import joblib
import pytest
import torch
from tqdm import tqdm

from sbi_multilevel import MFNPE, HybridConfig, HybridNLE, HybridNPE, train_ensemble
from sbi_multilevel.methods.hybrid import training as training_module
from sbi_multilevel.training.batches import Fold
from sbi_multilevel.training.ensemble import train_members
from tests.hybrids import BRIEF, QUICK, make, simulated, trained


@pytest.mark.parametrize(
    ("config", "one_level", "total"),
    (
        (HybridConfig(num_members=3), False, 2 + 2 * 3 + 1),
        (HybridConfig(num_members=2, shared_start=False, distill=False), False, 2 * 2),
        (HybridConfig(num_members=3), True, 3),
    ),
)
@pytest.mark.filterwarnings("ignore:Maximum number of epochs")
def test_the_bar_moves_with_every_network(monkeypatch, config, one_level, total):
    moves, words, totals = [], [], []

    class Bar(tqdm):
        def __init__(self, total, disable):
            totals.append((total, disable))
            super().__init__(total=total, disable=True)

        def update(self, n=1):
            moves.append((n, words[-1]))

        def set_description(self, desc=None, refresh=True):
            words.append(desc)

    monkeypatch.setattr(training_module, "tqdm", Bar)
    inference = make(config=config)
    if one_level:
        inference = HybridNPE(density_estimator="mdn", config=config)
        low = simulated()[0]
        inference.append_multilevel_simulations(low.theta, low.x, level=0)
    inference.train(**BRIEF)
    assert totals == [(total, not one_level)]
    assert len(moves) == total and all(step == 1 for step, _ in moves)
    members = config.num_members
    last = [("Training networks with high fidelity alone", members)]
    if not one_level:
        first = ("Training networks to start from", 2)
        last = [
            *([first] if config.shared_start else []),
            ("Training networks with lower levels", members),
            *last,
            *([("Training one network in place of all", 1)] if config.distill else []),
        ]
        assert words[0] == "Selecting level maps"
    assert [description for _, description in moves] == [
        w for w, n in last for _ in range(n)
    ]


@pytest.mark.filterwarnings("ignore:Maximum number of epochs")
@pytest.mark.parametrize("num_workers", (1, 2))
def test_members_are_returned_in_order_and_reported_one_by_one(num_workers):
    trainers = [make(MFNPE, simulated(60, n), config=None) for n in (20, 8, 12)]
    done = []
    folds = [Fold(index, 0) for index in range(3)]
    members = train_members(
        trainers, folds, num_workers, BRIEF, lambda *each: done.append(each)
    )
    assert done == list(enumerate(members))
    sizes = [m.multilevel_simulations.num_simulations for m in members]
    assert sizes == [(60, 20), (60, 8), (60, 12)]


@pytest.mark.parametrize("cls", (HybridNPE, HybridNLE))
@pytest.mark.parametrize("num_workers", (1, 2))
def test_there_is_one_warning_of_max_num_epochs_and_none_of_pickling(cls, num_workers):
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        with joblib.parallel_config(n_jobs=num_workers):
            trained(cls)
    messages = [str(each.message) for each in caught]
    assert not [m for m in messages if "pickled" in m]
    limits = [m for m in messages if "Maximum number of epochs" in m]
    assert len(limits) == 1
    assert "`max_num_epochs=2` reached by 6 of 6 networks" in limits[0]


def test_there_is_no_warning_if_members_converge():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        trained(options={"learning_rate": 5e-3, "stop_after_epochs": 3})


def test_members_use_the_calibration_kernel():
    seen = []

    def kernel(x):
        seen.append(len(x))
        return torch.ones(len(x))

    inference = make(config=QUICK)
    with pytest.warns(UserWarning, match="Maximum number of epochs"):
        inference.train(calibration_kernel=kernel, **BRIEF)
    assert seen


def test_an_ensemble_warns_once_and_later_training_of_a_member_warns():
    trainer = make(MFNPE, config=None)
    with pytest.warns(UserWarning, match="by 2 of 2 networks") as caught:
        ensemble = train_ensemble(trainer, 2, train_options=BRIEF)
    assert len([w for w in caught if "Maximum" in str(w.message)]) == 1
    with pytest.warns(UserWarning, match="network has not yet fully converged"):
        ensemble.members[0].train(force_first_round_loss=True, **BRIEF)


@pytest.mark.filterwarnings("ignore:Maximum number of epochs")
def test_threads_train_the_networks_of_one_worker_and_keep_the_output(capsys):
    expected = trained()._neural_net.state_dict()
    with joblib.parallel_config(backend="threading", n_jobs=2):
        found = trained()._neural_net.state_dict()
    print("still seen")
    assert "still seen" in capsys.readouterr().out
    assert all(torch.equal(values, expected[name]) for name, values in found.items())
