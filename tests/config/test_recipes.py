"""The recipes that come with flatgd; the paper's own runs on scaled-down things."""

import json
import os
import random
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from conftest import OPENERS, SAFE, TOXIC, mild_rows, roberta, write_rows
from families import save_family
from judged import encoder_folder
from typer.testing import CliRunner

from flatgd.cli.main import app
from flatgd.config.loading import load_recipe
from flatgd.errors import RecipeError, UsageError
from flatgd.methods import METHODS
from flatgd.pipeline.training_config import training_config

RECIPES = sorted((Path(__file__).parents[2] / "recipes").glob("*.yaml"))
PAPER = next(path for path in RECIPES if path.name == "paper.yaml")


CHECK_ALL = """
import sys
from flatgd.cli.main import main
for path in sys.argv[1:]:
    sys.argv = ["flatgd", "check", path, "--offline"]
    try:
        main()
    except SystemExit as done:
        assert not done.code, path
"""


@pytest.mark.slow
def test_every_recipe_holds_without_network() -> None:
    """In a process of its own, as the network is switched off for good in it."""
    command = [sys.executable, "-c", CHECK_ALL, *map(str, RECIPES)]
    told = subprocess.run(command, capture_output=True, text=True, env=without_offline())
    assert told.returncode == 0, told.stderr
    assert told.stdout.count("nothing wrong found") == len(RECIPES)


def without_offline() -> dict[str, str]:
    return {key: value for key, value in os.environ.items() if key != "HF_HUB_OFFLINE"}


def test_table_5_stands_in_the_paper_s_recipe() -> None:
    recipe = load_recipe(PAPER)
    for name in ("clean", "safety_loss", "flatgd"):
        config = training_config(
            recipe, recipe.overrides(name), Path("out"), METHODS[recipe.kind_of(name)]
        )
        assert (config.lm_weight, config.repel_weight, config.attract_weight) == (1, 2, 3)
        assert config.per_device_train_batch_size == 64
        assert config.learning_rate == 5e-6
        assert config.num_train_epochs == 2
    assert recipe.backbone == "facebook/blenderbot-400M-distill"
    assert recipe.scorer == "facebook/blenderbot-1B-distill"
    assert {source.name for source in recipe.data.policy} == {"bad", "bbf", "prosocial"}
    assert recipe.generate.samples == 5


# The paper's recipe with its names replaced: the data invented, in the layout that fetch leaves


def lines(rng: random.Random, count: int) -> list[str]:
    return [f"{rng.choice(OPENERS)} {rng.randrange(10**6)}" for _ in range(count)]


def invent_bad(folder: Path, rng: random.Random) -> None:
    folder.mkdir(parents=True)
    for split in ("train", "valid", "test"):
        rows = []
        for number in range(24):
            said = [*lines(rng, 2), rng.choice(TOXIC if number % 2 else SAFE)]
            for end, speaker in ((2, "human"), (3, "bot")):
                label = "__notok__" if number % 2 else "__ok__"
                text = "\\n".join(said[:end])
                rows.append(
                    f"text:{text}\tlabels:{label}\tepisode_done:True\tbot_persona:i am mild."
                    f"\tspeaker_to_eval:{speaker}\n"
                )
        (folder / f"{split}.txt").write_text("".join(rows))


def invent_bbf(folder: Path, rng: random.Random) -> None:
    folder.mkdir(parents=True)

    def rows(kind: str, turns: int) -> list[dict]:
        said = [
            [*lines(rng, turns), rng.choice(SAFE if kind == "good" else TOXIC)] for _ in range(3)
        ]
        label = "__ok__" if kind == "good" else "__notok__"
        return [{"text": "\n".join(s), "labels": [label], "episode_done": True} for s in said]

    splits = ("train", "valid", "test")
    single = {
        task: {
            split: {n: {kind: rows(kind, 0) for kind in ("good", "bad")} for n in "123"}
            for split in splits
        }
        for task in ("standard", "adversarial")
    }
    (folder / "single_turn_safety.json").write_text(json.dumps(single))
    multi = {split: rows("good", 3) + rows("bad", 3) for split in splits}
    (folder / "multi_turn_safety.json").write_text(json.dumps(multi))


def invent_prosocial(folder: Path, rng: random.Random) -> None:
    folder.mkdir(parents=True)
    for split in ("train", "valid", "test"):
        talks = [
            [
                {"text": text, "labels": [rng.choice(SAFE)], "safety_label": "__needs_caution__"}
                for text in lines(rng, 2)
            ]
            for _ in range(8)
        ]
        (folder / f"{split}.json").write_text(json.dumps(talks))


@pytest.mark.slow
def test_the_paper_s_recipe_runs_scaled_down(tmp_path: Path) -> None:
    rng = random.Random(0)
    data = tmp_path / "data"
    inside = "dialogue_datasets_v0.2/bot_adversarial_dialogue_datasets_with_persona"
    invent_bad(data / "bad" / inside, rng)
    invent_bbf(data / "bbf", rng)
    invent_prosocial(data / "prosocial/prosocial_dialog_v1", rng)
    names = {
        "facebook/blenderbot-400M-distill": save_family("blenderbot", tmp_path / "backbone"),
        "facebook/blenderbot-1B-distill": save_family("blenderbot", tmp_path / "scorer", seed=1),
        "TheMrguiller/ToxDialogDefender": roberta(tmp_path / "bad_judge", ["LABEL_0", "LABEL_1"]),
        "s-nlp/roberta_toxicity_classifier": roberta(tmp_path / "judge", ["neutral", "toxic"]),
        "sentence-transformers/all-mpnet-base-v2": encoder_folder(tmp_path / "encoder"),
    }
    text = PAPER.read_text()
    for name, folder in names.items():
        assert name in text
        text = text.replace(f": {name}", f": {folder}")
    (tmp_path / "recipes").mkdir()
    recipe = tmp_path / "recipes/paper.yaml"
    recipe.write_text(text)
    told = CliRunner().invoke(app, ["check", str(recipe), "--offline"], catch_exceptions=False)
    assert "nothing wrong found\n" in told.output
    told = CliRunner().invoke(app, ["run", str(recipe)], catch_exceptions=False)
    assert told.exit_code == 0
    summary = json.loads((tmp_path / "runs/paper/report/summary.json").read_text())
    ours = [row for row in summary if row["method"] == "flatgd"]
    flatgd = {(row["dataset"], row["metric"]): row["value"] for row in ours}
    for dataset in ("bad", "prosocial"):
        for metric in ("toxicity_any5", "toxicity_any5@roberta", "perplexity", "div1", "div2"):
            assert flatgd[dataset, metric] >= 0
    assert flatgd["bad", "contrast"] is not None
    assert flatgd["prosocial", "contrast"] is None  # no toxic replies to tell from


# flatgd init


@pytest.mark.slow
def test_the_template_is_a_recipe_that_runs(
    tmp_path: Path, backbone_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    write_rows(tmp_path / "my replies.jsonl", mild_rows(60, 3))
    words = ["--backbone", str(backbone_folder), "--replies", "my replies.jsonl"]
    told = CliRunner().invoke(app, ["init", "sub.yaml", *words], catch_exceptions=False)
    assert "flatgd check sub.yaml" in told.output
    quick = ["--set", "generate.histories=4", "--set", "max_reply_tokens=32"]
    told = CliRunner().invoke(app, ["run", "sub.yaml", *quick], catch_exceptions=False)
    assert told.exit_code == 0
    assert (tmp_path / "runs/sub/report/index.html").exists()
    told_again = "sub.yaml already exists. Choose another file, or delete it first."
    with pytest.raises(UsageError, match=told_again):
        CliRunner().invoke(app, ["init", "sub.yaml"], catch_exceptions=False)


def test_the_template_sees_paths_from_its_own_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "recipes").mkdir()
    (tmp_path / "a.jsonl").touch()
    words = ["init", "recipes/mine.yaml", "--backbone", 'some/"model"', "--replies", "a.jsonl"]
    CliRunner().invoke(app, words, catch_exceptions=False)
    recipe = load_recipe(tmp_path / "recipes/mine.yaml")
    assert recipe.data.policy[0].path == tmp_path / "a.jsonl"
    assert recipe.backbone == 'some/"model"'
    assert recipe.name == "mine"
    with pytest.raises(UsageError, match="cannot be written"):
        CliRunner().invoke(app, ["init", "nowhere/mine.yaml"], catch_exceptions=False)


def test_recipes_name_only_keys_that_are_read() -> None:
    """A commented-out line of the template is still right when its comment sign goes."""
    text = (Path(__file__).parents[2] / "flatgd/config/template.yaml").read_text()
    for line in text.splitlines():
        bare = line.removeprefix("# ")
        if line.startswith("# ") and bare.split(":")[0] in (
            "scorer",
            "expert_backbone",
            "turn_separator",
        ):
            text = text.replace(line, bare)
    text = text.replace("# - {kind: hf", "  - {kind: hf").replace("<NAME>", "x")
    raw = yaml.safe_load(text.replace("<BACKBONE>", "a/b").replace("<REPLIES>", "c.jsonl"))
    assert raw["turn_separator"] == "\n"
    assert len(raw["judges"]) == 2


# check --offline


def test_offline_checks_what_is_there(tmp_path: Path, recipe_file: Path) -> None:
    """Faults are found in the files that are there, beside what is passed over."""
    (tmp_path / "test.jsonl").unlink()
    words = ["check", str(recipe_file), "--offline", "--set", "backbone=some/model"]
    told = CliRunner().invoke(app, words, catch_exceptions=False)
    assert "not checked       backbone: some/model (on the hub)" in told.output
    assert "test.jsonl (not here)" in told.output
    with (tmp_path / "judge.jsonl").open("a") as file:
        file.write("{}\n")
    with pytest.raises(RecipeError, match=r"judge.jsonl:25: no reply"):
        CliRunner().invoke(app, words, catch_exceptions=False)
    more = ["--set", "train.learning_rat=1"]
    with pytest.raises(RecipeError, match="unknown key 'learning_rat'"):
        CliRunner().invoke(app, [*words, *more], catch_exceptions=False)


def test_offline_a_folder_that_is_not_there_is_no_hub_name(recipe_file: Path) -> None:
    for name in ("/nowhere", "a/b/c"):
        words = ["check", str(recipe_file), "--offline", "--set", f"scorer={name}"]
        with pytest.raises(RecipeError, match=f"scorer: there is no folder {name}"):
            CliRunner().invoke(app, words, catch_exceptions=False)
