"""A model trained elsewhere as a row: answered, judged and scored as it is; and how far from the
backbone every model is."""

import importlib.util
import json
from io import StringIO
from pathlib import Path

import pytest
import torch
from conftest import byte_tokenizer, mild_rows, tiny_blenderbot, tiny_llama, write_rows
from peft import LoraConfig, get_peft_model
from rich.console import Console
from typer.testing import CliRunner

from flatgd.artifacts.reader import scores_of
from flatgd.chat.models import load_chat_models
from flatgd.cli.main import app
from flatgd.config.loading import load_recipe
from flatgd.dialogue import Dialogue, before
from flatgd.errors import RecipeError, UnsupportedError
from flatgd.io.records import read_jsonl
from flatgd.models.dialogue_format import format_for
from flatgd.models.likelihood import kl_to
from flatgd.models.loading import load_model
from flatgd.pipeline.loader import load_validated
from flatgd.pipeline.pipeline import Pipeline
from flatgd.publish.hub import ModelPackage
from flatgd.run import run
from flatgd.runtime.display import Display

METHODS = "methods={clean: {}, theirs: {checkpoint: theirs}, same: {checkpoint: BACKBONE}}"


@pytest.fixture
def finished(recipe_file: Path, backbone_folder: Path) -> Pipeline:
    folder = recipe_file.parent
    tiny_blenderbot(seed=5).save_pretrained(folder / "theirs")
    byte_tokenizer().save_pretrained(folder / "theirs")
    ordinary = [{k: v for k, v in row.items() if k != "label"} for row in mild_rows(8, 4)]
    write_rows(folder / "ordinary.jsonl", ordinary)
    test = (
        "data.test=[{name: test, format: jsonl, path: test.jsonl}, "
        "{name: ordinary, format: jsonl, path: ordinary.jsonl, label: none}]"
    )
    methods = METHODS.replace("BACKBONE", str(backbone_folder))
    recipe = load_recipe(recipe_file, [methods, test])
    run(recipe)
    return Pipeline(recipe)


def test_a_checkpoint_is_compared_as_it_is(finished: Pipeline, recipe_file: Path) -> None:
    root = finished.context.root
    assert [p.name for p in (root / "methods/theirs").iterdir()] == ["flatgd.json"]
    scores = scores_of(root, ["backbone", "theirs", "same"])
    given = {n: [r for r in rows if r["kind"] == "labelled"] for n, rows in scores.items()}
    assert given["same"] == given["backbone"] != given["theirs"]
    summary = json.loads((root / "report/summary.json").read_text())
    assert {r["method"] for r in summary} >= {"theirs", "theirs - clean"}
    plan = finished.context.plan
    assert plan.fingerprint("same") == plan.fingerprint("backbone") != plan.fingerprint("theirs")
    with pytest.raises(UnsupportedError, match="which flatgd did not train"):
        ModelPackage(finished.context.recipe, "theirs", "someone/model")
    assert "theirs" in load_chat_models([str(root / "methods/theirs")]).models


def test_how_far_each_model_is_from_the_backbone(finished: Pipeline) -> None:
    models = ["backbone", "clean", "theirs", "same"]
    scores = scores_of(finished.context.root, models)
    rows = {n: [r for r in part if r["kind"] == "drift"] for n, part in scores.items()}
    assert [r["kl"] for r in rows["same"]] == [0.0] * 6 == [r["kl"] for r in rows["backbone"]]
    kl = {n: sum(r["kl"] for r in p) / sum(r["tokens"] for r in p) for n, p in rows.items()}
    assert kl["theirs"] > kl["clean"] > 0
    summary = json.loads((finished.context.root / "report/summary.json").read_text())
    told = {r["method"]: r["value"] for r in summary if r["metric"] == "kl_backbone"}
    assert told["theirs"] == pytest.approx(kl["theirs"])
    assert "KL from the backbone" in (finished.context.root / "report/tables.md").read_text()


@pytest.mark.parametrize("make", [tiny_blenderbot, tiny_llama])
def test_kl_against_one_by_one(make: type) -> None:
    one, other = make(seed=1).double().eval(), make(seed=2).double().eval()
    dialogue_format = format_for(one.config, byte_tokenizer())
    texts = ["hello there", "", "a longer reply, of a few words more"]
    dialogues = [
        Dialogue(("hi", f"line {n}"), text, None, "t", "c") for n, text in enumerate(texts)
    ]
    found = kl_to((one, None), (other, None), dialogue_format, dialogues)
    for dialogue, (kl, tokens) in zip(dialogues, found, strict=True):
        batch = dialogue_format.collate([dialogue_format.encode(dialogue)])
        inputs = {
            k: v
            for k, v in batch.items()
            if k in ("input_ids", "attention_mask", "decoder_input_ids")
        }
        with torch.no_grad():
            p, q = (model(**inputs).logits[0].log_softmax(-1) for model in (one, other))
        is_reply = batch["targets"][0] != -100
        each = (p.exp() * (p - q)).sum(-1)[is_reply]
        assert tokens == int(is_reply.sum())
        assert kl == pytest.approx(float(each.sum()), rel=1e-9)


@pytest.mark.parametrize(
    ("entry", "message"),
    [
        ("{checkpoint: ./nowhere}", "methods.theirs: "),
        ("{checkpoint: theirs, method: clean}", "write {checkpoint: FOLDER} alone"),
        ("{checkpoint: theirs, start: clean}", "write {checkpoint: FOLDER} alone"),
        ("{checkpoint: theirs, learning_rate: 1e-3}", "is not trained and has no learning_rate"),
        ("{method: checkpoint}", "write {checkpoint: FOLDER} alone"),
        ("{checkpoint: 5}", "checkpoint"),
    ],
)
def test_what_a_checkpoint_cannot_be(recipe_file: Path, entry: str, message: str) -> None:
    tiny_blenderbot(seed=5).save_pretrained(recipe_file.parent / "theirs")
    byte_tokenizer().save_pretrained(recipe_file.parent / "theirs")
    with pytest.raises(RecipeError, match=message):
        load_validated(load_recipe(recipe_file, [f"methods={{clean: {{}}, theirs: {entry}}}"]))


def test_a_toxic_expert_is_no_checkpoint(recipe_file: Path) -> None:
    model = tiny_blenderbot()
    model.config.flatgd_role = "toxic expert"
    model.save_pretrained(recipe_file.parent / "theirs")
    byte_tokenizer().save_pretrained(recipe_file.parent / "theirs")
    words = ["check", str(recipe_file), "--set", "methods.theirs.checkpoint=theirs"]
    with pytest.raises(RecipeError, match="is a toxic expert, which must not be used"):
        CliRunner().invoke(app, words, catch_exceptions=False)


def test_a_model_with_other_tokens_has_no_distance(finished: Pipeline, recipe_file: Path) -> None:
    folder = recipe_file.parent / "other"
    tiny_blenderbot(seed=6).save_pretrained(folder)
    tokenizer = byte_tokenizer()
    tokenizer.add_tokens(["zzz"])
    tokenizer.save_pretrained(folder)
    methods = {**finished.context.recipe.methods, "other": {"checkpoint": str(folder)}}
    console = Console(record=True, width=200, file=StringIO())
    recipe = finished.context.recipe.model_copy(update={"methods": methods})
    job = Pipeline(recipe, Display(console))
    job.evaluation.score("other")
    assert "no KL divergence: its tokens are not the backbone's" in console.export_text()
    kinds = {row["kind"] for row in scores_of(job.context.root, ["other"])["other"]}
    assert kinds == {"generated", "labelled", "ordinary"}


def test_the_rows_that_kto_gets() -> None:
    path = Path(__file__).parents[2] / "scripts/kto.py"
    spec = importlib.util.spec_from_file_location("kto_script", path)
    script = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(script)
    rows = [
        Dialogue(before(["a", "b", "c", "d"]), "toxic", False, "t", "c"),
        Dialogue((), "no history", True, "t", "c"),
    ]
    assert script.kto_rows(rows, 3) == [
        {
            "prompt": [
                {"role": "user", "content": "b"},
                {"role": "assistant", "content": "c"},
                {"role": "user", "content": "d"},
            ],
            "completion": [{"role": "assistant", "content": "toxic"}],
            "label": False,
        }
    ]


def test_an_adapter_without_a_tokenizer_is_a_checkpoint(
    recipe_file: Path, backbone_folder: Path
) -> None:
    """As peft saves one: the tokenizer is the base's."""
    lora = LoraConfig(r=2, target_modules=["q_proj"])
    adapted = get_peft_model(load_model(str(backbone_folder)), lora)
    adapted.save_pretrained(str(recipe_file.parent / "theirs"))
    recipe = load_recipe(recipe_file, ["methods.theirs.checkpoint=theirs"])
    job = Pipeline(recipe)
    job.evaluation.generate("theirs")
    rows = list(read_jsonl(recipe.output / "generations/theirs.jsonl"))
    assert [len(row["replies"]) for row in rows] == [2] * 6
