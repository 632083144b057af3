"""Files made to run something when they are read: refused in a sentence, and nothing runs.

Each holds code that makes a file named `ran`; the tests look for it.
"""

import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import byte_tokenizer, tiny_blenderbot
from jinja2.exceptions import SecurityError
from peft import LoraConfig, get_peft_model
from training import trainer

from flatgd.cli.main import main
from flatgd.config.judge import JudgeSettings
from flatgd.config.loading import load_recipe
from flatgd.errors import CheckpointError, ModelError, RecipeError
from flatgd.judges.classifier import render
from flatgd.models import adapters, trust
from flatgd.models.loading import load_model, load_tokenizer
from flatgd.models.trust import Risk
from flatgd.pipeline.loader import load_validated
from flatgd.training.checkpoints import MANIFEST, fault_of, seal
from flatgd.training.expert_cache import INDEX, ExpertStates


class Attack:
    """Makes `ran` when it is unpickled."""

    def __init__(self, ran: Path):
        self.ran = ran

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mknod, (str(self.ran),)


@pytest.fixture
def ran(tmp_path: Path) -> Iterator[Path]:
    yield tmp_path / "ran"
    trust.forbid()
    assert not (tmp_path / "ran").exists()


@pytest.fixture
def model(tmp_path: Path) -> Path:
    folder = tmp_path / "model"
    tiny_blenderbot().save_pretrained(folder)
    byte_tokenizer().save_pretrained(folder)
    return folder


def in_place_of_weights(folder: Path, name: str, content: Any) -> None:
    (folder / f"{name}.safetensors").unlink()
    torch.save(content, folder / {"model": "pytorch_model.bin"}.get(name, f"{name}.bin"))


def test_the_attack_works(tmp_path: Path) -> None:
    """Else the tests below could not fail."""
    torch.save({"x": Attack(tmp_path / "ran")}, tmp_path / "x.bin")
    torch.load(tmp_path / "x.bin", weights_only=False)
    assert (tmp_path / "ran").exists()


def test_weights_that_run_code(model: Path, ran: Path) -> None:
    in_place_of_weights(model, "model", {"x": Attack(ran)})
    with pytest.raises(
        ModelError, match=r"no safetensors file; if you trust it, run flatgd --allow pickle"
    ):
        load_model(model)
    trust.allow(Risk.PICKLE)
    with pytest.raises(ModelError, match="Weights only load failed"):
        load_model(model)


def test_weights_allowed_are_told(
    model: Path, ran: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    whole = load_model(model).state_dict()
    in_place_of_weights(model, "model", whole)
    trust.allow(Risk.PICKLE)
    for _ in range(2):
        loaded = load_model(model)
    assert all(torch.equal(whole[k], v) for k, v in loaded.state_dict().items())
    assert capsys.readouterr().err.count(f"flatgd: {model}: pickle is allowed\n") == 1


def test_an_adapter_that_runs_code(model: Path, tmp_path: Path, ran: Path) -> None:
    adapted = get_peft_model(load_model(model), LoraConfig(target_modules=["q_proj"]))
    adapted.save_pretrained(str(tmp_path / "adapter"), save_embedding_layers=False)
    adapters.load(tmp_path / "adapter")
    in_place_of_weights(tmp_path / "adapter", "adapter_model", {"x": Attack(ran)})
    with pytest.raises(ModelError, match=r"its adapter is not safetensors; if you trust it"):
        adapters.load(tmp_path / "adapter")
    trust.allow(Risk.PICKLE)
    with pytest.raises(ModelError, match="cannot load the adapter"):
        adapters.load(tmp_path / "adapter")
    (tmp_path / "adapter/adapter_model.bin").unlink()
    with pytest.raises(ModelError, match="an adapter's configuration but no weights"):
        adapters.load(tmp_path / "adapter")


def test_an_adapter_that_names_further_files(model: Path, tmp_path: Path, ran: Path) -> None:
    folder = tmp_path / "adapter"
    get_peft_model(load_model(model), LoraConfig(target_modules=["q_proj"])).save_pretrained(
        str(folder), save_embedding_layers=False
    )
    config = json.loads((folder / "adapter_config.json").read_text())
    config |= {"peft_type": "XLORA", "adapters": {"one": str(tmp_path / "elsewhere")}}
    (folder / "adapter_config.json").write_text(json.dumps(config))
    with pytest.raises(ModelError, match="of type 'XLORA'; only LORA can be loaded"):
        adapters.load(folder)


def test_what_is_allowed_and_broken_is_told(model: Path, ran: Path) -> None:
    (model / "model.safetensors").unlink()
    with pytest.raises(ModelError, match=r"cannot load .*no file named"):
        load_model(model)  # nothing there that --allow would help with
    trust.allow(Risk.PICKLE, Risk.REMOTE_CODE)
    for content in (b"", b"garbage"):
        (model / "pytorch_model.bin").write_bytes(content)
        with pytest.raises(ModelError, match="cannot load"):
            load_model(model)
    with_code(model, ran)
    (model / "own.py").write_text("import nothing_of_that_name")
    with pytest.raises(ModelError, match=r"the code of its repository failed|nothing_of_that_name"):
        load_model(model)


REMOTE = """
import os
from transformers import PretrainedConfig
os.mknod({ran!r})
class Own(PretrainedConfig):
    model_type = "own"
"""


def with_code(model: Path, ran: Path) -> None:
    (model / "own.py").write_text(REMOTE.format(ran=str(ran)))
    config = json.loads((model / "config.json").read_text())
    config |= {"model_type": "own", "auto_map": {"AutoConfig": "own.Own"}}
    (model / "config.json").write_text(json.dumps(config))


def test_code_beside_the_weights(model: Path, ran: Path) -> None:
    with_code(model, ran)
    told = "needs code from its repository; if you trust it, run flatgd --allow remote-code"
    with pytest.raises(ModelError, match=told):
        load_model(model)
    tokenizer = json.loads((model / "tokenizer_config.json").read_text())
    tokenizer |= {"auto_map": {"AutoTokenizer": ["own.Own", None]}, "tokenizer_class": "Own"}
    (model / "tokenizer_config.json").write_text(json.dumps(tokenizer))
    with pytest.raises(ModelError, match=told):
        load_tokenizer(str(model))


def test_code_that_is_allowed_is_told(
    model: Path, recipe_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    """By the command line; a recipe has no such key."""
    monkeypatch.setenv("HF_MODULES_CACHE", str(tmp_path / "modules"))
    monkeypatch.setattr(
        "transformers.dynamic_module_utils.HF_MODULES_CACHE", str(tmp_path / "modules")
    )
    with_code(model, tmp_path / "ran")
    words = ["flatgd", "--allow", "remote-code", "check", str(recipe_file)]
    monkeypatch.setattr("sys.argv", [*words, "--set", f"backbone={model}"])
    try:
        with pytest.raises(SystemExit):
            main()
    finally:
        trust.forbid()
    assert f"flatgd: {model}: remote-code is allowed" in capsys.readouterr().err
    assert (tmp_path / "ran").exists()


@pytest.mark.parametrize("name", ["optimizer.pt", "scheduler.pt", "rng_state.pth"])
def test_a_checkpoint_that_runs_code(tmp_path: Path, ran: Path, name: str) -> None:
    """Its manifest made to agree, as whoever puts it there would."""
    each = {"save_strategy": "steps", "save_steps": 1, "max_steps": 2}
    trainer(tmp_path / "run", **each).train()
    folder = tmp_path / "run/checkpoint-2"
    torch.save({"x": Attack(ran)}, folder / name)
    manifest = folder / MANIFEST
    fingerprint = json.loads(manifest.read_text())["fingerprint"]
    manifest.unlink()
    seal(folder, fingerprint)
    assert fault_of(folder) is None
    with pytest.raises(CheckpointError, match="Weights only load failed"):
        trainer(tmp_path / "run", **each | {"max_steps": 3}).train(resume_from_checkpoint=True)


def test_expert_states_hold_no_objects(tmp_path: Path, ran: Path) -> None:
    np.save(tmp_path / "shard-00000.npy", np.array([Attack(ran)], dtype=object), allow_pickle=True)
    (tmp_path / INDEX).write_text(json.dumps({"held": [0], "tokens": [1]}))
    with pytest.raises(ValueError, match="Python objects"):
        ExpertStates(tmp_path)


@pytest.mark.parametrize(
    "line",
    [
        "name: !!python/object/apply:os.mknod [{ran}]",
        "name: !!python/object/new:os.mknod [{ran}]",
        "name: !!python/name:os.mknod",
        "? !!python/object/apply:os.mknod [{ran}]\n: x",
    ],
)
def test_a_recipe_that_runs_code(recipe_file: Path, ran: Path, line: str) -> None:
    text = recipe_file.read_text().replace("name: tiny", line.format(ran=ran))
    recipe_file.write_text(text)
    with pytest.raises(RecipeError, match="python"):
        load_recipe(recipe_file)
    with pytest.raises(RecipeError):
        load_recipe(recipe_file, [f"name=!!python/object/apply:os.mknod [{ran}]"])


def test_a_recipe_that_grows(recipe_file: Path) -> None:
    """Each line ten times the one before: a few hundred bytes stand for 10^9 values."""
    lines = ["train:", "  a0: &a0 [1, 1, 1, 1, 1, 1, 1, 1, 1, 1]"]
    lines += [f"  a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 10)}]" for n in range(1, 9)]
    text = recipe_file.read_text()
    recipe_file.write_text(text[: text.index("train:")] + "\n".join(lines) + "\n")
    with pytest.raises(RecipeError, match="more than 10,000 values"):
        load_recipe(recipe_file)
    lines = ["train:", "  a0: &a0 {x0: 1, x1: 1, x2: 1, x3: 1, x4: 1, x5: 1, x6: 1, x7: 1}"]
    lines += [f"  a{n}: &a{n} {{<<: [{', '.join([f'*a{n - 1}'] * 10)}]}}" for n in range(1, 12)]
    recipe_file.write_text(text[: text.index("train:")] + "\n".join(lines) + "\n")
    with pytest.raises(RecipeError, match="more than 10,000 values"):
        load_recipe(recipe_file)
    recipe_file.write_text(text)
    with pytest.raises(RecipeError, match="more than 10,000 values"):
        load_recipe(recipe_file, ["train=&a [*a]"])
    recipe_file.write_text(text.replace("train: {", "train: " + "[" * 3000))
    with pytest.raises(RecipeError, match="nested too deep"):
        load_recipe(recipe_file)
    recipe_file.write_text(text.replace("train: {", "train: &a {again: *a, "))
    with pytest.raises(RecipeError, match="more than 10,000 values"):
        load_recipe(recipe_file)


def test_names_that_lead_elsewhere(recipe_file: Path, tmp_path: Path) -> None:
    for name in ("../../out", "/out", ".", "..", "a/b", "a\\b", "-rf"):
        with pytest.raises(RecipeError, match="letters, digits"):
            load_validated(
                load_recipe(recipe_file, [f"methods={json.dumps({name: {'kind': 'clean'}})}"])
            )


def test_text_is_not_a_template(tmp_path: Path) -> None:
    """What stands in data or a model's name is shown, not evaluated."""
    attack = "{{ 7 * 7 }} {history} {reply} {0.__class__} %s ${x} <script>"
    settings = JudgeSettings(kind="hf", model="a/b", template="{history} | {reply}")
    assert attack in render(settings, [attack], attack)


def test_a_chat_template_reaches_nothing(ran: Path) -> None:
    tokenizer = byte_tokenizer()
    reach = "{{ ''.__class__.__mro__[1].__subclasses__() }}"
    tokenizer.chat_template = reach
    with pytest.raises(SecurityError):
        tokenizer.apply_chat_template([{"role": "user", "content": "hi"}], tokenize=False)


def test_a_file_name_is_not_a_command(recipe_file: Path, ran: Path) -> None:
    path = f"$(touch {ran.name}).jsonl; touch {ran.name}"
    recipe = load_recipe(recipe_file, [f"data.policy.0.path={json.dumps(path)}"])
    with pytest.raises(RecipeError, match="no such file"):
        load_validated(recipe)
