"""Trains each method of sbi for a few epochs at a fixed seed.

    python fixed_seed.py OUT.json

writes, for each method, a digest of the bits of its weights and the losses of all
epochs. Two versions of sbi train alike if they write the same file. Which one is
imported is up to `PYTHONPATH`.
"""

import hashlib
import json
import sys
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import sbi
import torch
from sbi import inference
from sbi.neural_nets import posterior_nn
from torch import Tensor, nn
from torch.distributions import MultivariateNormal

SEED, ROWS = 1, 300
METHODS = ("NPE", "NLE", "NRE_A", "NRE_B", "NRE_C", "BNRE", "FMPE", "NPSE")
SETTINGS = {"max_num_epochs": 4, "training_batch_size": 50}
PRIOR = MultivariateNormal(torch.zeros(2), torch.eye(2))


def simulations(proposal: Any = PRIOR) -> tuple[Tensor, Tensor]:
    theta = proposal.sample((ROWS,))
    return theta, theta + 0.3 * torch.randn_like(theta)


def new_trainer(method: str, **kwargs: Any) -> Any:
    torch.manual_seed(SEED)
    return getattr(inference, method)(PRIOR, show_progress_bars=False, **kwargs)


def trainings() -> Iterator[tuple[str, Any]]:
    """Names of trainings and their trainers."""
    for method in METHODS:
        trainer = new_trainer(method).append_simulations(*simulations())
        trainer.train(**SETTINGS)
        yield method, trainer

    # the rest of a training, with the split and the optimizer it began with
    trainer = new_trainer("NPE").append_simulations(*simulations())
    trainer.train(**SETTINGS)
    trainer.train(resume_training=True, **{**SETTINGS, "max_num_epochs": 7})
    yield "NPE, resumed", trainer

    # a second round, whose loss needs the proposal
    trainer = new_trainer("NPE").append_simulations(*simulations())
    trainer.train(**SETTINGS)
    proposal = trainer.build_posterior().set_default_x(torch.zeros(1, 2))
    trainer.append_simulations(*simulations(proposal), proposal=proposal)
    trainer.train(**SETTINGS)
    yield "NPE, two rounds", trainer

    # the check of the network's shapes changes its running means
    embedding = nn.Sequential(
        nn.Unflatten(1, (1, 2)), nn.BatchNorm1d(1), nn.Flatten(), nn.Dropout(0.2)
    )
    builder = posterior_nn("mdn", embedding_net=embedding)
    trainer = new_trainer("NPE", density_estimator=builder)
    trainer.append_simulations(*simulations()).train(**SETTINGS)
    yield "NPE, BatchNorm and Dropout", trainer


def record(trainer: Any) -> dict[str, Any]:
    digest = hashlib.sha256()
    for name, value in sorted(trainer._neural_net.state_dict().items()):
        digest.update(name.encode())
        digest.update(value.contiguous().numpy().tobytes())
    losses = ("training_loss", "validation_loss", "best_validation_loss")
    return {
        "weights": digest.hexdigest(),
        **{name: [float(v).hex() for v in trainer.summary[name]] for name in losses},
    }


def main() -> None:
    warnings.simplefilter("ignore")
    results = {name: record(trainer) for name, trainer in trainings()}
    Path(sys.argv[1]).write_text(json.dumps(results, indent=1))
    print(f"{len(results)} trainings with {Path(sbi.__file__).parent}")


if __name__ == "__main__":
    main()
