"""Trees for ArviZ: their groups and values, and their use by ArviZ."""

import sys

import matplotlib
import numpy as np
import pytest
import torch
from matplotlib import pyplot as plt
from sbi.inference import NLE, DirectPosterior
from sbi.inference.posteriors.posterior_parameters import (
    ImportanceSamplingPosteriorParameters,
)
from sbi.neural_nets import posterior_nn

from sbi_multilevel import LevelSimulations, MultilevelSimulations
from sbi_multilevel.arviz import to_datatree
from tests.linear_gaussian import SilentTracker, prior, simulations

xarray = pytest.importorskip("xarray")
pytestmark = pytest.mark.filterwarnings(
    "ignore:Maximum number of epochs", "ignore::FutureWarning"
)
X_O = torch.tensor([[1.0, 0.8]])
SIMS = simulations((200, 50, 40))


@pytest.fixture(scope="module")
def posterior():
    torch.manual_seed(0)
    network = posterior_nn("mdn")(SIMS[2].theta, SIMS[2].x)
    return DirectPosterior(network, prior())


def test_groups_have_the_expected_values(posterior):
    tree = to_datatree(posterior, X_O, num_samples=70)
    assert set(tree.children) == {"posterior", "observed_data", "prior"}
    assert tree["posterior/theta"].dims == ("chain", "draw", "theta_dim")
    assert tree["posterior/theta"].shape == tree["prior/theta"].shape == (1, 70, 2)
    assert tree["posterior"].coords["draw"].values.tolist() == [*range(70)]
    assert np.array_equal(tree["observed_data/x"], X_O.numpy())
    assert tree["posterior"].attrs["inference_library"] == "sbi"
    assert tree["posterior"].attrs["posterior"] == "DirectPosterior"


def test_samples_are_those_of_the_posterior(posterior):
    torch.manual_seed(3)
    tree = to_datatree(posterior, X_O, num_samples=20, labels=["a", "b"])
    torch.manual_seed(3)
    expected = posterior.sample((20,), x=X_O, show_progress_bars=False).numpy()
    for index, name in enumerate(("a", "b")):
        assert tree[f"posterior/{name}"].dims == ("chain", "draw")
        assert np.array_equal(tree[f"posterior/{name}"][0], expected[:, index])
    assert "theta" not in tree["posterior"].data_vars


def test_simulations_of_the_highest_level_are_prior_and_prior_predictive(posterior):
    tree = to_datatree(posterior, X_O, simulations=SIMS, num_samples=5)
    assert np.array_equal(tree["prior/theta"][0], SIMS[2].theta)
    assert np.array_equal(tree["prior_predictive/x"][0], SIMS[2].x)
    assert tree["prior_predictive/x"].dims == ("chain", "draw", "x_dim_0")


def test_x_may_have_any_shape(posterior):
    images = MultilevelSimulations((
        LevelSimulations(0, torch.zeros(4, 2), torch.ones(4, 3, 5)),
    ))
    tree = to_datatree(posterior, X_O, simulations=images, num_samples=5)
    assert tree["prior_predictive/x"].sizes == {
        "chain": 1,
        "draw": 4,
        "x_dim_0": 3,
        "x_dim_1": 5,
    }


def test_the_default_observation_is_used(posterior):
    with pytest.raises(ValueError, match="set_default_x"):
        to_datatree(posterior, num_samples=5)
    posterior.set_default_x(X_O)
    try:
        tree = to_datatree(posterior, num_samples=5)
    finally:
        posterior._x = None
    assert np.array_equal(tree["observed_data/x"], X_O.numpy())


def test_x_of_one_dimension_is_one_observation_as_in_sbi(posterior):
    tree = to_datatree(posterior, X_O[0], num_samples=5)
    assert tree["observed_data"].sizes == {"observation": 1, "x_dim_0": 2}
    assert np.array_equal(tree["observed_data/x"], X_O.numpy())


def trained_nle():
    torch.manual_seed(0)
    trainer = NLE(prior(), "mdn", tracker=SilentTracker(), show_progress_bars=False)
    trainer.append_simulations(SIMS[0].theta, SIMS[0].x).train(max_num_epochs=2)
    return trainer


def test_samples_with_weights_raise_and_resampled_ones_do_not():
    trainer = trained_nle()
    weighted, resampled = (
        trainer.build_posterior(
            posterior_parameters=ImportanceSamplingPosteriorParameters(method=method)
        )
        for method in ("importance", "sir")
    )
    with pytest.raises(ValueError, match="posterior .*'importance'.*method=\"sir\""):
        to_datatree(weighted, X_O, num_samples=20)
    tree = to_datatree(resampled, X_O, num_samples=20)
    assert tree["posterior/theta"].shape == (1, 20, 2)


def test_mcmc_chains_stay_separate():
    posterior = trained_nle().build_posterior(
        mcmc_method="slice_np_vectorized",
        mcmc_parameters=dict(num_chains=3, thin=2, warmup_steps=4),
    )
    tree = to_datatree(posterior, X_O, num_samples=10)
    assert tree["posterior/theta"].shape == (3, 4, 2)  # 12, the next multiple of 3
    chains = posterior.posterior_sampler.get_samples(group_by_chain=True)
    last = torch.as_tensor(chains[:, -1], dtype=torch.float32)
    expected = posterior.theta_transform.inv(last)
    assert np.allclose(tree["posterior/theta"][:, -1], expected, atol=1e-6)
    assert "prior" in tree.children


def test_arguments_that_do_not_fit_raise(posterior, monkeypatch):
    with pytest.raises(ValueError, match=r"labels has 1 names \['a'\]"):
        to_datatree(posterior, X_O, labels=["a"], num_samples=5)
    for labels in (["draw", "b"], ["a", "a"]):
        with pytest.raises(ValueError, match="labels=.*must be different names"):
            to_datatree(posterior, X_O, labels=labels, num_samples=5)
    weighted = MultilevelSimulations((
        LevelSimulations(0, torch.zeros(4, 2), torch.ones(4, 2), weights=torch.ones(4)),
    ))
    with pytest.raises(ValueError, match="weights"):
        to_datatree(posterior, X_O, simulations=weighted, num_samples=5)
    monkeypatch.delattr(xarray, "DataTree")
    with pytest.raises(ImportError, match="2024.10"):
        to_datatree(posterior, X_O)
    monkeypatch.setitem(sys.modules, "xarray", None)
    with pytest.raises(ImportError, match=r"sbi_multilevel\[arviz\]"):
        to_datatree(posterior, X_O)


# ------------------------------------------------------------- ArviZ


@pytest.fixture
def arviz():
    return pytest.importorskip("arviz")


def for_arviz(arviz, tree):
    """ArviZ before 1.0 has its own class."""
    return arviz.from_datatree(tree) if hasattr(arviz, "InferenceData") else tree


def test_arviz_summarises_it(arviz, posterior):
    tree = to_datatree(posterior, X_O, labels=["mu", "sigma"], simulations=SIMS)
    table = arviz.summary(for_arviz(arviz, tree), round_to=6)
    assert list(table.index) == ["mu", "sigma"]
    for name in ("mu", "sigma"):
        expected = float(tree[f"posterior/{name}"].mean())
        assert float(table.loc[name, "mean"]) == pytest.approx(expected, abs=1e-5)


def test_arviz_plots_it(arviz, posterior):
    matplotlib.use("Agg")
    data = for_arviz(arviz, to_datatree(posterior, X_O, num_samples=100))
    arviz.plot_forest(data)
    figure = plt.gcf()
    figure.canvas.draw()
    assert figure.axes
    plt.close("all")


def test_a_tree_can_be_saved_and_loaded(posterior, tmp_path):
    pytest.importorskip("h5netcdf")
    tree = to_datatree(posterior, X_O, simulations=SIMS, num_samples=30)
    tree.to_netcdf(tmp_path / "tree.nc", engine="h5netcdf")
    with xarray.open_datatree(tmp_path / "tree.nc", engine="h5netcdf") as again:
        assert tree.identical(again.load())
