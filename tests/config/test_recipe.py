"""Recipes: what is refused, how it is told, and what YAML hides."""

from pathlib import Path

import pytest
from conftest import mild_rows, write_rows

from flatgd.config.loading import as_text, load_recipe
from flatgd.errors import FlatGDError, RecipeError, UnsupportedError, UsageError
from flatgd.pipeline.loader import load_validated
from flatgd.pipeline.training_config import training_config

ROOT = Path(__file__).parents[2]


def test_every_recipe_in_the_folder_loads() -> None:
    for path in (ROOT / "recipes").glob("*.yaml"):
        assert load_recipe(path).name


def test_all_faults_at_once_with_the_nearest_name(recipe_file: Path) -> None:
    text = recipe_file.read_text().replace("max_reply_tokens", "max_replytokens")
    recipe_file.write_text(text.replace("samples: 2", "sample: 2") + "sede: 3\n")
    with pytest.raises(RecipeError) as error:
        load_recipe(recipe_file)
    told = str(error.value)
    assert "max_replytokens: unknown key; did you mean 'max_reply_tokens'?" in told
    assert "generate.sample: unknown key; did you mean 'samples'?" in told
    assert "sede: unknown key; did you mean 'seed'?" in told


def test_unknown_key_inside_a_list(recipe_file: Path) -> None:
    recipe_file.write_text(recipe_file.read_text().replace("format: jsonl", "fromat: jsonl", 1))
    with pytest.raises(RecipeError, match=r"fromat: unknown key; did you mean 'format'\?"):
        load_recipe(recipe_file)


@pytest.mark.parametrize(
    ("override", "told"),
    [
        ("seed=-1", "seed: Input should be greater than or equal to 0"),
        ("generate.top_p=2", "generate.top_p"),
        ("data.policy=[]", "data.policy"),
        ("name=a/b", "name"),
        ("seed.x=1", "'seed' is not a section"),
        ("seed", "--set needs section.key=value"),
        ("seed=[1", "--set seed: not valid YAML"),
    ],
)
def test_values_out_of_place(recipe_file: Path, override: str, told: str) -> None:
    recipe_file.write_text(recipe_file.read_text() + "seed: 0\n")
    with pytest.raises(FlatGDError) as error:
        load_recipe(recipe_file, [override])
    assert told in str(error.value)


def test_unreadable_recipes(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="no such recipe"):
        load_recipe(tmp_path / "a.yaml")
    with pytest.raises(UsageError, match="is a folder"):
        load_recipe(tmp_path)
    (tmp_path / "a.yaml").write_text("a: [1")
    with pytest.raises(RecipeError, match="not valid YAML"):
        load_recipe(tmp_path / "a.yaml")
    (tmp_path / "b.yaml").write_text("just text")
    with pytest.raises(RecipeError, match="expected `key: value`"):
        load_recipe(tmp_path / "b.yaml")
    (tmp_path / "c.yaml").write_bytes(b"\xff\xfe\xe9")
    with pytest.raises(RecipeError, match="not UTF-8"):
        load_recipe(tmp_path / "c.yaml")


def test_numbers_that_yaml_reads_as_text(recipe_file: Path) -> None:
    recipe = load_recipe(recipe_file, ["train.learning_rate=5e-6", "train.rho=1E-3"])
    assert recipe.train["learning_rate"] == 5e-6
    assert recipe.train["rho"] == 1e-3


def test_relative_paths_start_at_the_recipe(recipe_file: Path) -> None:
    recipe = load_recipe(recipe_file)
    assert recipe.output == recipe_file.parent / "run"
    assert recipe.data.policy[0].path == recipe_file.parent / "policy.jsonl"
    assert load_recipe(recipe_file, ["backbone=demo:backbone"]).backbone.endswith("demo/backbone")
    assert load_recipe(recipe_file, ["backbone=facebook/x"]).backbone == "facebook/x"


def test_training_keys_are_checked_against_the_config(recipe_file: Path, tmp_path: Path) -> None:
    recipe = load_recipe(recipe_file, ["train.learning_rat=1"])
    with pytest.raises(RecipeError, match="did you mean 'learning_rate'"):
        training_config(recipe, {}, tmp_path)
    with pytest.raises(RecipeError, match="train: "):
        training_config(load_recipe(recipe_file, ["train.save_strategy=x"]), {}, tmp_path)
    with pytest.raises(UnsupportedError, match="optim: x cannot be used"):
        training_config(load_recipe(recipe_file, ["train.bf16=[1]", "train.optim=x"]), {}, tmp_path)


def test_a_method_overrides_how_lambda_is_set(recipe_file: Path, tmp_path: Path) -> None:
    recipe = load_recipe(recipe_file, ["train.penalty_share=0.3"])
    config = training_config(recipe, {"flatness_weight": 0.01}, tmp_path)
    assert config.flatness_weight == 0.01
    assert config.penalty_share is None


def test_which_side_sets_lambda_makes_another_training(recipe_file: Path) -> None:
    """Both recipes hold the same fields, but another one of them rules."""
    one = load_recipe(recipe_file, ["train.penalty_share=0.3"])
    other = load_recipe(recipe_file, ["train.flatness_weight=0.01"])
    fields = [
        one.training_fields({"flatness_weight": 0.01}),
        other.training_fields({"penalty_share": 0.3}),
    ]
    assert "penalty_share" not in fields[0]
    assert "flatness_weight" not in fields[1]


@pytest.mark.parametrize(
    ("override", "told"),
    [
        ("generate.max_new_tokens=400", "backbone has 128 positions, but this recipe needs 401"),
        ("max_reply_tokens=128", "lower max_history_tokens, max_reply_tokens"),
        ("data.test=[{name: t, format: jsonl, path: test.jsonl, answered: false}]", "no history"),
        ("data.test=[{name: t, format: jsonl, path: human.jsonl, speaker: all}]", "of bots"),
        ("data.judge=[{name: t, format: jsonl, path: policy.jsonl}]", "24 left out as also in"),
        ("data.judge=[{name: t, format: jsonl, path: few.jsonl}]", "fewer than two conversations"),
        ("methods.experts={}", "methods.experts: this name is taken"),
    ],
)
def test_check_finds_it_before_training(recipe_file: Path, override: str, told: str) -> None:
    rows = [{**row, "speaker": "human"} for row in mild_rows(8, 9)]
    write_rows(recipe_file.parent / "human.jsonl", rows)
    write_rows(recipe_file.parent / "few.jsonl", mild_rows(2, 10))
    text = recipe_file.read_text() + "methods: {flatgd: {}}\n"
    recipe_file.write_text(text)
    with pytest.raises(RecipeError) as error:
        load_validated(load_recipe(recipe_file, [override]))
    assert told in str(error.value)


def test_lengths_must_not_cross(recipe_file: Path) -> None:
    with pytest.raises(RecipeError, match="min_new_tokens 9 exceeds max_new_tokens 8"):
        load_recipe(recipe_file, ["generate.min_new_tokens=9"])


def test_check_tells_all_faults_together(recipe_file: Path) -> None:
    recipe = load_recipe(
        recipe_file,
        [
            "methods={flatgdd: {}, backbone: {}, flatgd: {fp16: true}}",
            "backbone=./nowhere",
            "data.test=[{name: t, format: jsonl, path: nowhere.jsonl}]",
        ],
    )
    with pytest.raises(RecipeError) as error:
        load_validated(recipe)
    told = str(error.value)
    assert "no such method; did you mean 'flatgd'?" in told
    assert "methods.backbone: this name is taken" in told
    assert "fp16 scales the gradient" in told
    assert "backbone: there is no folder" in told
    assert "nowhere.jsonl: no such file" in told


def test_check_passes_and_describes(recipe_file: Path) -> None:
    lines = dict(load_validated(load_recipe(recipe_file)).described())
    assert lines["data: policy"] == "24 replies, 12 toxic, 12 conversations"


def test_yaml_faults_never_show_what_stands_there(tmp_path: Path) -> None:
    """A data file given for a recipe: its text may be toxic."""
    data = tmp_path / "replies.jsonl"
    data.write_text('{"prompt": "you goose"}\n{"prompt": "daft"}\n')
    with pytest.raises(RecipeError, match="is data, not a recipe") as raised:
        load_recipe(data)
    assert "goose" not in str(raised.value)
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text("name: x\n  daft goose: [\n")
    with pytest.raises(RecipeError, match=r"recipe.yaml:2: not valid YAML") as raised:
        load_recipe(recipe)
    assert "goose" not in str(raised.value)


def test_set_reaches_into_lists(recipe_file: Path) -> None:
    whole = "data.policy.0.share=[0, 1]"
    words = ["data.test.0.history_lines=1", whole, "data.policy.0.share.1=0.5"]
    recipe = load_recipe(recipe_file, words)
    assert recipe.data.test[0].history_lines == 1
    assert recipe.data.policy[0].share == (0, 0.5)
    for wrong in ("data.test.7.weight=1", "data.test.x.weight=1", "data.policy.0.share.2=1"):
        with pytest.raises(UsageError, match=r"is none of 0..[01]"):
            load_recipe(recipe_file, [whole, wrong])


def test_one_wrong_train_key_is_told_once(recipe_file: Path) -> None:
    with pytest.raises(RecipeError) as raised:
        load_validated(
            load_recipe(recipe_file, ["train.learning_rat=1", "methods.flatgd={rhoo: 1}"])
        )
    assert str(raised.value).count("learning_rat'") == 1
    assert "flatgd: train: unknown key 'rhoo'" in str(raised.value)


def test_a_folder_that_is_not_there_is_told_as_one(recipe_file: Path) -> None:
    with pytest.raises(RecipeError, match=r"scorer: there is no folder /.*/nope"):
        load_validated(load_recipe(recipe_file, ["scorer=./nope"]))


def test_two_judges_of_one_name(recipe_file: Path) -> None:
    with pytest.raises(RecipeError) as raised:
        load_recipe(recipe_file, ["judges=[{kind: linear}, {kind: linear}]"])
    assert str(raised.value).endswith("\n  judges: two are called 'linear'; give each a name")


def test_a_recipe_as_text_is_the_same_recipe_from_anywhere(
    recipe_file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(recipe_file.parent)
    overrides = ["turn_separator=//", "seed=3", "scorer=demo:scorer"]
    recipe = load_recipe(recipe_file.name, overrides)
    assert not recipe.output.is_absolute()
    text = as_text(recipe)
    assert '"scorer": "demo:scorer"' in text
    elsewhere = recipe_file.parent / "below"
    elsewhere.mkdir()
    (elsewhere / "again.json").write_text(text)
    monkeypatch.chdir(elsewhere)
    again = load_recipe(elsewhere / "again.json")
    assert again.turn_separator == "//"
    assert again.output == recipe_file.parent / "run"
    assert again.data.policy[0].path == recipe_file.parent / "policy.jsonl"
    assert as_text(again) == text


def test_fields_of_a_judge_are_for_its_kind(recipe_file: Path) -> None:
    for fields, told in (
        ("{kind: linear, epochs: 2}", "epochs is for kind: trained"),
        ("{kind: hf, model: a/b, learning_rate: 1e-3}", "learning_rate is for kind: trained"),
        ("{kind: trained, model: a/b, template: '{reply}'}", "template is for kind: hf or guard"),
        ("{kind: trained}", "kind: trained needs a model"),
        ("{max_tokens: 64}", "max_tokens is for kind: embedding, trained, hf or guard"),
    ):
        with pytest.raises(RecipeError, match=told):
            load_recipe(recipe_file, [f"judges=[{fields}]"])


@pytest.mark.parametrize(
    "override",
    [
        "judges=[{name: ..}]",
        "judges=[{name: .}]",
        "data.policy.0.name=a/b",
        "data.policy.0.name='$x'",
        "data.policy.0.name='a|b'",
        "data.policy.0.name=..",
        "methods={}",
    ],
)
def test_names_that_are_no_names_of_files_are_refused(recipe_file: Path, override: str) -> None:
    with pytest.raises(RecipeError):
        load_recipe(recipe_file, [override])


def test_histories_are_for_test_sets(recipe_file: Path) -> None:
    with pytest.raises(RecipeError, match="histories, which is for test sets"):
        load_recipe(recipe_file, ["data.policy.0.histories=3"])
