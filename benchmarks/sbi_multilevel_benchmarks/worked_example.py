r"""Bias and variance of the methods on one Gaussian parameter, in closed form.

Run `python -m sbi_multilevel_benchmarks.worked_example`. The page *Error of the
methods* of the documentation derives the formulas and has the table.

The parameter and the simulations are

.. math:: \theta \sim N(0, 1), \qquad x_1 = \theta + u, \qquad
    x_0 = a\,\theta + b + \rho\, u + \sqrt{1 - \rho^2}\, v,

with u and v standard normal, and :math:`q_\phi(\theta \mid x) = N(\alpha x + \beta,
s^2)`, so :math:`\phi = (\alpha, \beta, \log s)` and :math:`p = 3`. The loss is a
function of the first and second moments of :math:`(\theta, x)` alone. A method is
therefore an estimate of these moments, and its minimum is a linear regression:

* *plain*: the moments of the :math:`n_1` simulations of level 1;
* *low*: those of the :math:`n_0` simulations of level 0;
* *multilevel*: those of level 0, plus the differences of the moments of the two sides
  of the :math:`n_1` pairs;
* *transfer*: :math:`\phi = \phi_0 + t\, (\phi_1 - \phi_0)` between the minima of *low*
  and *plain*, with the t in [0, 1] of least error, which no early stopping knows;
* *map*: those of :math:`A x_0 + B + C \theta + R\, w` at level 0, with A, B, C and the
  residual scale R of a linear regression on the pairs, and w standard normal.
"""

from __future__ import annotations

import argparse
import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from sbi_multilevel_benchmarks.records import Table, over_seeds

METHODS = ("plain", "low", "multilevel", "transfer", "map")
_NUM_FORMULA = 200_000  # simulations for the moments of gradients in the formulas
_SHARES = np.linspace(0, 1, 101)  # t of transfer


@dataclass(frozen=True)
class Levels:
    """The two levels.

    Args:
        gain: Gain a of level 0.
        offset: Offset b of level 0.
        correlation: Correlation of the noise of the levels.
    """

    gain: float = 1.0
    offset: float = 0.0
    correlation: float = 1.0

    def simulate(self, num: int, rng: np.random.Generator) -> np.ndarray:
        """Theta, x of level 0 and x of level 1, shape `(3, num)`."""
        theta, u, v = rng.standard_normal((3, num))
        noise = self.correlation * u + math.sqrt(1 - self.correlation**2) * v
        return np.stack([theta, self.gain * theta + self.offset + noise, theta + u])


def moments(theta: np.ndarray, x: np.ndarray) -> np.ndarray:
    """Means of products of `(1, x, theta)`, shape `(3, 3)`."""
    columns = np.stack([np.ones_like(x), x, theta])
    return columns @ columns.T / len(x)


def minimum(of: np.ndarray) -> np.ndarray | None:
    """The parameters of least loss; `None` if the loss has no lower bound.

    Args:
        of: Moments, shape `(3, 3)`.
    """
    inputs, cross = of[:2, :2], of[:2, 2]
    if np.linalg.eigvalsh(inputs)[0] <= 0:
        return None
    beta, alpha = np.linalg.solve(inputs, cross)
    variance = of[2, 2] - np.array([beta, alpha]) @ cross
    return np.array([alpha, beta, 0.5 * math.log(variance)]) if variance > 0 else None


def excess(phi: np.ndarray) -> float:
    """Expected KL divergence from the exact posterior at level 1, in nats."""
    alpha, beta, log_scale = phi
    squared = (1 - alpha) ** 2 + alpha**2 + beta**2
    exact = 0.5 * math.log(0.5) + 0.5  # the posterior variance is 1/2
    return 0.5 * squared * math.exp(-2 * log_scale) + log_scale - exact


def fit(
    low: np.ndarray, pairs: np.ndarray, rng: np.random.Generator
) -> dict[str, np.ndarray | None]:
    """The parameters of each method, from simulations of both levels.

    Args:
        low: Simulations for level 0, shape `(3, n_0)`.
        pairs: Simulations in pairs, shape `(3, n_1)`.
        rng: For the noise of the map.
    """
    theta, x_low, x_high = pairs
    of_low, of_high = moments(*low[:2]), moments(theta, x_high)
    telescoping = of_low + of_high - moments(theta, x_low)
    found = {
        "plain": minimum(of_high),
        "low": minimum(of_low),
        "multilevel": minimum(telescoping),
        "map": minimum(moments(low[0], _mapped(low, pairs, rng))),
    }
    plain, start = found["plain"], found["low"]
    if plain is not None and start is not None:
        path = [start + share * (plain - start) for share in _SHARES]
        found["transfer"] = min(path, key=excess)
    return found


def _mapped(low: np.ndarray, pairs: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    design = np.stack([pairs[1], np.ones_like(pairs[1]), pairs[0]])
    weights = np.linalg.lstsq(design.T, pairs[2], rcond=None)[0]
    squares = np.sum((pairs[2] - weights @ design) ** 2)
    scale = math.sqrt(squares / max(pairs.shape[1] - 3, 1))
    mean = weights @ np.stack([low[1], np.ones_like(low[1]), low[0]])
    return mean + scale * rng.standard_normal(len(mean))


def formulas(
    levels: Levels, num_low: int, num_high: int, seed: int = 0
) -> dict[str, float]:
    """The expected excess of each method to first order, see the documentation."""
    theta, low, high = levels.simulate(_NUM_FORMULA, np.random.default_rng(seed))
    exact = np.array([0.5, 0.0, 0.5 * math.log(0.5)])
    of_low = minimum(_exact_moments(levels))
    assert of_low is not None
    inverse = np.linalg.inv(_hessian(exact))
    noise_high = np.cov(_gradients(exact, theta, high))
    noise_low = np.cov(_gradients(exact, theta, low))
    pairs = np.cov(_gradients(exact, theta, high) - _gradients(exact, theta, low))
    plain = float(np.trace(inverse @ noise_high)) / (2 * num_high)
    base = float(np.trace(inverse @ noise_low)) / (2 * num_low)
    bias = excess(of_low)
    return {
        "plain": plain,
        "low": bias + len(exact) / (2 * num_low),
        "multilevel": base + float(np.trace(inverse @ pairs)) / (2 * num_high),
        "transfer": bias * plain / (bias + plain),
    }


def _exact_moments(levels: Levels) -> np.ndarray:
    """Moments of level 0."""
    gain, offset = levels.gain, levels.offset
    of_x = [offset, gain**2 + offset**2 + 1, gain]
    return np.array([[1.0, offset, 0.0], of_x, [0.0, gain, 1.0]])


def _gradients(phi: np.ndarray, theta: np.ndarray, x: np.ndarray) -> np.ndarray:
    """Gradient of the loss of each simulation, shape `(3, n)`."""
    alpha, beta, log_scale = phi
    precision = math.exp(-2 * log_scale)
    residual = theta - alpha * x - beta
    return np.stack([
        -precision * residual * x,
        -precision * residual,
        1 - precision * residual**2,
    ])


def _hessian(phi: np.ndarray) -> np.ndarray:
    """Hessian of the expected loss at the exact posterior of level 1."""
    precision = math.exp(-2 * phi[2])
    return np.diag([2 * precision, precision, 2.0])  # the second moment of x is 2


def compare(
    levels: Levels, num_low: int, num_high: int, repeats: int, seed: int = 0
) -> dict[str, list[float]]:
    """Excess of each method over repeated draws of simulations.

    Args:
        levels: The levels.
        num_low: Simulations of level 0.
        num_high: Pairs.
        repeats: Number of draws.
        seed: Seed.

    Returns:
        For each method the excess of each draw whose loss has a minimum.
    """
    rng = np.random.default_rng(seed)
    found: dict[str, list[float]] = {method: [] for method in METHODS}
    for _ in range(repeats):
        low, pairs = levels.simulate(num_low, rng), levels.simulate(num_high, rng)
        for method, phi in fit(low, pairs, rng).items():
            if phi is not None:
                found[method].append(excess(phi))
    return found


SCENARIOS: dict[str, Levels] = {
    "exact": Levels(),
    "offset 0.1": Levels(offset=0.1),
    "offset 1": Levels(offset=1.0),
    "offset 1, half of the noise shared": Levels(offset=1.0, correlation=0.5),
    "offset 1, no noise shared": Levels(offset=1.0, correlation=0.0),
    "reversed": Levels(gain=-1.0),
}


def example_table(
    num_low: int,
    num_high: int,
    repeats: int,
    scenarios: dict[str, Levels] = SCENARIOS,
) -> Table:
    """Mean excess in units of 1e-3 nats, with the formula in brackets.

    Args:
        num_low: Simulations of level 0.
        num_high: Pairs.
        repeats: Draws of simulations.
        scenarios: Levels by name.
    """
    rows = []
    for name, levels in scenarios.items():
        found = compare(levels, num_low, num_high, repeats)
        expected = formulas(levels, num_low, num_high)
        row = [name]
        for method in METHODS:
            mean, text = over_seeds(found[method]), "no minimum"
            if found[method]:
                text = f"{1e3 * mean.mean:.1f} ± {1e3 * mean.standard_error:.1f}"
            missing = repeats - len(found[method])
            if method in expected:
                text += f" ({1e3 * expected[method]:.1f})"
            row.append(text + (f", {missing} without minimum" if missing else ""))
        rows.append(tuple(row))
    return Table(("level 0", *METHODS), tuple(rows))


def main(arguments: Sequence[str] | None = None) -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(
        prog="python -m sbi_multilevel_benchmarks.worked_example",
        description="Bias and variance of the methods on one Gaussian parameter.",
    )
    parser.add_argument("--num-simulations", default="10000,50", help="n_0,n_1")
    parser.add_argument("--repeats", type=int, default=1_000)
    options = parser.parse_args(arguments)
    num_low, num_high = map(int, options.num_simulations.split(","))
    print(example_table(num_low, num_high, options.repeats))


if __name__ == "__main__":
    main()
