"""How a round of several levels trains: a trainer, and what its networks are used for.

A round trains on the simulations inside the region of the round. With
:math:`R` the region, simulations of all rounds that lie in it are independent draws
from :math:`p(\\theta)\\, 1[\\theta \\in R]`, at each level, so that any trainer can be
used as it is.
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import cloudpickle
import torch
from sbi.inference import DirectPosterior, MCMCPosterior
from sbi.inference.potentials import likelihood_estimator_based_potential
from sbi.neural_nets.estimators import ConditionalDensityEstimator
from torch import Tensor

from sbi_multilevel.data.simulations import LevelSimulations, merge_levels, merged
from sbi_multilevel.estimators.mixture import MixtureEstimator
from sbi_multilevel.level_maps.tail_transform import TailTransform
from sbi_multilevel.methods.hybrid.config import HybridConfig
from sbi_multilevel.methods.hybrid.trainer import MIN_SIMULATIONS, HybridTrainer
from sbi_multilevel.methods.sequential.acquisition import Acquisition, disagreement
from sbi_multilevel.methods.sequential.truncated_prior import TruncatedPrior
from sbi_multilevel.methods.sequential.truncation import Truncation
from sbi_multilevel.training.config import MethodConfig
from sbi_multilevel.training.network import start_from
from sbi_multilevel.training.tracking import SilentTracker
from sbi_multilevel.training.trainer import MultilevelTrainer
from sbi_multilevel.utils.seeds import seeded

# what a mixture is saved as
_ENTRIES = {"members", "weights", "tails", "has_prior"}


@dataclass(frozen=True, eq=False)
class RoundFit:
    """What a round learned.

    Args:
        estimator: The density of theta, or of x.
        log_score: Mean log density of held-out high-fidelity simulations under the
            networks that were not trained on them; NaN if the method has none.
    """

    estimator: MixtureEstimator
    log_score: float = float("nan")


@dataclass(frozen=True, eq=False, kw_only=True)
class RoundMethod:
    """A trainer and its arguments.

    Args:
        trainer_type: The trainer of several levels.
        density_estimator: Name of a network, or a builder, as for the trainer.
        config: Settings of the trainer.
        train_options: Arguments of its `train`.
        truncation: How the prior is truncated; `None` for a likelihood, for which
            theta may follow any distribution, so that rounds draw from the posterior.
        mcmc_options: Arguments of `MCMCPosterior`, for a likelihood.
        acquisition: How active points are chosen.
    """

    trainer_type: type[MultilevelTrainer]
    density_estimator: Any
    config: MethodConfig
    train_options: Mapping[str, Any]
    truncation: Truncation | None = None
    mcmc_options: Mapping[str, Any] | None = None
    acquisition: Acquisition | None = None

    @property
    def min_simulations(self) -> int:
        """Simulations of the highest level that a round needs at least."""
        return MIN_SIMULATIONS

    def fit(
        self,
        prior: TruncatedPrior,
        parts: Sequence[LevelSimulations],
        x_o: Tensor | None = None,
        outside: Sequence[LevelSimulations] = (),
    ) -> RoundFit:
        """Train from scratch.

        Args:
            prior: The prior in the region.
            parts: Simulations in the region.
            x_o: The observation; a warning is given if it lies far outside of the
                simulations. `None` for no such check.
            outside: Pairs of earlier rounds outside of the region, to which a hybrid
                fits level maps.
        """
        trainer = self._trainer(self.trainer_type, prior, self.config)
        trainer.append_multilevel_simulations(merge_levels(parts))
        if isinstance(trainer, HybridTrainer):
            pairs = [part for part in outside if part.is_paired]
            for level in sorted({part.level for part in pairs}):
                part = merged([each for each in pairs if each.level == level])
                trainer.append_map_simulations(
                    part.theta,
                    part.x,
                    part.x_coarse,  # pyright: ignore[reportArgumentType]
                    level,
                )
        estimator = trainer.train(**self.train_options)  # pyright: ignore[reportAttributeAccessIssue]
        if x_o is not None and trainer._watch is not None:
            trainer._watch.check(x_o)
        summary = getattr(trainer, "hybrid_summary", None)
        if not isinstance(estimator, MixtureEstimator):
            estimator = MixtureEstimator([estimator], torch.ones(1), trainer._target)
        score = float("nan") if summary is None else max(summary.log_scores.values())
        return RoundFit(estimator.cpu().eval(), score)

    def build_posterior(self, estimator: Any, prior: Any, x_o: Tensor) -> Any:
        """sbi's posterior with the observation as its default x.

        Args:
            estimator: What a round learned.
            prior: The whole prior.
            x_o: The observation, shape `(1, *x_shape)`.
        """
        if self.truncation is not None:
            return DirectPosterior(estimator, prior).set_default_x(x_o)
        potential, transform = likelihood_estimator_based_potential(
            estimator, prior, x_o
        )
        # each chain starts at one of its candidates, all of which are evaluated
        options = {
            "init_strategy_parameters": {"num_candidate_samples": 1_000},
            **(self.mcmc_options or {}),
        }
        posterior = MCMCPosterior(
            potential, proposal=prior, theta_transform=transform, **options
        )
        return posterior.set_default_x(x_o)

    def disagreement(
        self, theta: Tensor, estimator: MixtureEstimator, prior: Any, x_o: Tensor
    ) -> Tensor:
        """Disagreement of the members about the observation, up to a common factor.

        Args:
            theta: Parameters, shape `(n, d_theta)`.
            estimator: A mixture.
            prior: The whole prior.
            x_o: The observation, shape `(1, *x_shape)`.

        Returns:
            Scores, shape `(n,)`.
        """
        assert self.acquisition is not None
        target = estimator.target
        at = x_o.expand(len(theta), *x_o.shape[1:])
        log_probs = []
        with torch.no_grad():
            for member in estimator.members:
                q = MixtureEstimator([member], torch.ones(1), target, estimator.tails)
                if target == "x":
                    log_prob = prior.log_prob(theta) + q.log_prob(at[None], theta)[0]
                else:
                    log_prob = q.log_prob(theta[None], at)[0]
                log_probs.append(log_prob)
        return disagreement(torch.stack(log_probs), self.acquisition.on)

    def pool(self, prior: Any, seed: int) -> Tensor:
        """Draws from a prior that active points are chosen from.

        Args:
            prior: The prior.
            seed: Seed of the pool.
        """
        assert self.acquisition is not None
        with seeded(seed):
            return prior.sample((self.acquisition.pool_size,))

    def restored(
        self, saved: Mapping[str, Any], prior: TruncatedPrior, x_o: Tensor
    ) -> MixtureEstimator:
        """What `saved_as` saved.

        Args:
            saved: The weights.
            prior: The prior in the region that they were trained in.
            x_o: The observation.
        """
        config, trainer_type = self.config, self.trainer_type
        if isinstance(config, HybridConfig):
            config, trainer_type = config.plain_config, trainer_type._member_type  # pyright: ignore[reportAttributeAccessIssue]
        trainer = self._trainer(trainer_type, prior, config)
        build, target = trainer._network_builder, trainer._target
        with seeded(0), warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of random x, which only has the shape
            theta = prior.whole.sample((100,))
            x = x_o + torch.randn(100, *x_o.shape[1:])
            members: list[ConditionalDensityEstimator] = [
                start_from(weights, build, target, theta, x)
                for weights in saved["members"]
            ]
        tails = saved["tails"]
        return MixtureEstimator(
            members,
            saved["weights"],
            target,
            None if tails is None else TailTransform(*tails),
            prior if saved["has_prior"] else None,
        ).eval()

    def _trainer(
        self, trainer_type: type[MultilevelTrainer], prior: Any, config: MethodConfig
    ) -> MultilevelTrainer:
        return trainer_type(
            prior,
            density_estimator=self.density_estimator,
            config=config,
            tracker=SilentTracker(),
            show_progress_bars=False,
        )

    def __getstate__(self) -> dict[str, Any]:
        """The builder goes by cloudpickle, as it may be a local function."""
        builder = cloudpickle.dumps(self.density_estimator)
        return {**vars(self), "density_estimator": builder}

    def __setstate__(self, state: dict[str, Any]) -> None:
        builder = cloudpickle.loads(state["density_estimator"])
        vars(self).update(state, density_estimator=builder)


def saved_as(estimator: MixtureEstimator) -> dict[str, Any]:
    """A mixture as tensors and plain values."""
    tails = estimator.tails
    columns = None if tails is None else (tails.center, tails.scale, tails.delta)
    return {
        "members": [member.state_dict() for member in estimator.members],
        "weights": estimator.weights,
        "tails": columns,
        "has_prior": estimator.prior is not None,
    }


def check_saved(saved: Any) -> bool:
    """Whether a value may be what `saved_as` returned."""
    return (
        isinstance(saved, dict)
        and set(saved) == _ENTRIES
        and isinstance(saved["members"], list)
        and isinstance(saved["weights"], Tensor)
        and isinstance(saved["has_prior"], bool)
        and (saved["tails"] is None or len(saved["tails"]) == 3)
    )
