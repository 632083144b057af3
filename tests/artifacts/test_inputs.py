"""What manifests record of a recipe, and how it is compared with the recipe given later."""

from pathlib import Path

from flatgd.artifacts import layout
from flatgd.artifacts.recipe_inputs import changes, inputs_of
from flatgd.artifacts.store import ArtifactStore
from flatgd.config.loading import as_text, load_recipe, shareable_text


def fields_changed(recipe: Path, artifact: str, *overrides: str) -> list[str]:
    before, now = (inputs_of(load_recipe(recipe, [*given])) for given in ([], overrides))
    return [change.field for change in changes(before[artifact], now[artifact])]


def test_an_artifact_depends_on_its_own_fields(recipe_file: Path) -> None:
    model, replies = layout.model("flatgd"), layout.generations("flatgd")
    rate = "train.learning_rate=0.5"
    assert fields_changed(recipe_file, model, rate) == ["train.learning_rate"]
    assert fields_changed(recipe_file, replies, rate) == []
    assert fields_changed(recipe_file, replies, "generate.top_p=0.5") == ["generate.top_p"]
    assert fields_changed(recipe_file, model, "generate.top_p=0.5") == []
    kind = "methods={flatgd: {method: safety_loss}}"
    assert fields_changed(recipe_file, model, kind) == ["methods.flatgd.method"]
    judge = "judges=[{kind: linear, false_positive_rate: 0.1}]"
    assert fields_changed(recipe_file, layout.judge("linear"), judge) == [
        "judges.0.false_positive_rate"
    ]
    for artifact in (model, replies, layout.scores("flatgd"), layout.judge("linear")):
        assert fields_changed(recipe_file, artifact, "report.resamples=200", "name=x") == []


def test_a_run_that_was_moved_with_its_data_is_the_same(recipe_file: Path, tmp_path: Path) -> None:
    moved = tmp_path / "elsewhere" / "deeper"
    moved.mkdir(parents=True)
    for path in tmp_path.glob("*.*"):
        (moved / path.name).write_bytes(path.read_bytes())
    before, now = (inputs_of(load_recipe(path / "recipe.yaml")) for path in (tmp_path, moved))
    assert before != now
    assert [[*changes(before[name], now[name])] for name in before] == [[]] * len(before)


def test_a_shared_recipe_has_no_local_paths(recipe_file: Path) -> None:
    recipe = load_recipe(recipe_file, ["template_date=2025-02-03"])
    assert '"template_date": "2025-02-03"' in as_text(recipe)
    assert str(recipe_file.parent) in as_text(recipe)
    assert str(recipe_file.parent) not in shareable_text(recipe)
    assert '"path": "policy.jsonl"' in shareable_text(recipe)


def test_a_kept_artifact_records_the_recipe_that_kept_it(tmp_path: Path) -> None:
    """Whose data set was moved, but not changed, has the same fingerprint."""
    store = ArtifactStore(tmp_path)
    for inputs in ({"path": "old"}, {"path": "new"}):
        outcome = store.get_or_build("a", "k", lambda path: path.write_text("x"), inputs=inputs)
        assert store.inputs("a") == inputs
    assert outcome == "kept"
    assert store.integrity_error("a") is None


def test_an_option_of_a_later_version_is_no_change_until_it_is_used(recipe_file: Path) -> None:
    now = inputs_of(load_recipe(recipe_file))[layout.scores("flatgd")]
    before = {field: value for field, value in now.items() if not field.endswith(".subset")}
    assert len(before) < len(now)
    assert not list(changes(before, now))
    used = {field: "v2" if field.endswith(".subset") else value for field, value in now.items()}
    assert list(changes(before, used))
