"""States on disk: tensors and plain values, a file replaced as a whole."""

from __future__ import annotations

import ast
import contextlib
import os
import warnings
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from sbi_multilevel.data.simulations import Target
from sbi_multilevel.training.network import Builder, WarmStart, start_from
from sbi_multilevel.utils.files import expect, read_state, understood
from sbi_multilevel.utils.seeds import seeded

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


def read(path: str | os.PathLike, kinds: Mapping[str, Any]) -> dict[str, Any]:
    """The content of a file; nothing is unpickled but tensors and plain values.

    Args:
        path: The file.
        kinds: The entries that it must have, and their types.

    Raises:
        ValueError: If the file holds something else; names what is wrong with it.
        OSError: If it cannot be read.
    """
    with explained(path):
        content = read_state(path)
        expect(isinstance(content, dict), f"it holds a {type(content).__name__}")
        for name, kind in kinds.items():
            found = type(content.get(name, ...))  # `None` may be right
            expect(issubclass(found, kind), f"{name} is missing, or a {found.__name__}")
        return content


def explained(path: str | os.PathLike) -> contextlib.AbstractContextManager[None]:
    """Explain errors of reading a state, by `sbi_multilevel.utils.files`."""
    return understood(
        "path",
        path,
        "the state of a run",
        "Pass a file that `save` wrote, or another path to start from scratch.",
    )


def check_settings(
    content: Mapping[str, Any], ours: Mapping[str, Any], path: str | os.PathLike
) -> None:
    """Raise unless the content of a file is of a run with our settings.

    Raises:
        ValueError: If they differ; names the settings that do.
    """
    with explained(path):
        saved = _of_this_version(content["settings"])
    differing = [
        f"{name} was {saved.get(name)}, is {value}"
        for name, value in ours.items()
        if not _same(saved.get(name), value)
    ]
    if differing:
        raise ValueError(
            f"path={str(path)!r} holds a run with other settings: "
            f"{'; '.join(differing)}. Use the same settings to resume it, or another "
            "path to start from scratch."
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
    config = with_sorted_fields(config, missing)
    return {**_EARLIER, **renamed, "config": config}


def with_sorted_fields(text: str, missing: Mapping[str, Any] | None = None) -> str:
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


def network_from(
    source: WarmStart, build: Builder, target: Target, prior: Any, x_o: Tensor
) -> Any:
    """A network from another, or from weights that fit what `build` returns."""
    with seeded(0), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of random x, which only has the shape
        theta = prior.sample((100,))
        x = x_o + torch.randn(100, *x_o.shape[1:])
        return start_from(source, build, target, theta, x)
