"""Recipes that would go wrong silently, leak or send something: each must be refused.

`CASES` are (what is tried, a function). A function gets an empty folder to work in and returns None
if flatgd held, else a line that says what broke.
"""

import contextlib
import io
import json
import os
import sys
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any
from unittest.mock import patch

import yaml
from transformers import BlenderbotConfig

from flatgd.cli.main import main
from flatgd.models import trust

Case = Callable[[Path], str | None]
SECRET = "hf_thisIsNoRealToken"
POLICY = "demo:data/diasafety"


def recipe(folder: Path, **settings: Any) -> Path:
    """A recipe that passes `flatgd check`, with `settings` over it."""

    def source(name: str, split: str) -> list[dict[str, Any]]:
        return [{"name": name, "format": "diasafety", "path": POLICY, "split": split}]

    values = {
        "name": "hostile",
        "output": "run",
        "backbone": "demo:backbone",
        "data": {
            "policy": source("policy", "train"),
            "judge": source("judge", "val"),
            "test": source("test", "test"),
        },
        "max_history_tokens": 64,
        "max_reply_tokens": 32,
        "train": {"max_steps": 2, "per_device_train_batch_size": 4},
        **settings,
    }
    path = folder / "recipe.yaml"
    path.write_text(yaml.safe_dump(values))
    return path


def flatgd(*words: str) -> tuple[Any, str]:
    """Exit code and output of the command line, in this process. A traceback is part of the
    output."""
    output = io.StringIO()
    code: Any = 0
    with (
        patch.object(sys, "argv", ["flatgd", *words]),
        contextlib.redirect_stdout(output),
        contextlib.redirect_stderr(output),
    ):
        try:
            main()
        except SystemExit as stopped:
            code = stopped.code
        except Exception as error:  # what a user would see as a traceback
            code = f"Traceback: {type(error).__name__}: {error}"
    return code or 0, output.getvalue()


def refusal_fault(path: Path, expected: str, *words: str) -> str | None:
    """What broke, if `flatgd check` does not refuse the recipe with the expected words."""
    code, output = flatgd("check", str(path), *words)
    if code != 2 or "raceback" in output:  # of Python, or kept in a log file
        return f"expected exit code 2 and a message, got {code}: {output[-200:]}"
    return None if expected in output else f"expected {expected!r}, got {output[-200:]}"


def refused(expected: str, settings: dict[str, Any], folder: Path) -> str | None:
    return refusal_fault(recipe(folder, **settings), expected)


def text_refused(added: str, expected: str, folder: Path) -> str | None:
    path = recipe(folder)
    path.write_text(path.read_text() + added)
    return refusal_fault(path, expected)


def override_refused(override: str, expected: str, folder: Path) -> str | None:
    return refusal_fault(recipe(folder), expected, "--set", override)


def passes(folder: Path) -> str | None:
    """The recipe that all cases change: it must be refused for their sake only."""
    code, output = flatgd("check", str(recipe(folder)))
    return None if code == 0 else f"the plain recipe is refused: {output[-200:]}"


def toxic_model(role: str, mark: str, folder: Path) -> str | None:
    """A folder that is marked as a toxic expert, as a model of the recipe."""
    model = folder / "toxic"
    BlenderbotConfig().save_pretrained(model)
    file = model / mark
    values = json.loads(file.read_text()) if file.exists() else {}
    file.write_text(json.dumps({**values, "flatgd_role": "toxic_expert"}))
    judge = {"judges": [{"kind": "hf", "model": str(model)}]}
    settings = judge if role == "judges" else {role: str(model)}
    return refused("is a toxic expert", settings, folder)


def two_sources(folder: Path) -> str | None:
    """Human and bot turns under one name in the test set."""
    path = recipe(folder)
    values = yaml.safe_load(path.read_text())
    bot = values["data"]["test"][0]
    values["data"]["test"] = [bot, {**bot, "speaker": "human"}]
    path.write_text(yaml.safe_dump(values))
    return refusal_fault(path, "differ in speaker")


def token(key: str, folder: Path) -> str | None:
    """A token in a recipe: refused, not printed, not written."""
    path = recipe(folder)
    for command in ("check", "run"):
        code, output = flatgd(command, str(path), "--set", f"{key}={SECRET}")
        if code != 2 or "holds no token" not in output:
            return f"{command}: not refused: {code}: {output[-200:]}"
        if SECRET in output:
            return f"{command}: the token is printed"
    found = [file for file in folder.rglob("*") if file.is_file() and SECRET in _text(file)]
    return f"the token is in {found[0].name}" if found else None


def _text(path: Path) -> str:
    return path.read_text(errors="replace")


@contextlib.contextmanager
def nothing_allowed() -> Iterator[None]:
    trust.forbid()
    yield
    trust.forbid()


def sends(train: dict[str, Any], folder: Path) -> str | None:
    """A recipe that would send. `run` must refuse it before anything is trained."""
    with nothing_allowed():
        path = recipe(folder, train={"max_steps": 2, **train})
        for command in ("check", "run"):
            code, output = flatgd(command, str(path))
            if code != 2 or "flatgd --allow send" not in output:
                return f"{command}: not refused: {code}: {output[-200:]}"
    trained = list(folder.rglob("*.safetensors"))
    return f"{trained[0]} was trained" if trained else None


def offline_tracker(folder: Path) -> str | None:
    """A tracker that stays on this machine is not refused for sending."""
    with nothing_allowed(), patch.dict(os.environ, {"WANDB_MODE": "offline"}):
        _, output = flatgd("check", str(recipe(folder, train={"report_to": "wandb"})))
    return f"refused for sending: {output[-200:]}" if "sends to the network" in output else None


def expert_upload(folder: Path) -> str | None:
    """push_to_hub for all of `train` would upload the toxic expert, allowed or not."""
    with nothing_allowed():
        trust.allow(trust.Risk.SEND)
        return refused("would upload the toxic expert", {"train": {"push_to_hub": True}}, folder)


TRAIN_VALUES: list[tuple[str, Any]] = [
    ("learning_rate", -1),
    ("learning_rate", float("nan")),
    ("max_steps", 2.5),
    ("max_steps", 0),
    ("max_steps", -2),
    ("num_train_epochs", 0),
    ("num_train_epochs", -1),
    ("per_device_train_batch_size", 1.5),
    ("micro_batch_size", 10**30),
    ("penalty_every", float("nan")),
    ("penalty_fraction", float("inf")),
    ("repel_weight", -3),
    ("attract_weight", -1),
    ("lm_weight", -1),
    ("fsdp_config", True),
    ("log_level", "loud"),
]
OVERRIDES = [
    ("seed=4294967296", "seed"),
    ("seed=2020-01-01", "seed"),
    ("seed=!!int abc", "not a valid int"),
    ("seed=!!python/name:os.system x", "not supported"),
    ("chat_template_kwargs={a: !!set {b}}", "not supported"),
    ("generate.temperature=.nan", "finite"),
    ("data.policy.0.share=[.nan, 1]", "finite"),
    ("data.policy.0.path=~nouser/x", "no home folder"),
    ("backbone=~nouser/x", "no home folder"),
    ("data.policy.0.path=" + "a" * 300, "too long"),
    ("output=" + "a/" * 3000, "too long"),
    ('output="a\\0b"', "NUL"),
    ('turn_separator="\\ud800"', "surrogate"),
    ("methods={flatgd: {lm_weight: 0, attract_weight: 0, repel_weight: -3}}", "repel_weight"),
    ("methods={dexperts: {strength: .inf}}", "strength"),
]

CASES: list[tuple[str, Case]] = [
    ("the plain recipe passes", passes),
    ("a second train: in a recipe", partial(text_refused, "train: {}\n", "duplicate key 'train'")),
    ("a duplicate key deep inside", partial(override_refused, "train={a: 1, a: 2}", "duplicate")),
    ("two test sources of one name, human and bot", two_sources),
    *[
        (f"train.{name}: {value!s:.20}", partial(refused, name, {"train": {name: value}}))
        for name, value in TRAIN_VALUES
    ],
    *[
        (f"--set {override:.40}", partial(override_refused, override, expected))
        for override, expected in OVERRIDES
    ],
    *[
        (f"a toxic expert as {role}, marked in {mark}", partial(toxic_model, role, mark))
        for role in ("backbone", "expert_backbone", "scorer", "judges")
        for mark in ("config.json", "flatgd.json")
    ],
    *[
        (f"a token as {key}", partial(token, key))
        for key in ("train.hub_token", "experts.api_key", "methods.flatgd.wandb_api_key")
    ],
    ("push_to_hub in a recipe", partial(sends, {"push_to_hub": True, "hub_model_id": "a/b"})),
    *[
        (f"report_to: {name} in a recipe", partial(sends, {"report_to": name}))
        for name in ("wandb", "comet_ml", "clearml", "trackio", "neptune")
    ],
    ("an offline tracker works", offline_tracker),
    ("experts are never uploaded", expert_upload),
]
