"""The settings of sequential rounds: seeds and networks, and settings in files."""

from __future__ import annotations

import ast
import os
import warnings
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from enum import IntEnum
from typing import Any

import cloudpickle
import torch
from torch import Tensor

from sbi_multilevel.data.simulations import Target
from sbi_multilevel.methods.hybrid.config import HybridConfig
from sbi_multilevel.methods.sequential.acquisition import Acquisition
from sbi_multilevel.methods.sequential.truncation import Truncation
from sbi_multilevel.methods.transfer import TransferConfig
from sbi_multilevel.training.config import MethodConfig
from sbi_multilevel.training.network import Builder, WarmStart, start_from
from sbi_multilevel.training.tracking import SilentTracker
from sbi_multilevel.training.trainer import MultilevelTrainer
from sbi_multilevel.utils.files import understood
from sbi_multilevel.utils.seeds import derive_seed, seeded

# settings that earlier versions lacked, and what they did
_EARLIER = {
    "shared_pretraining": False,
    "all_rounds": True,
    "num_coverage_simulations": 0,
    "has_cost": False,
}
_EARLIER_IN_CONFIG = {"schedule": None}
_EARLIER_IN_HYBRID = {"widen": False}
# settings and values that had other names
_RENAMED = {"recipe": "config", "num_coverage_rows": "num_coverage_simulations"}
_RENAMED_IN_CONFIG = {"Transfer(": "TransferConfig(", "'own'": "'standardize'"}


class Stream(IntEnum):
    """Independent streams of random numbers; checkpoints rely on the values."""

    PRETRAINING = 10
    PROPOSALS = 11
    TRAINING = 12
    NOISE = 13
    REGION = 14
    MISSING_PARAMETERS = 15
    POOL = 16
    COVERAGE = 17


@dataclass(frozen=True, eq=False, kw_only=True)
class Settings:
    """What does not change from round to round; arguments are those of `HybridTSNPE`.

    Without `truncation` theta may follow any distribution.
    """

    prior: Any
    density_estimator: Any
    config: MethodConfig
    train_options: Mapping[str, Any]
    acquisition: Acquisition | None
    truncation: Truncation | None
    seed: int

    def seed_of(self, stream: Stream, *key: int) -> int:
        """The seed of a stream of random numbers."""
        return derive_seed(self.seed, stream, *key)

    def noise_seed(self, round_: int, level: int) -> int:
        """The seed of the noise of a level in a round."""
        return self.seed_of(Stream.NOISE, round_, level)

    def trainer(
        self,
        trainer_type: type[MultilevelTrainer],
        config: MethodConfig,
        prior: Any = None,
        parameters: Mapping[int, Sequence[str]] | None = None,
    ) -> MultilevelTrainer:
        """A trainer without simulations; the prior is the whole one by default."""
        return trainer_type(
            self.prior if prior is None else prior,
            density_estimator=self.density_estimator,
            config=config,
            parameters=parameters,
            tracker=SilentTracker(),
            show_progress_bars=False,
        )

    def network_from(
        self, source: WarmStart, build: Builder, target: Target, x_o: Tensor
    ) -> Any:
        """A network from another, or from weights that fit what `build` returns."""
        with seeded(0), warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of random x, which only has the shape
            theta = self.prior.sample((100,))
            x = x_o + torch.randn(100, *x_o.shape[1:])
            return start_from(source, build, target, theta, x)

    def check_saved(
        self, saved: Mapping[str, Any], x_o: Tensor, path: str | os.PathLike
    ) -> None:
        """Raise unless the settings in a file are these.

        Raises:
            ValueError: If they differ; names the settings that do.
        """
        with explained(path):
            saved = _of_this_version(saved)
        differing = [
            f"{name} was {saved.get(name)}, is {value}"
            for name, value in self.saved(x_o).items()
            if not _same(saved.get(name), value)
        ]
        if differing:
            raise ValueError(
                f"path={str(path)!r} holds a run with other settings: "
                f"{'; '.join(differing)}. Use the same settings to resume it, or "
                "another path to start from scratch."
            )

    def saved(self, x_o: Tensor) -> dict[str, Any]:
        """The settings that must be the same to resume a run, as plain values."""
        return {
            "x_o": x_o,
            "seed": self.seed,
            "acquisition": repr(self.acquisition),
            "has_cost": getattr(self.acquisition, "cost", None) is not None,
            "truncation": repr(self.truncation),
            "config": _with_sorted_fields(repr(self.config)),
            "train_options": repr(sorted(self.train_options.items())),
        }

    def __getstate__(self) -> dict[str, Any]:
        """The builder goes by cloudpickle, as it may be a local function."""
        builder = cloudpickle.dumps(self.density_estimator)
        return {**vars(self), "density_estimator": builder}

    def __setstate__(self, state: dict[str, Any]) -> None:
        builder = cloudpickle.loads(state["density_estimator"])
        vars(self).update(state, density_estimator=builder)


@dataclass(frozen=True, eq=False, kw_only=True)
class FineTuningSettings(Settings):
    """The settings of rounds of fine-tuning; arguments are those of `MFTSNPE`.

    Raises:
        ValueError: If a setting is out of range, or two do not fit each other.
    """

    config: TransferConfig
    truncation: Truncation
    num_members: int
    shared_pretraining: bool
    all_rounds: bool
    num_coverage_simulations: int
    parameters: Mapping[int, Sequence[str]] | None
    num_workers: int

    def __post_init__(self) -> None:
        if self.is_corrected and self.truncation.sample_with == "sir":
            raise ValueError(
                "Acquisition(correct=True) needs the acceptance rate of the truncated "
                "prior, which Truncation(sample_with='sir') does not estimate. Use "
                "sample_with='rejection', or correct=False."
            )
        if self.num_members < 1 or (self.acquisition and self.num_members < 2):
            raise ValueError(
                f"num_members is {self.num_members}, but must be >= 1, and >= 2 with "
                "an acquisition, which compares the members."
            )
        if self.num_coverage_simulations < 0:
            raise ValueError(
                "num_coverage_simulations must be >= 0, but is "
                f"{self.num_coverage_simulations}."
            )

    @property
    def is_corrected(self) -> bool:
        """Whether high-fidelity simulations have importance weights."""
        return self.acquisition is not None and self.acquisition.correct

    def noise_seed(self, round_: int, level: int) -> int:
        """The seed of the noise of a round, which has one level."""
        return self.seed_of(Stream.NOISE, round_)

    def saved(self, x_o: Tensor) -> dict[str, Any]:
        """The settings that must be the same to resume a run, as plain values."""
        names = "num_members", "shared_pretraining", "all_rounds"
        names = *names, "num_coverage_simulations"
        own = {name: getattr(self, name) for name in names}
        return {**super().saved(x_o), **own, "parameters": repr(self.parameters)}


@dataclass(frozen=True, eq=False, kw_only=True)
class MultilevelSettings(Settings):
    """The settings of rounds of several levels.

    Args:
        trainer_type: The trainer of several levels.
        mcmc_options: Arguments of `MCMCPosterior`, for a likelihood.

    Raises:
        ValueError: If `config` has `widen=True`.
    """

    trainer_type: type[MultilevelTrainer]
    mcmc_options: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        # files of a run hold the weights of networks as `density_estimator` builds them
        if isinstance(self.config, HybridConfig) and self.config.widen:
            raise ValueError(
                "config has widen=True, which is not available in rounds. Leave it "
                "out, or widen in one training of `HybridNPE` or `HybridNLE`."
            )

    def saved(self, x_o: Tensor) -> dict[str, Any]:
        """The settings that must be the same to resume a run, as plain values."""
        return {**super().saved(x_o), "method": self.trainer_type.__name__}


def explained(path: str | os.PathLike) -> AbstractContextManager[None]:
    """Explain errors of reading a state, by `sbi_multilevel.utils.files`."""
    return understood(
        "path",
        path,
        "the state of a run",
        "Pass a file that `save` wrote, or another path to start from scratch.",
    )


def _same(a: Any, b: Any) -> bool:
    if isinstance(a, Tensor) and isinstance(b, Tensor):
        return torch.equal(a, b)
    return type(a) is type(b) and a == b


def _of_this_version(saved: Mapping[str, Any]) -> dict[str, Any]:
    """Saved settings under the names of this version."""
    renamed = {_RENAMED.get(name, name): each for name, each in saved.items()}
    config = renamed.get("config", "")
    if "recipe" in saved:
        for before, after in _RENAMED_IN_CONFIG.items():
            config = config.replace(before, after)
    missing = _EARLIER_IN_CONFIG
    if config.startswith("HybridConfig("):
        missing = {**missing, **_EARLIER_IN_HYBRID}
    config = _with_sorted_fields(config, missing)
    return {**_EARLIER, **renamed, "config": config}


def _with_sorted_fields(text: str, missing: Mapping[str, Any] | None = None) -> str:
    """The `repr` of a dataclass with its fields in alphabetical order.

    The order of fields may change between versions, and fields are added.

    Args:
        text: The `repr`.
        missing: Values of fields that it may lack.
    """
    call = ast.parse(text, mode="eval").body
    assert isinstance(call, ast.Call)
    known = {each.arg: each for each in call.keywords}
    for name, value in (missing or {}).items():
        known.setdefault(name, ast.keyword(name, ast.Constant(value)))
    call.keywords = sorted(known.values(), key=lambda each: each.arg or "")
    return ast.unparse(call)
