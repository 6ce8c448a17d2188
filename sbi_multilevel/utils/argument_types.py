"""Checks of argument types against annotations; errors name the argument.

A public function checks its arguments in its first line:

.. code-block:: python

    def allocate(costs: Sequence[float], budget: float) -> tuple[int, ...]:
        check_types(allocate, locals())

Numbers may be those of NumPy, and a sequence may be an array or a tensor; a string is
no sequence, and `True` is no number. Names that are imported for type checkers only
are not checked.
"""

from __future__ import annotations

import contextlib
import functools
import os
import sys
import types
from collections.abc import Callable, Collection, Mapping, Sequence
from numbers import Integral, Real
from typing import Any, Literal, SupportsIndex, Union, get_args, get_origin

import numpy as np
from torch import Tensor

from sbi_multilevel.errors import SbiMultilevelError

_NAMES = {
    int: "an integer",
    SupportsIndex: "an integer",
    float: "a number",
    str: "a string",
    bool: "True or False",
    type(None): "None",
    Tensor: "a `torch.Tensor`",
    os.PathLike: "a path",
    Callable: "a function",
    Mapping: "a dict",
}
_PLURALS = {int: "integers", float: "numbers", str: "strings", Tensor: "tensors"}
_UNIONS = (Union, types.UnionType)
_NUMBERS = {int: Integral, SupportsIndex: Integral, float: Real}
_SEQUENCES = (Sequence, tuple, list)
_MAX_ELEMENTS = 1_000  # of a sequence that are checked


class WrongType(SbiMultilevelError, TypeError, ValueError):
    """An argument of another type; also a `ValueError`, as for other bad arguments."""


def check_types(
    function: Callable, given: Mapping[str, Any], but: Collection[str] = ()
) -> None:
    """Raise unless arguments are of the annotated types.

    Args:
        function: The function.
        given: Its arguments by name; other names are ignored.
        but: Arguments that the function checks itself.

    Raises:
        WrongType: If one is not; names it and what was expected.
    """
    hints = _annotations(function).items()
    _check({name: hint for name, hint in hints if name not in but}, given)


def check_field_types(instance: Any) -> None:
    """As `check_types`, for the fields of a dataclass, in its `__post_init__`."""
    hints: dict[str, Any] = {}
    for base in reversed(type(instance).__mro__):
        hints |= _annotations(base)
    _check(hints, vars(instance))


def _check(hints: Mapping[str, Any], given: Mapping[str, Any]) -> None:
    for name, wanted in hints.items():
        if name in given and not _fits(given[name], wanted):
            raise WrongType(
                f"{name} must be {_described(wanted)}, but is {_shown(given[name])}."
            )


@functools.cache
def _annotations(owner: Any) -> dict[str, Any]:
    """The annotations of a function, or of a class itself, that can be evaluated."""
    if isinstance(owner, type):
        hints = vars(owner).get("__annotations__", {})
        namespace = vars(sys.modules[owner.__module__])
    else:
        hints, namespace = owner.__annotations__, owner.__globals__
    found = {}
    for name, hint in hints.items():
        with contextlib.suppress(NameError):
            found[name] = eval(hint, namespace) if isinstance(hint, str) else hint
    return found


def _fits(value: Any, wanted: Any) -> bool:
    """Whether a value is of a type; true of types that are not known here."""
    origin, inner = get_origin(wanted), get_args(wanted)
    if origin in _UNIONS:
        return any(_fits(value, each) for each in inner)
    if origin is Literal:  # the function itself checks which strings
        return isinstance(value, str) or (value is None and None in inner)
    if wanted in _NUMBERS:
        return isinstance(value, _NUMBERS[wanted]) and not isinstance(value, bool)
    if origin in (Callable, Mapping):
        return isinstance(value, origin)
    if origin in _SEQUENCES:
        return _is_sequence(value, [each for each in inner if each is not Ellipsis])
    is_known = isinstance(wanted, type) and wanted is not Any
    if not is_known or getattr(wanted, "_is_protocol", False):
        return True
    return isinstance(value, wanted)


def _is_sequence(value: Any, inner: list) -> bool:
    if isinstance(value, (str, bytes, Mapping)) or not hasattr(value, "__getitem__"):
        return False
    try:
        length = len(value)
    except TypeError:  # also of an array without dimensions
        return False
    if isinstance(value, (np.ndarray, Tensor)):
        value = value[:_MAX_ELEMENTS].tolist()
    # the length that tuple[float, float] requires is checked by the function
    indices = range(min(length, _MAX_ELEMENTS))
    return all(_fits(value[i], inner[min(i, len(inner) - 1)]) for i in indices)


def _described(wanted: Any) -> str:
    """A type in words."""
    origin, inner = get_origin(wanted), get_args(wanted)
    if origin in _UNIONS:
        return " or ".join(dict.fromkeys(map(_described, inner)))
    if origin is Literal:
        return "one of " + ", ".join(map(repr, inner))
    if origin in _SEQUENCES:
        kind = _PLURALS.get(inner[0])
        return f"a list or tuple of {kind}" if kind else "a list or tuple"
    of_type = f"a `{getattr(wanted, '__name__', wanted)}`"
    return _NAMES.get(origin or wanted, of_type)


def _shown(value: Any) -> str:
    """A value and its type, or the type alone where the value is long."""
    text, kind = repr(value), f"of type {type(value).__name__}"
    return kind if callable(value) or len(text) > 60 else f"{text} {kind}"
