"""Where the weights and the space of a network come from."""

import pickle

import pytest
import torch
from sbi.inference import NLE, NPE
from sbi.neural_nets import posterior_nn
from torch.distributions import Independent, LogNormal

from sbi_multilevel import (
    MFNLE,
    MFNPE,
    MLNPE,
    HybridNPE,
    MultilevelConfig,
    TransferConfig,
    unconstrained,
)
from sbi_multilevel.estimators.transformed import MappedEstimator
from tests.linear_gaussian import SilentTracker, prior
from tests.test_trainers import weights
from tests.test_transfer import BOX, FEW, SIMS, both, box_rows, make

pytestmark = pytest.mark.filterwarnings("ignore:Maximum number of epochs")

# ------------------------------------------------------------- unconstrained theta


@pytest.mark.parametrize("name", ("mdn", "maf", "nsf", "zuko_nsf"))
def test_nothing_leaks_out_of_a_bounded_prior(name):
    theta, x = box_rows(300)
    trainer = MFNPE(BOX, name, tracker=SilentTracker(), show_progress_bars=False)
    trainer.append_lowfidelity_simulations(theta, x).append_simulations(*box_rows(50))
    network = trainer.train(**FEW)
    corner = torch.tensor([[-2.0, 0.0], [1.0, 5.0]])  # half of the mass would leak
    samples = network.sample((2_000,), corner)
    assert BOX.support.check(samples).all()
    built = trainer.build_posterior()
    assert built.leakage_correction(x=corner[:1]) == 1.0


def test_the_density_in_unconstrained_theta_integrates_to_one():
    theta, x = box_rows(300)
    network = unconstrained("mdn", BOX)(theta, x)
    low, high = torch.tensor([-2.0, 0.0]), torch.tensor([1.0, 5.0])
    cells = [
        lo + (hi - lo) * (torch.arange(400) + 0.5) / 400 for lo, hi in zip(low, high)
    ]
    grid = torch.cartesian_prod(*cells)
    with torch.no_grad():
        density = network.log_prob(grid[:, None], torch.tensor([[0.0, 2.0]])).exp()
    assert density.sum() * 15 / 400**2 == pytest.approx(1.0, abs=2e-3)


def test_a_builder_is_taken_as_it_is_unless_asked():
    for config, is_free in (
        (TransferConfig(), False),
        (TransferConfig(unconstrained=True), True),
    ):
        trainer = make(
            the_prior=prior(), density_estimator=posterior_nn("mdn"), config=config
        )
        network = trainer.train(**FEW)
        assert (network.unconstrain is not None) == is_free


def wrapped_unseen(build):
    return lambda theta, x: build(theta, x)


@pytest.mark.parametrize("wrap", (lambda build: build, wrapped_unseen))
@pytest.mark.parametrize(
    "config", (TransferConfig(unconstrained=True), TransferConfig())
)
def test_an_unconstrained_builder_is_transformed_once(config, wrap):
    theta, x = box_rows(300)
    plain = unconstrained("nsf", BOX)
    trainer = MFNPE(BOX, wrap(plain), config=config, tracker=SilentTracker())
    networks = plain(theta, x), trainer._network_builder(theta, x)
    scores = [dict(network.named_buffers()) for network in networks]
    assert any("_scale" in name for name in scores[0])
    for name, values in scores[0].items():
        torch.testing.assert_close(values, scores[1][name])


def test_a_prior_of_positive_theta_with_an_unconstrained_builder():
    """The logarithm of a logarithm would be no number."""
    positive = Independent(LogNormal(torch.zeros(2), torch.ones(2)), 1)
    theta = positive.sample((100,))
    x = theta + 0.1 * torch.randn(100, 2)
    trainer = HybridNPE(
        positive,
        unconstrained("mdn", positive),
        tracker=SilentTracker(),
        show_progress_bars=False,
    )
    trainer.append_lowfidelity_simulations(theta, x)
    network = trainer.append_simulations(theta[:20], x[:20] + 1).train(**FEW)
    assert (network.sample((50,), x[:1]) > 0).all()


def test_sampling_and_density_of_the_estimator_agree():
    theta, x = box_rows(300)
    network = unconstrained("nsf", BOX)(theta, x).eval()
    network.read_x_through(None)
    network.x_shift.fill_(0.3)
    samples = network.sample((4_000,), x[:1])
    assert samples.shape == (4_000, 1, 2)
    with torch.no_grad():
        log_prob = network.log_prob(samples, x[:1])
        # importance weights of the uniform density have mean 1 under the estimate
        ratios = (1 / 15) / log_prob.exp()
    assert log_prob.shape == (4_000, 1)
    error = ratios.std() / len(ratios) ** 0.5
    assert (ratios.mean() - 1).abs() < 4 * error + 0.02
    assert network.loss(theta[:7], x[:7]).shape == (7,)


def test_theta_outside_the_prior_is_refused():
    theta, x = box_rows(100)
    theta[3] += 10
    trainer = MFNPE(BOX, "mdn", tracker=SilentTracker(), show_progress_bars=False)
    trainer.append_lowfidelity_simulations(theta, x).append_simulations(*box_rows(50))
    with pytest.raises(
        ValueError, match="1 of 100 (rows|simulations) of level 0 lies outside"
    ):
        trainer.train(**FEW)


# ------------------------------------------------------------- warm start


@both
@pytest.mark.parametrize("way", ("estimator", "file", "sbi"))
def test_warm_start(cls, way, tmp_path):
    low = SIMS[0]
    parent = {MFNPE: NPE, MFNLE: NLE}[cls]
    options = {"tracker": SilentTracker(), "show_progress_bars": False}
    pretraining = (parent if way == "sbi" else cls)(prior(), "mdn", **options)
    if way == "sbi":
        pretraining.append_simulations(low.theta, low.x)
    else:
        pretraining.append_lowfidelity_simulations(low.theta, low.x)
    source = pretrained = pretraining.train(max_num_epochs=20)
    before = weights(pretrained)
    if way == "file":
        source = tmp_path / "pretrained.pt"
        torch.save(pretrained.state_dict(), source)
    config = TransferConfig(alignment=None, fine_tuning_rate=1e-9)
    trainer = make(cls, low=False, config=config).warm_start(source)
    network = trainer.train(**FEW)
    assert torch.equal(weights(pretrained), before)  # the source is copied
    theta, x = low.theta[:4], low.x[:4]
    arguments = (theta[None], x) if cls is MFNPE else (x[None], theta)
    a, b = (n.eval().log_prob(*arguments) for n in (network, pretrained))
    assert torch.allclose(a, b, atol=1e-4)
    assert network is not pretrained


def test_warm_start_keeps_what_alignment_needs():
    low = SIMS[0]
    first = MFNPE(prior(), "mdn", tracker=SilentTracker(), show_progress_bars=False)
    first.append_lowfidelity_simulations(low.theta, low.x)
    pretrained = first.train(**FEW)
    trainer = make(low=False).warm_start(pretrained)
    network = trainer.train(**FEW)
    assert torch.equal(network.x_mean, pretrained.x_mean)
    rows = SIMS[2].x[trainer.train_indices]
    at = network.x_shift + network.x_scale * rows
    assert torch.allclose(at.mean(0), pretrained.x_mean, atol=1e-4)
    assert torch.allclose(at.std(0), pretrained.x_std, atol=1e-4)


@pytest.mark.parametrize("way", ("estimator", "state", "file"))
def test_alignment_does_not_depend_on_where_weights_come_from(way, tmp_path):
    low = SIMS[0]
    first = MFNPE(prior(), "mdn", tracker=SilentTracker(), show_progress_bars=False)
    first.append_lowfidelity_simulations(low.theta, 3 * low.x + 7)
    pretrained = first.train(**FEW)
    source = pretrained
    if way != "estimator":
        source = pretrained.state_dict()
    if way == "file":
        torch.save(source, tmp_path / "pretrained.pt")
        source = tmp_path / "pretrained.pt"
    network = make(low=False).warm_start(source).train(**FEW)
    assert torch.equal(network.x_mean, pretrained.x_mean)
    assert torch.allclose(network.x_scale, torch.tensor(3.0), atol=0.9)


def test_weights_of_sbi_s_own_networks_start_too():
    trainer = NPE(prior(), "mdn", tracker=SilentTracker(), show_progress_bars=False)
    trainer.append_simulations(SIMS[0].theta, SIMS[0].x)
    network = trainer.train(**FEW)
    config = TransferConfig(fine_tuning_rate=1e-9, alignment=None, unconstrained=False)
    trainer = make(low=False, config=config).warm_start(network.state_dict())
    theta, x = SIMS[0].theta[:4], SIMS[0].x[:4]
    a, b = (n.eval().log_prob(theta[None], x) for n in (network, trainer.train(**FEW)))
    assert torch.allclose(a, b, atol=1e-4)


def test_a_warm_start_after_training_is_refused():
    trainer = make()
    network = trainer.train(**FEW)
    with pytest.raises(ValueError, match="after training"):
        trainer.warm_start(network)


class WithoutSupport(torch.distributions.Distribution):
    """A prior as users write them."""

    def __init__(self):
        super().__init__(torch.Size(), torch.Size((2,)), validate_args=False)

    def sample(self, sample_shape=()):
        return prior().sample(sample_shape)

    def log_prob(self, theta):
        return prior().log_prob(theta)


def test_a_prior_need_not_say_its_support():
    assert make(the_prior=WithoutSupport()).train(**FEW).unconstrain is None


def test_the_multilevel_method_reads_x_of_the_highest_level():
    low, pairs = SIMS[0], SIMS[1]
    trainer = MLNPE(
        prior(),
        unconstrained("mdn", prior()),
        config=MultilevelConfig(alignment="affine"),
        tracker=SilentTracker(),
        show_progress_bars=False,
    )
    trainer.append_lowfidelity_simulations(low.theta, low.x)
    trainer.append_multilevel_simulations(
        pairs.theta, 10 * pairs.x + 5, pairs.x, level=1
    )
    network = trainer.train(**FEW)
    assert torch.equal(network.x_scale, torch.ones(2))
    assert torch.equal(network.x_shift, torch.zeros(2))


def test_an_estimator_of_another_shape_is_refused():
    other = posterior_nn("mdn")(torch.randn(20, 3), torch.randn(20, 2))
    with pytest.raises(ValueError, match=r"theta of shape \(3,\).*\(2,\)"):
        make(low=False).warm_start(other).train(**FEW)
    other = posterior_nn("mdn")(torch.randn(20, 2), torch.randn(20, 4))
    with pytest.raises(ValueError, match=r"x of shape \(4,\)"):
        make(low=False).warm_start(other).train(**FEW)


def test_a_file_of_another_network_is_refused(tmp_path):
    torch.save({"weight": torch.zeros(3)}, tmp_path / "other.pt")
    with pytest.raises(ValueError, match="are not those of this network"):
        make(low=False).warm_start(tmp_path / "other.pt").train(**FEW)
    (tmp_path / "pickled.pt").write_bytes(pickle.dumps(make(low=False)))
    with pytest.raises(ValueError, match="more than tensors"):
        make(low=False).warm_start(tmp_path / "pickled.pt").train(**FEW)


def test_a_builder_that_is_unconstrained_is_not_wrapped_twice():
    trainer = make(density_estimator=unconstrained("mdn", prior()))
    network = trainer.train(**FEW)
    assert isinstance(network, MappedEstimator)
    assert not isinstance(network.net, MappedEstimator)
    assert not torch.equal(network.x_scale, torch.ones(2))
