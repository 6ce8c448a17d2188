r"""Map scores: a synthetic likelihood as flexible as low-fidelity simulations require.

Scores of maps differ by tenths of a nat a simulation, and a synthetic likelihood that
misses the form of x given theta errs by more: at the switch of a bistable cell a
quadratic mean is wrong by half a nat, whatever the map. There are therefore two
scorers. Both are the synthetic likelihood of
`sbi_multilevel.level_maps.selection.synthetic_likelihood`, with means and log scales
that are

- quadratic in theta, or
- linear in quadratic features and in the outputs of networks for what those leave
  (`sbi_multilevel.level_maps.selection.theta_features`).

The second is used if it predicts held-out low-fidelity simulations better, by a tenth
of a nat a simulation and by two standard errors. High-fidelity simulations are not used
for that, and fewer than 200 parameters are too few for networks. Networks are fitted to
simulations that are not mapped: maps that bend them much, e.g. where the switch of the
high-fidelity simulator is at another theta, are scored less precisely than maps that
shift or scale.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from sbi_multilevel.level_maps.arrays import LevelArrays
from sbi_multilevel.level_maps.selection.synthetic_likelihood import SyntheticLikelihood
from sbi_multilevel.level_maps.selection.theta_features import ThetaFeatures

if TYPE_CHECKING:
    from sbi_multilevel.data.simulations import Target

_MIN_PARAMETERS = 200  # that networks are fitted to
_MAX_LEFT_OUT = 500
_MAX_SIMULATIONS = 20_000  # that the two are compared by
_MIN_GAIN = 0.1  # nats a simulation


def _identity(values: np.ndarray) -> np.ndarray:
    return values


@dataclass(frozen=True, eq=False)
class MapScorer:
    """Scores held-out simulations under the synthetic likelihood of mapped ones.

    Args:
        target: `"theta"` if posteriors are to be learned, `"x"` if likelihoods.
        outputs: Function from x, shape `(n, k)`, to the features in scores.
        features: Features of theta; `None` if means and log scales are quadratic.
    """

    target: Target
    outputs: Callable[[np.ndarray], np.ndarray] = _identity
    features: ThetaFeatures | None = None

    @classmethod
    def chosen(
        cls,
        low: LevelArrays,
        target: Target,
        outputs: Callable[[np.ndarray], np.ndarray] = _identity,
    ) -> MapScorer:
        """The scorer that predicts low-fidelity simulations better.

        Args:
            low: Low-fidelity simulations in random order.
            target: See the class.
            outputs: See the class.
        """
        plain, low = cls(target, outputs), low.first(_MAX_SIMULATIONS)
        if len(np.unique(low.theta, axis=0)) < _MIN_PARAMETERS:
            return plain
        low = low.with_x(outputs(low.x))
        try:
            features = ThetaFeatures.fit(low)
            if features is None:
                return plain
            flexible = cls(target, outputs, features)
            gain = flexible._left_out(low) - plain._left_out(low)
        except (np.linalg.LinAlgError, ValueError):
            return plain  # e.g. where x overflows
        error = gain.std(ddof=1) / np.sqrt(len(gain))
        is_better = gain.mean() > max(_MIN_GAIN, 2 * error)
        return flexible if is_better else plain

    def inputs(self, theta: np.ndarray) -> np.ndarray:
        """What means and log scales are regressed on, in the place of theta."""
        return theta if self.features is None else self.features.joined(theta)

    def scores(
        self, mapped: LevelArrays, held_out: LevelArrays
    ) -> tuple[np.ndarray, np.ndarray]:
        """Log score and log likelihood of each held-out simulation, in nats.

        Args:
            mapped: Mapped simulations, with `inputs` for theta and `outputs` for x.
            held_out: High-fidelity simulations that the map was not fitted to,
                likewise.

        Returns:
            Both of shape `(n,)`; the same if likelihoods are to be learned.
        """
        degree = 2 if self.features is None else 1
        model = SyntheticLikelihood.fit(mapped, degree)
        likelihood = model.log_likelihood(held_out)
        if self.target == "x":
            return likelihood, likelihood
        ratio = model.log_posterior_ratio(held_out, mapped.theta, mapped.weights)
        return ratio, likelihood

    def _left_out(self, low: LevelArrays) -> np.ndarray:
        """Scores of the first simulations under the later ones."""
        num_left_out = min(_MAX_LEFT_OUT, len(low) // 5)
        inputs = low.of_theta(self.inputs)
        low = LevelArrays(inputs, low.x, weights=low.weights)
        left_out, others = np.split(np.arange(len(low)), [num_left_out])
        return self.scores(low[others], low[left_out])[0]
