"""The whole job for every family: train, generate, score, go on after a cut.

`pytest tests/test_families.py -v` prints the table, a line a family and part.
"""

import json
from pathlib import Path

import pytest
import torch
from families import DECODER, FAMILIES, chatml_tokenizer, save_family
from small_recipe import run_recipe, write_recipe
from transformers import (
    AutoModelForCausalLM,
    AutoModelForSeq2SeqLM,
    AutoTokenizer,
    Qwen2Config,
    Qwen2ForCausalLM,
    pipeline,
)

from flatgd.config.loading import load_recipe
from flatgd.errors import RecipeError
from flatgd.io.records import read_jsonl
from flatgd.models.dialogue_format import ENCODER_DECODER
from flatgd.models.loading import load_tokenizer
from flatgd.pipeline.pipeline import Pipeline
from flatgd.runtime.callbacks import Advance

pytestmark = pytest.mark.slow

METHODS = ("backbone", "clean_expert", "toxic_expert", "clean", "safety_loss", "flatgd")


@pytest.fixture(scope="module", params=list(FAMILIES))
def job(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run of one family."""
    folder = tmp_path_factory.mktemp(request.param)
    backbone = save_family(request.param, folder / "backbone")
    run_recipe(write_recipe(folder, backbone))
    return folder


def kind(job: Path) -> str:
    return str(json.loads((job / "backbone/config.json").read_text())["model_type"])


def test_train(job: Path) -> None:
    """The checkpoint is another than the backbone, and plain transformers speaks with it."""
    folder = job / "run/methods/flatgd"
    assert list(read_jsonl(folder / "training.jsonl"))[-1]["step"] == 3
    assert (folder / "model.safetensors").read_bytes() != (
        job / "backbone/model.safetensors"
    ).read_bytes()
    tokenizer = AutoTokenizer.from_pretrained(folder)
    if kind(job) not in ENCODER_DECODER:
        talk = pipeline("text-generation", model=str(folder), tokenizer=tokenizer)
        said = talk("hello", max_new_tokens=4, do_sample=False, return_full_text=False)
        assert isinstance(said[0]["generated_text"], str)
        model = AutoModelForCausalLM.from_pretrained(folder)
    else:  # transformers 5 has no pipeline for encoder-decoders
        model = AutoModelForSeq2SeqLM.from_pretrained(folder)
    output = model.generate(**tokenizer("hello", return_tensors="pt"), max_new_tokens=4)
    assert output.shape[0] == 1


def test_generate(job: Path) -> None:
    for name in METHODS:
        rows = list(read_jsonl(job / f"run/generations/{name}.jsonl"))
        assert [len(row["replies"]) for row in rows] == [2, 2, 2]


def test_score(job: Path) -> None:
    summary = json.loads((job / "run/report/summary.json").read_text())
    found = {(row["method"], row["metric"]): row["value"] for row in summary}
    for name in METHODS:
        assert found[name, "perplexity"] > 1
        assert 0 <= found[name, "toxicity_mean"] <= 1
        assert isinstance(found[name, "contrast"], float)


@pytest.mark.parametrize("job", ["blenderbot", "t5", "llama"], indirect=True)
def test_resume(job: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Interrupted in the last step of flatgd, the run resumes with the same result."""
    steps = {"seen": 0}
    on_step_end = Advance.on_step_end

    def cut(self, args, state, control, **kwargs) -> None:
        if "flatgd" in args.output_dir and state.global_step == 3:
            steps["seen"] += 1
            raise KeyboardInterrupt
        on_step_end(self, args, state, control, **kwargs)

    monkeypatch.setattr(Advance, "on_step_end", cut)
    with pytest.raises(KeyboardInterrupt):
        run_recipe(job / "recipe.yaml", "output=again")
    assert steps["seen"] == 1
    monkeypatch.undo()
    told = run_recipe(job / "recipe.yaml", "output=again")
    assert "from checkpoint checkpoint-2" in told
    one, other = (job / f"{name}/report/summary.json" for name in ("run", "again"))
    assert one.read_bytes() == other.read_bytes()


# Experts of another size


def sized(folder: Path, width: int, padding: int, tokens: tuple[str, ...] = ()) -> Path:
    """A Qwen2 of some width whose vocabulary is padded to some size."""
    tokenizer = chatml_tokenizer()
    tokenizer.add_tokens(list(tokens))
    torch.manual_seed(width)
    shape = DECODER | {"hidden_size": width}
    Qwen2ForCausalLM(Qwen2Config(vocab_size=len(tokenizer) + padding, **shape)).save_pretrained(
        folder
    )
    tokenizer.save_pretrained(folder)
    return folder


@pytest.mark.parametrize(("width", "padding"), [(8, 3), (24, 9)])
def test_experts_of_another_size(tmp_path: Path, width: int, padding: int) -> None:
    """Smaller or larger, and padded to another vocabulary than the policy."""
    policy = sized(tmp_path / "policy", 16, 5)
    expert = sized(tmp_path / "expert", width, padding)
    run_recipe(write_recipe(tmp_path, policy, f"expert_backbone: {expert}\n"))
    config = json.loads((tmp_path / "run/experts/clean/config.json").read_text())
    assert config["hidden_size"] == width
    config = json.loads((tmp_path / "run/methods/flatgd/config.json").read_text())
    assert config["hidden_size"] == 16
    for step in read_jsonl(tmp_path / "run/methods/flatgd/training.jsonl"):
        assert 0 < step["js_clean"] < 1


def test_experts_of_another_token_map_are_refused_before_weights_load(tmp_path: Path) -> None:
    policy = sized(tmp_path / "policy", 16, 5)
    expert = sized(tmp_path / "expert", 16, 4, ("goose",))
    (expert / "model.safetensors").unlink()
    recipe = load_recipe(write_recipe(tmp_path, policy, f"expert_backbone: {expert}\n"))
    with pytest.raises(RecipeError, match="do not share one token map: token 'goose'"):
        Pipeline(recipe)


def test_experts_of_another_family_are_refused(tmp_path: Path) -> None:
    policy = sized(tmp_path / "policy", 16, 0)
    expert = save_family("gpt2", tmp_path / "expert")
    chatml_tokenizer().save_pretrained(expert)
    load_tokenizer(str(expert)).save_pretrained(expert)
    (expert / "chat_template.jinja").unlink()
    recipe = load_recipe(write_recipe(tmp_path, policy, f"expert_backbone: {expert}\n"))
    with pytest.raises(RecipeError, match="lays out a dialogue in another way"):
        Pipeline(recipe)
