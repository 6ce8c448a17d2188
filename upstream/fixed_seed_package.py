"""Trains the methods of this package at a fixed seed; used by `check.py`.

    python upstream/fixed_seed_package.py OUT.json

writes weights and losses as hexadecimal numbers, and whether sbi has the hooks.
"""

import json
import sys
import warnings

import torch
from sbi.utils import BoxUniform

from sbi_multilevel import (
    MFNLE,
    MFNPE,
    MLNLE,
    MLNPE,
    LevelSimulations,
    MultilevelSimulations,
    train_ensemble,
)
from sbi_multilevel.training.hooks import HAS_HOOKS
from sbi_multilevel.training.tracking import SilentTracker

FEW = dict(max_num_epochs=2, training_batch_size=50)


def simulations() -> MultilevelSimulations:
    theta, noise = torch.rand(200, 2), torch.randn(200, 2)
    x = theta + 0.3 * noise
    high = x + 0.1 * theta**2
    pairs = LevelSimulations(1, theta[150:], high[150:], x[150:])
    return MultilevelSimulations((LevelSimulations(0, theta[:150], x[:150]), pairs))


def trained(cls: type, levels: bool, data: MultilevelSimulations) -> list[str]:
    torch.manual_seed(1)
    prior = BoxUniform(torch.zeros(2), torch.ones(2))
    options = {"tracker": SilentTracker(), "show_progress_bars": False}
    trainer = cls(prior, density_estimator="maf", **options)
    if levels:
        trainer.append_multilevel_simulations(data)
        (trainer,) = train_ensemble(trainer, 1, train_options=FEW).members
    else:
        trainer.append_simulations(data[0].theta, data[0].x)
        trainer.train(**FEW)
    trainer.train(resume_training=True, training_batch_size=50, max_num_epochs=3)
    values = [v.flatten().double() for v in trainer._neural_net.state_dict().values()]
    losses = trainer.summary["training_loss"] + trainer.summary["validation_loss"]
    return [float(v).hex() for v in [*torch.cat(values), *losses]]


def main(out: str) -> None:
    torch.set_num_threads(1)
    torch.manual_seed(0)
    warnings.simplefilter("ignore")
    data = simulations()
    found = {
        f"{cls.__name__}, {'levels' if levels else 'one level'}": trained(
            cls, levels, data
        )
        for cls in (MLNPE, MLNLE, MFNPE, MFNLE)
        for levels in (True, False)
    }
    print(f"sbi has the hooks: {HAS_HOOKS}", flush=True)
    with open(out, "w", encoding="utf-8") as file:
        json.dump(found, file)


if __name__ == "__main__":
    main(sys.argv[1])
