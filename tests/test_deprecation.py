"""Deprecated names and arguments work, warn, and are removed in time."""

import pickle
import sys
import types
import warnings
from collections import OrderedDict

import pytest

import sbi_multilevel
from sbi_multilevel import deprecation
from sbi_multilevel.deprecation import deprecated_argument, deprecated_name, removal
from sbi_multilevel.errors import SbiMultilevelError


@pytest.fixture(autouse=True)
def announced(monkeypatch):
    """What tests deprecate is forgotten afterwards."""
    monkeypatch.setattr(deprecation, "ANNOUNCED", {})
    return deprecation.ANNOUNCED


def draw(num_simulations, seed=0):
    """Draw."""
    return num_simulations, seed


@pytest.fixture
def renamed():
    return deprecated_argument("num_rows", since="0.2", new="num_simulations")(draw)


@pytest.fixture
def module(monkeypatch):
    """A module of which `Ordered` is now `collections.OrderedDict`."""
    module = types.ModuleType("somewhere")
    moved = {"Ordered": "collections.OrderedDict"}
    module.__getattr__ = deprecated_name("somewhere", moved, since="0.2")
    monkeypatch.setitem(sys.modules, "somewhere", module)
    return module


def as_numbers(version):
    return tuple(int(part) for part in version.split(".")[:2])


# before the fixture above hides it
WHAT_THE_PACKAGE_ANNOUNCES = dict(deprecation.ANNOUNCED)


def test_nothing_is_overdue():
    now = as_numbers(sbi_multilevel.__version__)
    overdue = {
        what: version
        for what, version in WHAT_THE_PACKAGE_ANNOUNCES.items()
        if as_numbers(version) <= now
    }
    assert not overdue


@pytest.mark.parametrize(
    "since, version", [("0.2", "0.4"), ("0.9.3", "0.11"), ("1.0.0", "1.2")]
)
def test_removal_is_two_minor_releases_later(since, version):
    assert removal(since) == version


def test_the_earlier_argument_works_and_warns(renamed, announced):
    with pytest.warns(FutureWarning, match="removed in 0.4.*`num_simulations`") as said:
        assert renamed(num_rows=3, seed=1) == (3, 1)
    assert said[0].filename == __file__  # the line of the caller
    assert list(announced.values()) == ["0.4"]


def test_the_new_argument_does_not_warn(renamed):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert renamed(3) == renamed(num_simulations=3) == (3, 0)
    assert renamed.__doc__ == "Draw."


def test_both_arguments_are_refused(renamed):
    with pytest.raises(TypeError, match="Give only `num_simulations`"):
        renamed(num_rows=3, num_simulations=3)


def test_the_earlier_name_is_the_new_object(module, announced):
    with pytest.warns(FutureWarning, match="`somewhere.Ordered` .* removed in 0.4"):
        assert module.Ordered is OrderedDict
    with pytest.warns(FutureWarning) as said:
        from somewhere import Ordered
    assert Ordered is OrderedDict
    assert said[0].filename == __file__
    assert announced == {"`somewhere.Ordered`": "0.4"}


def test_other_names_are_missing_as_ever(module):
    with pytest.raises(AttributeError, match="'somewhere' has no attribute 'absent'"):
        module.absent  # noqa: B018
    assert not hasattr(module, "__path__")


def test_a_pickle_that_has_the_earlier_name_can_be_read(module):
    with pytest.warns(FutureWarning):
        assert pickle.loads(b"csomewhere\nOrdered\n.") is OrderedDict


def test_the_category_can_be_chosen():
    function = deprecated_argument(
        "rows", since="0.2", new="seed", category=DeprecationWarning
    )(draw)
    with pytest.warns(DeprecationWarning):
        assert function(1, rows=2) == (1, 2)


class NoPairs(SbiMultilevelError, ValueError):
    """As errors of this package are declared."""


def test_an_error_is_of_the_root_and_of_a_built_in_and_can_be_pickled():
    error = pickle.loads(pickle.dumps(NoPairs("level=1 has no pairs.")))
    assert isinstance(error, SbiMultilevelError) and isinstance(error, ValueError)
    assert str(error) == "level=1 has no pairs."
