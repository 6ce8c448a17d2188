"""A mixture of estimators, against sums by hand."""

import pytest
import torch
from sbi.inference import DirectPosterior
from sbi.neural_nets import likelihood_nn, posterior_nn
from sbi.utils import BoxUniform, MultipleIndependent
from sbi.utils.user_input_checks_utils import CustomPriorWrapper
from torch.distributions import Exponential, Independent, StudentT, Uniform

from sbi_multilevel.estimators.mixture import MixtureEstimator
from sbi_multilevel.level_maps.tail_transform import TailTransform

BOX = BoxUniform(torch.tensor([-1.0, 0.0]), torch.tensor([1.0, 3.0]))
WEIGHTS = torch.tensor([0.2, 0.5, 0.3])
TAILS = TailTransform(
    torch.tensor([0.1, -0.4]), torch.tensor([1.0, 2.0]), torch.ones(2)
)
BUILDERS = {"theta": posterior_nn, "x": likelihood_nn}
both = pytest.mark.parametrize("target", tuple(BUILDERS))


def linear_simulations(n=60, seed=0, dim=2):
    generator = torch.Generator().manual_seed(seed)
    theta = torch.rand(n, dim, generator=generator)
    return theta, theta + 0.3 * torch.randn(n, dim, generator=generator)


def make_members(target, count=2, dim=2, seed=0):
    build = BUILDERS[target]("mdn", hidden_features=8, num_components=2)
    return [
        build(*linear_simulations(seed=seed + i, dim=dim)).eval() for i in range(count)
    ]


def by_hand(members, weights, input, condition):
    densities = [m.log_prob(input, condition).exp() for m in members]
    return sum(w * d for w, d in zip(weights, densities)).log()


# ------------------------------------------------------------- density


@both
def test_log_prob_is_that_of_the_sum(target):
    members = make_members(target, 3)
    mixture = MixtureEstimator(members, WEIGHTS, target)
    input, condition = torch.rand(4, 5, 2), torch.rand(5, 2)
    expected = by_hand(members, WEIGHTS, input, condition)
    assert expected.shape == (4, 5)
    assert torch.allclose(mixture.log_prob(input, condition), expected, atol=1e-5)


@both
def test_loss_is_the_negative_log_density_of_each_sample(target):
    mixture = MixtureEstimator(make_members(target), WEIGHTS[:2], target)
    input, condition = linear_simulations(7)
    each = [mixture.log_prob(i[None, None], c[None]) for i, c in zip(input, condition)]
    expected = -torch.cat(each).flatten()
    assert torch.allclose(mixture.loss(input, condition), expected, atol=1e-5)


def test_a_posterior_transforms_the_tails_of_its_condition():
    members = make_members("theta")
    mixture = MixtureEstimator(members, WEIGHTS[:2], "theta", TAILS)
    theta, x = torch.rand(3, 5, 2), 5 * torch.randn(5, 2)
    expected = by_hand(members, WEIGHTS[:2] / 0.7, theta, TAILS(x))
    assert torch.allclose(mixture.log_prob(theta, x), expected, atol=1e-5)
    torch.manual_seed(3)
    samples = mixture.sample(torch.Size((6,)), x)
    torch.manual_seed(3)
    plain = MixtureEstimator(members, WEIGHTS[:2], "theta")
    assert torch.equal(samples, plain.sample(torch.Size((6,)), TAILS(x)))


@pytest.mark.parametrize("delta", (0.0, 0.5, 3.0))
def test_a_likelihood_with_transformed_tails_integrates_to_one(delta):
    tails = TailTransform(*(torch.tensor([value]) for value in (0.2, 0.7, delta)))
    members = make_members("x", dim=1)
    mixture = MixtureEstimator(members, WEIGHTS[:2], "x", tails)
    grid = torch.sinh(torch.linspace(-12, 12, 20_001, dtype=torch.float64)).float()
    density = mixture.log_prob(grid[:, None, None], torch.tensor([[0.4]])).exp()
    mass = torch.trapezoid(density[:, 0], grid)
    assert mass.item() == pytest.approx(1.0, abs=1e-3)


def test_samples_of_a_likelihood_with_transformed_tails_follow_its_density():
    tails = TailTransform(*(torch.tensor([value]) for value in (0.2, 0.7, 3.0)))
    mixture = MixtureEstimator(make_members("x", dim=1), WEIGHTS[:2], "x", tails)
    condition, n = torch.tensor([[0.4]]), 4_000
    samples = mixture.sample(torch.Size((n,)), condition).flatten()
    grid = torch.linspace(-30, 0.5, 20_001)
    density = mixture.log_prob(grid[:, None, None], condition).exp()[:, 0]
    mass = torch.trapezoid(density, grid).item()
    error = (mass * (1 - mass) / n) ** 0.5
    assert 0.1 < mass < 0.9
    assert (samples < 0.5).float().mean().item() == pytest.approx(mass, abs=4 * error)


# ------------------------------------------------------------- prior


def test_the_prior_is_a_component():
    members = make_members("theta")
    mixture = MixtureEstimator(members, WEIGHTS, "theta", prior=BOX)
    theta, x = BOX.sample((4, 5)), torch.randn(5, 2)
    expected = by_hand(members, WEIGHTS, theta, x).exp() + 0.3 / 6
    assert torch.allclose(mixture.log_prob(theta, x).exp(), expected, atol=1e-5)
    assert mixture.members == members


STRICT = Independent(
    Uniform(torch.tensor([-1.0, 0.0]), torch.tensor([1.0, 3.0]), validate_args=True), 1
)


@pytest.mark.parametrize("prior", (BOX, STRICT), ids=("box", "raises outside"))
def test_the_prior_adds_nothing_outside_its_support(prior):
    members = make_members("theta")
    mixture = MixtureEstimator(members, WEIGHTS, "theta", prior=prior)
    theta, x = torch.tensor([[[0.0, 1.0], [0.0, -1.0]]]), torch.randn(2, 2)
    gap = mixture.log_prob(theta, x).exp() - by_hand(members, WEIGHTS, theta, x).exp()
    assert torch.allclose(gap, torch.tensor([[0.3 / 6, 0.0]]), atol=1e-6)
    alone = MixtureEstimator(members, torch.tensor([0.0, 0, 1]), "theta", None, prior)
    expected = torch.tensor([[1 / 6, 0.0]]).log()
    assert torch.allclose(alone.log_prob(theta, x), expected)


@pytest.mark.parametrize(
    "prior",
    (
        BOX,
        torch.distributions.MultivariateNormal(torch.zeros(2), torch.eye(2)),
        MultipleIndependent([
            BoxUniform(torch.zeros(1), torch.ones(1)),
            Exponential(torch.ones(1)),
        ]),
        CustomPriorWrapper(BOX),
    ),
    ids=("box", "normal", "independent", "the user's own"),
)
def test_any_prior_of_sbi_gives_samples_and_densities(prior):
    weights = torch.tensor([0.0, 0.0, 1.0])
    mixture = MixtureEstimator(make_members("theta"), weights, "theta", prior=prior)
    mixture.to("cpu")
    x, n = torch.randn(3, 2), 400
    samples = mixture.sample(torch.Size((n,)), x)
    assert samples.shape == (n, 3, 2)
    expected = prior.sample((4_000,))
    gap = (samples.reshape(-1, 2).mean(0) - expected.mean(0)).abs()
    assert (gap < 4 * expected.std(0) * (1 / 1_200 + 1 / 4_000) ** 0.5).all()
    log_prob = mixture.log_prob(samples, x)
    assert torch.allclose(log_prob[:, 1], prior.log_prob(samples[:, 1]), atol=1e-5)


# ------------------------------------------------------------- samples


class Point(torch.nn.Module):
    """An estimator whose samples all are one number."""

    input_shape = condition_shape = torch.Size((2,))
    embedding_net = None

    def __init__(self, value):
        super().__init__()
        self.value = float(value)

    def sample(self, sample_shape, condition):
        return torch.full((*sample_shape, len(condition), 2), self.value)


def test_components_are_drawn_by_their_weights():
    points = [Point(index) for index in range(3)]
    mixture = MixtureEstimator(points, 7 * WEIGHTS, "theta")
    n = 4_000
    samples = mixture.sample(torch.Size((n,)), torch.zeros(1, 2))[:, 0, 0]
    shares = torch.stack([(samples == value).float().mean() for value in range(3)])
    assert ((shares - WEIGHTS).abs() < 4 * (WEIGHTS * (1 - WEIGHTS) / n).sqrt()).all()


def test_components_of_weight_zero_are_never_drawn():
    points = [Point(index) for index in range(3)]
    mixture = MixtureEstimator(points, torch.tensor([0.0, 1.0, 0.0]), "theta")
    assert (mixture.sample(torch.Size((50,)), torch.zeros(2, 2)) == 1).all()


@both
@pytest.mark.parametrize("shape", ((), (4,), (2, 3)))
def test_shapes_of_samples(target, shape):
    mixture = MixtureEstimator(make_members(target), WEIGHTS[:2], target, TAILS)
    samples = mixture.sample(torch.Size(shape), torch.rand(5, 2))
    assert samples.shape == (*shape, 5, 2)
    assert (
        mixture.log_prob(samples.reshape(-1, 5, 2), torch.rand(5, 2)).isfinite().all()
    )


def test_samples_belong_to_their_condition():
    mixture = MixtureEstimator(make_members("x"), WEIGHTS[:2], "x", TAILS)
    theta = torch.tensor([[0.0, 0.0], [30.0, -30.0]])
    both_conditions = mixture.sample(torch.Size((3_000,)), theta)
    for row in range(2):
        alone = mixture.sample(torch.Size((3_000,)), theta[row : row + 1])[:, 0]
        here = both_conditions[:, row]
        medians = alone.median(0).values, here.median(0).values
        width = alone.quantile(0.84, dim=0) - alone.quantile(0.16, dim=0)
        assert ((medians[0] - medians[1]).abs() < 0.1 * width).all()


# ------------------------------------------------------------- as sbi sees it


def test_a_direct_posterior_takes_it():
    members = make_members("theta")
    mixture = MixtureEstimator(members, WEIGHTS, "theta", TAILS, BOX)
    posterior = DirectPosterior(mixture, BOX)
    x_o = torch.tensor([[0.3, 1.1]])
    samples = posterior.sample((200,), x=x_o, show_progress_bars=False)
    assert samples.shape == (200, 2) and torch.isfinite(BOX.log_prob(samples)).all()
    options = {"x": x_o, "norm_posterior": False}
    theta = torch.cat([samples[:3], torch.tensor([[0.0, -0.5]])])
    expected = mixture.log_prob(theta[:3, None], x_o)[:, 0]
    values = posterior.log_prob(theta, **options)
    assert torch.allclose(values[:3], expected, atol=1e-5)
    assert values[3] == -torch.inf


def test_the_normalised_posterior_integrates_to_one():
    mixture = MixtureEstimator(make_members("theta"), WEIGHTS, "theta", prior=BOX)
    posterior = DirectPosterior(mixture, BOX)
    theta = BOX.sample((4_000,))
    values = posterior.log_prob(theta, x=torch.tensor([[0.3, 1.1]]))
    density = 6 * values.exp()
    error = density.std() / len(density) ** 0.5
    # 2 % for sbi's own estimate of what leaks
    assert abs(density.mean() - 1) < 4 * error + 0.02


@both
def test_the_state_comes_back(target):
    prior = BOX if target == "theta" else None
    count = 2 + (prior is not None)
    first = MixtureEstimator(
        make_members(target), WEIGHTS[:count], target, TAILS, prior
    )
    blank = TailTransform(torch.zeros(2), torch.ones(2), torch.zeros(2))
    other = make_members(target, seed=5)
    second = MixtureEstimator(other, torch.ones(count), target, blank, prior)
    input, condition = linear_simulations(6)
    assert not torch.allclose(*(m.loss(input, condition) for m in (first, second)))
    second.load_state_dict(first.state_dict())
    assert torch.equal(*(m.loss(input, condition) for m in (first, second)))
    assert torch.equal(first.weights, second.weights)


def test_gradients_reach_theta():
    """As Hamiltonian MCMC needs them."""
    mixture = MixtureEstimator(make_members("x"), WEIGHTS[:2], "x", TAILS)
    theta = torch.rand(1, 2, requires_grad=True)
    x = torch.tensor([[[0.2, StudentT(1.0).sample().item()]]])
    (gradient,) = torch.autograd.grad(mixture.log_prob(x, theta).sum(), theta)
    assert torch.isfinite(gradient).all() and (gradient != 0).all()


@pytest.mark.parametrize(
    "weights", ([0.5], [0.5, 0.25, 0.25], [1.5, -0.5], [float("nan"), 0.5])
)
def test_weights_that_do_not_fit_are_refused(weights):
    with pytest.raises(ValueError, match="weights must be 2 numbers >= 0"):
        MixtureEstimator(make_members("theta"), torch.tensor(weights), "theta")


def test_a_prior_in_a_likelihood_is_refused():
    with pytest.raises(ValueError, match="prior is a density of theta"):
        MixtureEstimator(make_members("x"), WEIGHTS, "x", prior=BOX)


def test_the_prior_moves_with_the_estimator_and_the_users_own_stays():
    prior = BoxUniform(torch.zeros(2), torch.ones(2))
    members = make_members("theta", count=1)
    mixture = MixtureEstimator(members, torch.ones(2), "theta", prior=prior)
    mixture.to("meta")
    assert mixture.prior.mean.device.type == "meta"
    assert prior.mean.device.type == "cpu"


def test_a_device_without_double_precision_has_single():
    def to_mps(each):
        if each.dtype == torch.float64:
            raise TypeError("Cannot convert a MPS Tensor to float64 dtype")
        return each.clone()

    tails = TailTransform(
        *(c.double() for c in (TAILS.center, TAILS.scale, TAILS.delta))
    )
    mixture = MixtureEstimator(make_members("x"), WEIGHTS[:2], "x", tails)
    x, theta = torch.randn(4, 5, 2), torch.rand(5, 2)
    expected = mixture.log_prob(x, theta)
    mixture._apply(to_mps)
    assert mixture.tails.center.dtype == torch.float32
    assert torch.allclose(mixture.log_prob(x, theta), expected, atol=1e-4)
