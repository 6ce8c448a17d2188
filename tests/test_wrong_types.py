"""Arguments of the wrong type are refused by name, with an error of ours."""

import tempfile
from functools import cache

import numpy as np
import pytest
import torch
from sbi.neural_nets import (
    classifier_nn,
    likelihood_nn,
    posterior_flow_nn,
    posterior_nn,
    posterior_score_nn,
)
from torch import nn

from sbi_multilevel import (
    MFNLE,
    MFNPE,
    MFTSNPE,
    MLNLE,
    MLNPE,
    Acquisition,
    Ensemble,
    HybridConfig,
    HybridNLE,
    HybridNPE,
    LevelSimulations,
    MultilevelConfig,
    MultilevelSimulations,
    SimulationStore,
    TransferConfig,
    Truncation,
    advise,
    allocate,
    pilot,
    simulate_budget,
    simulate_multilevel,
    to_datatree,
    train_ensemble,
    unconstrained,
    vectorize_simulator,
)
from sbi_multilevel.diagnostics import check_pairing, fidelity_report
from sbi_multilevel.plots import compare
from sbi_multilevel.utils.argument_types import check_types
from tests.errors import is_ours
from tests.linear_gaussian import SilentTracker, simulations
from tests.two_levels import PRIOR, coarse, fine, normal_noise

NAN = float("nan")


def function(*arguments):
    return 1


NUMBER = (function, "abc", object(), [1.0], True)
COUNT = (function, "abc", object(), 2.5, True, -1, None)
WHOLE = (function, "abc", object(), 2.5)  # where None or -1 mean something
NUMBERS = (function, "abc", 3, object(), (function,) * 2, (None,) * 2, [[1.0]] * 2)
TENSOR = (function, "abc", 3, object(), np.ones((9, 2)), [[1.0, 2.0]])
CALLABLE = ("abc", 3, object(), [1])
MAPPING = (function, "abc", 3, object(), ["abc"])
SIMULATIONS = (function, "abc", 3, None, torch.ones(2, 2))
PRIORS = (function, "abc", 3, object(), [], ("a", "b"))
DISTRIBUTION = (function, "abc", 3, object(), [])
SIMULATORS = (function, "abc", 3, None, [1, 2])

RUN = {"simulators": [coarse, fine], "prior": PRIOR, "noise": normal_noise}
HOW = {
    "simulators": SIMULATORS,
    "prior": PRIORS,
    "noise": CALLABLE,
    "seed": COUNT,
    "simulation_batch_size": COUNT,
    "num_workers": (*WHOLE, 0),
    "costs": NUMBERS,
    "timeout": NUMBER,
    "max_failure_share": (*NUMBER, NAN, -1),
}
FITS = {"train_options": MAPPING, "num_folds": COUNT, "method": (function, 3, "abc")}
TRAINER = {
    "prior": DISTRIBUTION,
    "density_estimator": (3, None, "mdnn", nn.Linear(2, 2)),
    "config": (function, 3, "abc", [], np.ones(2)),
    "parameters": (*MAPPING, {}),
}
SHARES = {"betas": NUMBERS, "weight_decay": (*NUMBER, -1)}
QUIET = {"tracker": SilentTracker(), "show_progress_bars": False}


def columns(n=9):
    return torch.rand(n, 2)


def trainer(cls=MFNPE):
    made = cls(PRIOR, density_estimator="mdn", **QUIET)
    return made.append_lowfidelity_simulations(columns(), columns())


def rounds(**options):
    options = {"prior": PRIOR, "x_o": torch.zeros(2), **options}
    return MFTSNPE(density_estimator="mdn", **options)


@cache  # one for all
def store():
    path = tempfile.mkdtemp() + "/run.zarr"
    return SimulationStore.create(path, PRIOR, (6, 4), noise=normal_noise)


def record(**options):
    pending = store().pending(1)
    given = {"ids": pending.ids, "x": columns(4), "x_coarse": columns(4), **options}
    return store().record(given.pop("ids"), given.pop("x"), **given)


def method(name, make=trainer):
    return lambda **options: getattr(make(), name)(**options)


LEVEL = {"theta": columns(), "x": columns()}
CALLS = {
    "simulate_multilevel": (
        simulate_multilevel,
        {**RUN, "num_simulations": (6, 4)},
        {**HOW, "num_simulations": NUMBERS, "retry": (function, 3)},
    ),
    "check_pairing": (
        check_pairing,
        RUN,
        {**HOW, "num_simulations": COUNT, "num_noises": COUNT, "num_repeats": COUNT},
    ),
    "pilot": (
        pilot,
        {**RUN, "num_simulations": (12, 12)},
        {**HOW, **FITS, "num_simulations": NUMBERS},
    ),
    "simulate_budget": (
        simulate_budget,
        {**RUN, "budget": 100.0, "pilot_simulations": (12, 12)},
        {**HOW, **FITS, "budget": (*NUMBER, NAN, -1), "pilot_simulations": NUMBERS},
    ),
    "allocate": (
        allocate,
        {"costs": (1.0, 9.0), "variances": (4.0, 1.0), "budget": 99.0},
        {
            "costs": NUMBERS,
            "variances": NUMBERS,
            "budget": (*NUMBER, NAN, -1),
            "minimum": (*COUNT, [], (function,) * 2),
        },
    ),
    "advise": (
        advise,
        {"costs": (1.0,), "difference_variances": ((1.0,),), "budget": 99.0},
        {"costs": NUMBERS, "difference_variances": NUMBERS, "budget": NUMBER},
    ),
    "store.create": (
        SimulationStore.create,
        {"path": "x.zarr", "prior": PRIOR, "num_simulations": (6, 4)},
        {
            "path": (function, 3, None),
            "prior": PRIORS,
            "num_simulations": NUMBERS,
            "noise": CALLABLE,
            "seed": COUNT,
        },
    ),
    "store.run": (
        method("run", store),
        {"simulators": [coarse, fine]},
        {k: v for k, v in HOW.items() if k not in ("prior", "noise", "seed")}
        | {"simulation_batch_size": (function, "abc", 2.5, -1)},
    ),
    "store.pending": (
        method("pending", store),
        {"level": 0},
        {"level": (function, "abc", None, 2.5), "max_simulations": WHOLE},
    ),
    "store.record": (
        record,
        {},
        {
            "x": (function, "abc", {}, object()),
            "x_coarse": (function, "abc", {}, object()),
            "cost": (function, "abc", {}, object(), -1),
        },
    ),
    "store.record_failures": (
        method("record_failures", store),
        {"ids": []},
        {"error": (function, 3, None)},
    ),
    "store.to_simulations": (
        method("to_simulations", store),
        {},
        {"costs": NUMBERS, "memory_map": (function, 3)},
    ),
    "store.batches": (
        method("batches", store),
        {"level": 0},
        {"level": (function, "abc", None), "batch_size": (*COUNT, 0)},
    ),
    "store.rename_simulators": (
        method("rename_simulators", store),
        {},
        {"simulators": (function, 3, None)},
    ),
    "vectorize_simulator": (vectorize_simulator, {}, {"simulator": CALLABLE}),
    "LevelSimulations": (
        LevelSimulations,
        {"level": 1, **LEVEL},
        {"level": COUNT, "theta": TENSOR, "x": TENSOR, "x_coarse": TENSOR},
    ),
    "MultilevelSimulations": (
        MultilevelSimulations,
        {"levels": simulations().levels},
        {"levels": (*NUMBERS, None), "costs": NUMBERS},
    ),
    "HybridConfig": (
        HybridConfig,
        {},
        {
            **SHARES,
            "level_maps": (*NUMBERS, ["abc"]),
            "num_members": COUNT,
            "mix": ("abc", 3, None),
        },
    ),
    "MultilevelConfig": (
        MultilevelConfig,
        {},
        {**SHARES, "adjustment": (function, 3), "early_stopping": ("abc", 3)},
    ),
    "TransferConfig": (
        TransferConfig,
        {},
        {
            **SHARES,
            "rehearsal": (*NUMBER, NAN),
            "fine_tuning_rate": (*NUMBER, NAN, None),
            "freeze": NUMBERS,
            "unconstrained": ("abc", 3),
        },
    ),
    "Acquisition": (
        Acquisition,
        {},
        {"share": (*NUMBER, NAN), "pool_size": COUNT, "cost": CALLABLE},
    ),
    "Truncation": (
        Truncation,
        {},
        {"epsilon": (*NUMBER, NAN), "num_samples": COUNT, "max_draws": COUNT},
    ),
    **{
        cls.__name__: (cls, {"prior": PRIOR, **QUIET}, TRAINER)
        for cls in (MLNPE, MLNLE, MFNPE, MFNLE, HybridNPE, HybridNLE)
    },
    "append_multilevel_simulations": (
        method("append_multilevel_simulations"),
        {**LEVEL, "level": 1},
        {
            "theta": (*TENSOR, None),
            "x": TENSOR,
            "x_coarse": TENSOR,
            "level": COUNT,
            "data_device": (function, "abc", 3),
        },
    ),
    "append_lowfidelity_simulations": (
        method("append_lowfidelity_simulations"),
        LEVEL,
        {"theta": TENSOR, "x": TENSOR, "level": COUNT, "data_device": (function, 3)},
    ),
    "append_simulations": (
        method("append_simulations"),
        LEVEL,
        {"theta": TENSOR, "x": TENSOR},
    ),
    "append_weighted_simulations": (
        method("append_weighted_simulations"),
        {**LEVEL, "weights": torch.ones(9)},
        {"theta": TENSOR, "x": TENSOR, "weights": TENSOR},
    ),
    "train_ensemble": (
        train_ensemble,
        {"inference": trainer()},
        {
            "inference": (function, "abc", None),
            "num_members": COUNT,
            "seed": COUNT,
            "num_workers": (*WHOLE, 0),
            "train_options": MAPPING,
        },
    ),
    "Ensemble.build_posterior": (
        method("build_posterior", lambda: Ensemble((trainer(),))),
        {},
        {"weights": NUMBERS, "sample_with": (function, 3)},
    ),
    "unconstrained": (
        unconstrained,
        {"density_estimator": "mdn", "prior": PRIOR},
        {"prior": (function, "abc", None, [])},
    ),
    "to_datatree": (
        to_datatree,
        {"posterior": None},
        {"posterior": (function, "abc", None, PRIOR)},
    ),
    "compare": (compare, {"posteriors": {}}, {"posteriors": (*MAPPING, {})}),
    "fidelity_report": (
        fidelity_report,
        {"simulations": simulations()},
        {"simulations": SIMULATIONS, "embedding": CALLABLE, "train_options": MAPPING},
    ),
    "MFTSNPE": (
        rounds,
        {},
        {
            "prior": DISTRIBUTION,
            "config": (function, 3, "abc", []),
            "num_members": COUNT,
            "acquisition": (function, 3, "abc"),
            "truncation": (function, 3, "abc"),
            "parameters": (*MAPPING, {}),
            "seed": COUNT,
            "num_workers": WHOLE,
            "train_options": MAPPING,
            "x_o": (function, "abc", None, object()),
        },
    ),
    "MFTSNPE.propose": (method("propose", rounds), {}, {"num_simulations": COUNT}),
    "MFTSNPE.run": (
        method("run", rounds),
        {"simulator": fine, "num_simulations": 12},
        {
            "simulator": CALLABLE,
            "num_simulations": COUNT,
            "num_rounds": COUNT,
            "noise": CALLABLE,
            "simulation_batch_size": COUNT,
            "num_workers": WHOLE,
        },
    ),
    "MFTSNPE.append_lowfidelity_simulations": (
        method("append_lowfidelity_simulations", rounds),
        LEVEL,
        {"theta": TENSOR, "x": TENSOR, "level": COUNT},
    ),
    "MFTSNPE.append_simulations": (
        method("append_simulations", rounds),
        LEVEL,
        {"theta": TENSOR, "x": TENSOR, "x_coarse": TENSOR},
    ),
    "MFTSNPE.warm_start": (
        method("warm_start", rounds),
        {},
        {"estimators": (function, "abc", 3, None)},
    ),
}


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(
    "name, argument", [(name, a) for name, (*_, bad) in CALLS.items() for a in bad]
)
def test_wrong_types_are_refused_by_name(name, argument):
    call, good, bad = CALLS[name]
    for value in bad[argument]:
        with pytest.raises((TypeError, ValueError), match=argument) as caught:
            call(**{**good, argument: value})
        assert is_ours(caught.value), f"{argument}={value!r}"


# ---------------------------------------------------- what fits all the same


def some(
    number: float, count: int, numbers: tuple[float, ...], name: str | None = None
): ...


@pytest.mark.parametrize(
    "given",
    [
        dict(number=1, count=np.int64(2), numbers=[1, 2.0]),
        dict(number=np.float32(1.0), count=3, numbers=np.arange(3)),
        dict(number=float("inf"), count=3, numbers=torch.ones(2), name="abc"),
        dict(number=1.0, count=3, numbers=(), unknown=function),
    ],
)
def test_numbers_of_any_kind_are_numbers(given):
    check_types(some, given)


# ------------------------------------------------------------- estimators


BUILDERS = {
    "flow matching": (posterior_flow_nn(), "FlowMatchingEstimator"),
    "score": (posterior_score_nn(), "VEScoreEstimator"),
    "ratio": (classifier_nn("mlp"), "RatioEstimator"),
    "not called": (posterior_nn, "function"),
    "nothing": (lambda theta, x: None, "NoneType"),
    "a plain network": (lambda theta, x: nn.Linear(2, 2), "Linear"),
    "of one argument": (lambda theta: theta, "takes 1 positional argument"),
    "of discrete x": (likelihood_nn("mnle"), "could not build a network"),
}
ONE_MAP = HybridConfig(num_members=2, level_maps=("none",), mix=False)
METHODS = [
    (MLNPE, None),
    (HybridNPE, ONE_MAP),
    (MFNPE, None),
    (MLNLE, None),
    (MFNLE, None),
]


def train(cls, config, density_estimator, num_features=2):
    made = cls(PRIOR, density_estimator=density_estimator, config=config, **QUIET)
    theta, x = torch.rand(2, 30, 2), torch.randn(30, num_features)
    made.append_multilevel_simulations(theta[0], x, level=0)
    made.append_multilevel_simulations(theta[1], x + 0.1, x_coarse=x, level=1)
    made.train(max_num_epochs=1)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("cls, config", METHODS, ids=str)
@pytest.mark.parametrize("name", BUILDERS)
def test_other_estimators_are_refused(cls, config, name):
    density_estimator, message = BUILDERS[name]
    with pytest.raises((TypeError, ValueError), match=message) as caught:
        train(cls, config, density_estimator)
    assert is_ours(caught.value) and "density_estimator" in str(caught.value)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("cls, config", METHODS, ids=str)
def test_estimators_of_the_other_family_are_refused(cls, config):
    build = posterior_nn if cls in (MLNLE, MFNLE) else likelihood_nn
    with pytest.raises(
        ValueError, match="but the (rows|simulations) (are|have)? ?theta of shape"
    ) as caught:
        train(cls, config, build("mdn"), num_features=3)
    assert is_ours(caught.value)
