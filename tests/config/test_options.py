"""Options: one sentence each, ranges as data, and what is made from them."""

import importlib.util
from dataclasses import fields
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from training import config

from flatgd.config.options import option_of
from flatgd.errors import UnsupportedError
from flatgd.methods import METHODS, Unlikelihood
from flatgd.training import FlatGDConfig

SCRIPT = Path(__file__).parents[2] / "scripts/options.py"


@pytest.fixture(scope="module")
def script() -> ModuleType:
    spec = importlib.util.spec_from_file_location("options_script", SCRIPT)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_what_is_written_from_the_options_is_up_to_date(script: ModuleType) -> None:
    for path, text in script.written().items():
        assert path.read_text() == text, f"{path} is out of date; run python scripts/options.py"


def test_every_option_has_a_sentence(script: ModuleType) -> None:
    described = {f"train.{f.name}": f for f in fields(FlatGDConfig) if "help" in f.metadata}
    inherited = {f.name for f in fields(FlatGDConfig.__mro__[1])}
    own = {f.name for f in fields(FlatGDConfig)} - inherited
    assert {f"train.{name}" for name in own} <= described.keys()
    described = {name: f for name, f in described.items() if "option" in f.metadata}
    for section in script.SECTIONS:
        described |= {f"{section}.{n}": f for n, f in script.fields_of(section).items()}
    for name, kind in METHODS.items():
        described |= {f"{name}.{option}": field for option, field in kind.options().items()}
    for name, field in described.items():
        sentence = option_of(field).summary
        assert sentence[:1], name
        assert sentence.endswith("."), name


@pytest.mark.parametrize(
    ("fields", "told"),
    [
        ({"penalty_fraction": 0}, "penalty_fraction must be a number, 0 < x <= 1, got 0"),
        (
            {"penalty_fraction": float("nan")},
            "penalty_fraction must be a number, 0 < x <= 1, got nan",
        ),
        ({"penalty_momentum": 1.0}, "penalty_momentum must be a number, 0 <= x < 1, got 1.0"),
        ({"penalty_every": float("nan")}, "penalty_every must be a whole number >= 1, got nan"),
        ({"penalty_every": True}, "penalty_every must be a whole number >= 1, got True"),
        ({"penalise": "all"}, "penalise must be one of safety_loss, objective, got 'all'"),
        ({"lora_rank": 1.5}, "lora_rank must be a whole number >= 0, got 1.5"),
        ({"rho": 0}, "rho must be a number > 0, got 0"),
        ({"penalty_squared": "no"}, "penalty_squared must be true or false, got 'no'"),
        ({"learning_rate": -1}, "learning_rate must be a number >= 0, got -1"),
        ({"learning_rate": float("inf")}, "learning_rate must be a number >= 0, got inf"),
        ({"max_steps": 2.5}, "max_steps must be a whole number >= 1, got 2.5"),
        ({"max_steps": 0}, "max_steps must be a whole number >= 1, got 0"),
        ({"max_steps": -2}, "max_steps must be a whole number >= 1, got -2"),
        ({"num_train_epochs": 0}, "num_train_epochs must be a number > 0, got 0"),
        ({"num_train_epochs": -1}, "num_train_epochs must be a number > 0, got -1"),
        ({"per_device_train_batch_size": 1.5}, "must be a whole number >= 1, got 1.5"),
        ({"seed": 2**32}, "seed must be a whole number, 0 <= x <= 2^32 - 1, got 4294967296"),
        ({"adam_beta1": 1}, "adam_beta1 must be a number, 0 <= x < 1, got 1"),
        ({"bf16": "yes"}, "bf16 must be true or false, got 'yes'"),
        ({"repel_weight": -3}, "repel_weight must be a number >= 0, got -3"),
    ],
)
def test_a_value_out_of_range_is_refused(tmp_path: Path, fields: dict[str, Any], told: str) -> None:
    with pytest.raises(UnsupportedError) as raised:
        config(tmp_path, **fields)
    assert told in str(raised.value)


def test_what_stands_for_not_set_is_taken(tmp_path: Path) -> None:
    assert config(tmp_path, max_steps=-1).max_steps == -1
    assert config(tmp_path, rho=None).rho is None


def test_a_method_refuses_its_options_in_python_too() -> None:
    with pytest.raises(UnsupportedError, match="weight must be a number >= 0, got -1"):
        Unlikelihood(weight=-1)


def test_the_ranges_of_a_recipe_are_in_its_schema() -> None:
    from flatgd.config.recipe import Recipe

    schema = Recipe.model_json_schema()
    reply = schema["properties"]["max_reply_tokens"]
    assert (reply["minimum"], reply["unit"]) == (4, "tokens")
    assert reply["description"].startswith("Tokens of a reply")
