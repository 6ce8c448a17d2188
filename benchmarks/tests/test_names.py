"""Options of tasks and methods, on the command line and in records."""

import pytest
import torch

from sbi_multilevel_benchmarks.__main__ import main
from sbi_multilevel_benchmarks.registry import (
    METHODS,
    get_method,
    get_task,
    split_name,
)
from sbi_multilevel_benchmarks.run import Run


def test_options_are_numbers_flags_or_text():
    name = "l5pc:current=appendix-f,num_observations=5"
    assert split_name(name) == (
        "l5pc",
        {"current": "appendix-f", "num_observations": 5},
    )
    assert split_name("a:b=0.5,c=True") == ("a", {"b": 0.5, "c": True})
    assert split_name("sir") == ("sir", {})


@pytest.mark.parametrize("name", ["blob:", "blob:size", "blob:size=", "blob:=3"])
def test_an_option_needs_a_name_and_a_value(name):
    with pytest.raises(ValueError, match="OPTION=VALUE"):
        split_name(name)


def test_options_of_tasks():
    task = get_task("blob:size=16")
    assert task.observations.shape[1:] == (16, 16)
    assert task.name == "blob:size=16"
    named, same = get_task("ou2-delta:delta=0.1"), get_task("ou2-delta0.1")
    (low, _), (expected, _) = (t.simulate((10, 2), 0) for t in (named, same))
    assert torch.equal(low.x, expected.x)


def test_options_of_methods():
    method = get_method("mf-tsnpe:epsilon=1e-4,num_rounds=2")
    assert (method.epsilon, method.num_rounds) == (1e-4, 2)
    assert METHODS["mf-tsnpe"].epsilon == 1e-6
    assert get_method("high") is METHODS["high"]


@pytest.mark.parametrize("name", ["blob:width=3", "sir:size=3"])
def test_an_unknown_option_of_a_task_is_named(name):
    with pytest.raises(ValueError, match=r"has options \['(width|size)'\]"):
        get_task(name)


@pytest.mark.parametrize("name", ["mf-tsnpe:gamma=1", "high:epsilon=1"])
def test_an_unknown_option_of_a_method_is_named(name):
    with pytest.raises(ValueError, match=r"has options \['(gamma|epsilon)'\]"):
        get_method(name)


def test_an_unknown_method_is_answered_with_the_known_ones():
    with pytest.raises(ValueError, match="'mf-tsnpe'"):
        get_method("none:a=1")


def test_options_are_part_of_the_identity_of_a_run():
    run = Run("ou2-delta:delta=0.3", "mf:num_members=2", (200, 20), 0)
    assert run.identity["task"] == "ou2-delta:delta=0.3"
    assert run.identity["method"] == "mf:num_members=2"


def test_the_command_line_takes_options(capsys):
    arguments = "ou2-delta:delta=0.3 --methods high --num-simulations 20,20 --seeds 1"
    main([*arguments.split(), "--observations", "2"])
    assert "| ou2-delta:delta=0.3" in capsys.readouterr().out


def test_the_command_line_answers_an_unknown_name_with_the_known_ones(capsys):
    with pytest.raises(SystemExit):
        main(["ou2", "--methods", "no-method:a=1"])
    assert "'no-method:a=1' is none of" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        main(["ou2:"])
    assert "OPTION=VALUE" in capsys.readouterr().err
