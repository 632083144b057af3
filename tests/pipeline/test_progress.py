"""In a log file, every long part of a run counts up to its total."""

import re
from io import StringIO
from itertools import count
from pathlib import Path

import pytest
from conftest import roberta
from rich.console import Console

from flatgd.config.loading import as_text, load_recipe
from flatgd.pipeline.pipeline import Pipeline
from flatgd.runtime.display import Display
from flatgd.studies.durability import study_durability
from flatgd.studies.flatness import study_flatness

LINE = re.compile(r"^ *[\d:]+  (.{26,}?) ([\d,]+)/([\d,]+) ([a-z ]+)")


def slow(file: StringIO) -> Display:
    """A display on whose clock 31 seconds pass between any two looks, so every item has a line."""
    return Display(Console(file=file, width=200, highlight=False), now=count(step=31).__next__)


def counted(shown: str) -> dict[tuple[str, str], list[tuple[int, int]]]:
    """{(part, unit): [(done, total)]}."""
    found: dict[tuple[str, str], list[tuple[int, int]]] = {}
    for line in shown.splitlines():
        if match := LINE.match(line):
            part, done, total, unit = match.groups()
            found.setdefault((part.strip(), unit), []).append((int(done), int(total)))
    return found


def test_parts_of_a_run_count_up_to_their_totals(recipe_file: Path, tmp_path: Path) -> None:
    """Each set has 24 rows, 12 of them safe. The two replies to each of six histories are scored by
    two judges and the scorer; the two sampled for each of five by one judge and the model."""
    judge = roberta(tmp_path / "judge", ["neutral", "toxic"])
    recipe = load_recipe(
        recipe_file,
        [
            f"judges=[{{kind: linear}}, {{kind: hf, model: {judge}, batch_size: 4}}]",
            "methods={flatgd: {}}",
            "sample={histories: 5, samples: 2}",
        ],
    )
    file = StringIO()
    job = Pipeline(recipe, slow(file))
    job.run()
    job.models.sample("flatgd")
    found = counted(file.getvalue())
    totals = {key: {total for _, total in values} for key, values in found.items()}
    given, own = 24, 6 * 2 * (2 + 1)
    assert totals == {
        ("judge hf", "replies"): {24},
        ("judge hf", "test replies"): {24},
        ("clean_expert", "steps"): {3},
        ("toxic_expert", "steps"): {3},
        ("flatgd", "steps"): {3},
        ("flatgd: sample", "histories"): {5},
        ("flatgd: label", "scores"): {5 * 2 * 2},
        ("reference: score", "scores"): {12 * (2 + 1)},
        **{(f"{name}: generate", "histories"): {6} for name in recipe.models},
        **{(f"{name}: score", "scores"): {given + own} for name in recipe.models},
    }
    for values in found.values():
        assert [done for done, _ in values] == sorted(done for done, _ in values)
        assert values[-1][0] == values[-1][1]


@pytest.mark.slow
def test_parts_of_studies_count_up_to_their_totals(recipe_file: Path) -> None:
    """flatness: the end point, the path and the slices of one method. durability: four attacks on
    the backbone and on the end point."""
    job = Pipeline(load_recipe(recipe_file, ["methods={flatgd: {}}"]), slow(StringIO()))
    job.models.train("flatgd")
    (job.context.root / "recipe.json").write_text(as_text(job.context.recipe))
    checkpoint = job.context.root / "methods/flatgd"
    file = StringIO()
    study_flatness([checkpoint], 4, 2, slow(file))
    study_durability([checkpoint], 4, 2, slow(file))
    found = counted(file.getvalue())
    assert found[("flatness", "parts")] == [(1, 3), (2, 3), (3, 3)]
    assert found[("durability", "attacks")] == [(n, 8) for n in range(1, 9)]
