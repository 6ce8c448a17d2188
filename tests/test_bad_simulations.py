"""Bad simulations give a finite result or an error of this package."""

import re
import warnings

import pytest
import torch

from sbi_multilevel import (
    MFNLE,
    MFNPE,
    MFTSNPE,
    MLNLE,
    MLNPE,
    HybridNLE,
    HybridNPE,
    Truncation,
)
from tests.bad_simulations import CASES, simulate
from tests.errors import is_ours
from tests.linear_gaussian import SilentTracker

FEW = dict(max_num_epochs=2)


def trained(cls, prior, low, high, density_estimator):
    trainer = cls(
        prior,
        density_estimator=density_estimator,
        tracker=SilentTracker(),
        show_progress_bars=False,
    )
    if cls in (MFNPE, MFNLE):
        trainer.append_lowfidelity_simulations(low["theta"], low["x"])
        trainer.append_simulations(high["theta"], high["x"])
    else:
        trainer.append_multilevel_simulations(**low, level=0)
        trainer.append_multilevel_simulations(**high, level=1)
    trainer.train(**FEW)
    return trainer


def posterior_by_rounds(prior, x_o, low, high, density_estimator):
    inference = MFTSNPE(
        prior,
        x_o,
        density_estimator=density_estimator,
        truncation=Truncation(num_samples=200),
        train_options=FEW,
    )
    inference.append_lowfidelity_simulations(low["theta"], low["x"])
    inference.append_simulations(high["theta"], high["x"])
    inference.train()
    return inference.build_posterior()


def check_posterior(posterior, prior, x_o):
    samples = posterior.sample((5,), x=x_o, show_progress_bars=False)
    assert samples.isfinite().all() and prior.support.check(samples).all()
    log_prob = posterior.log_prob(samples, x=x_o, norm_posterior=False)
    assert log_prob.isfinite().all()


def check_likelihood(trainer, prior, x_o):
    posterior = trainer.build_posterior(sample_with="importance")
    samples = posterior.sample((5,), x=x_o, show_progress_bars=False)
    assert samples.isfinite().all() and prior.support.check(samples).all()
    assert posterior.potential(prior.sample((5,)), x=x_o).isfinite().all()


TRAINERS = {
    "MLNPE": MLNPE,
    "MFNPE": MFNPE,
    "MLNLE": MLNLE,
    "MFNLE": MFNLE,
    "HybridNPE": HybridNPE,
    "HybridNLE": HybridNLE,
}
HYBRIDS = ("HybridNPE", "HybridNLE")


def run(method, case, density_estimator):
    torch.manual_seed(0)
    prior, low, high = simulate(case)
    x_o = torch.as_tensor(high["x"])[3:4].clone()
    if method == "MFTSNPE":
        x_o = x_o if len(x_o) == 1 and x_o.isfinite().all() else torch.zeros(1, 3)
        posterior = posterior_by_rounds(prior, x_o, low, high, density_estimator)
        return check_posterior(posterior, prior, x_o)
    trainer = trained(TRAINERS[method], prior, low, high, density_estimator)
    if "NPE" in method:
        return check_posterior(trainer.build_posterior(), prior, x_o)
    return check_likelihood(trainer, prior, x_o)


# cases for hybrid methods and flows, which take seconds each, and for all methods in
# the default suite
CHOSEN = (
    "nothing wrong",
    "constant at level 0",
    "constant at all levels",
    "1e30 at level 0",
    "3e38 at level 1",
    "scale 1e30",
    "scale 1e-30",
    "offset 1e8",
    "five simulations of level 1",
    "NaN in theta of level 1",
    "collinear features",
    "duplicated simulations",
    "integers",
    "theta outside of the prior",
    "prior with a bound for one parameter",
    "half-Cauchy prior",
)


# methods to which each case is passed in the default suite: one for each density, and
# one with each kind of loss
EVERY_CASE = ("MLNPE", "MFNLE")


def parameters(cases, methods):
    for method in methods:
        for name in cases:
            # a mixture density over 500 features has large matrices
            is_large = "NLE" in method and name == "500 features"
            is_slow = is_large or not (method in EVERY_CASE or name in CHOSEN)
            marks = [pytest.mark.slow] if is_slow else []
            yield pytest.param(method, name, id=f"{method}-{name}", marks=marks)


QUICK = tuple(name for name in (*TRAINERS, "MFTSNPE") if name not in HYBRIDS)


@pytest.mark.parametrize("method, name", parameters(CASES, QUICK))
def test_bad_simulations_train_or_are_refused(method, name, density_estimator="mdn"):
    case = CASES[name]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            run(method, case, density_estimator)
        except Exception as error:
            assert is_ours(error)
            if method != "MFTSNPE":  # rounds refuse more
                assert case.refused is not None
                assert re.search(case.refused, str(error)), error
            return
    assert case.refused is None or case.may_train


@pytest.mark.slow
@pytest.mark.parametrize("method, name", parameters(CHOSEN, HYBRIDS))
def test_bad_simulations_of_hybrid_methods(method, name):
    test_bad_simulations_train_or_are_refused(method, name)


@pytest.mark.slow
@pytest.mark.parametrize("density_estimator", ("maf", "nsf"))
@pytest.mark.parametrize("method, name", parameters(CHOSEN, QUICK[:4]))
def test_bad_simulations_with_flows(method, name, density_estimator):
    test_bad_simulations_train_or_are_refused(method, name, density_estimator)
