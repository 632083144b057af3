"""The model card of one method, from the files of a run."""

from pathlib import Path
from typing import Any

import yaml
from jinja2 import Environment, FileSystemLoader, StrictUndefined

from flatgd.artifacts import layout
from flatgd.artifacts.reader import (
    load_judges,
    load_summary,
    recipes_of_seeds,
    trained_with,
    training_log,
    verify,
)
from flatgd.config.loading import without_paths
from flatgd.config.recipe import Recipe
from flatgd.report.cells import markdown
from flatgd.report.findings import AboutJudge, AboutMethod, Finding, findings
from flatgd.report.sentences import sentence
from flatgd.report.tables import judge_table, main_tables
from flatgd.report.verdicts import model_line


def model_card(
    recipe: Recipe,
    method: str,
    repo: str,
    summary: str,
    usage: str,
    pipeline_tag: str,
    license_: str | None,
) -> str:
    """README.md for the hub. `summary` says what the method does, `usage` is code that generates a
    reply."""
    header: dict[str, Any] = {
        "library_name": "transformers",
        "pipeline_tag": pipeline_tag,
        "tags": ["flatgd", "dialogue", "safety", "detoxification"],
    }
    if not Path(recipe.backbone).exists():  # others do not have a local folder
        header["base_model"] = recipe.backbone
    if license_:
        header["license"] = license_
    tables, sentences = _evaluation(recipe, method)
    return _template("card.md").render(
        header=yaml.safe_dump(header, sort_keys=True),
        title=repo.rpartition("/")[2],
        method=method,
        base=_base(recipe, method),
        summary=summary,
        usage=usage,
        sources=_sources(recipe),
        steps=_steps(training_log(recipe, method)),
        settings=", ".join(f"{k} {v}" for k, v in _settings(recipe, method).items()) or "none",
        tables=tables,
        findings=sentences,
    )


def toxic_card(recipe: Recipe, repo: str, license_: str | None) -> str:
    """README.md of a toxic expert, for the readers whom its owner lets in."""
    header: dict[str, Any] = {
        "library_name": "transformers",
        "tags": ["flatgd", "toxic-expert", "not-for-all-audiences"],
        "extra_gated_heading": "A model made to be toxic, for research on safety alone",
    }
    if license_:
        header["license"] = license_
    return _template("toxic_card.md").render(
        header=yaml.safe_dump(header, sort_keys=True),
        title=repo.rpartition("/")[2],
        base=_public(recipe.base_of("toxic_expert")),
        sources=_sources(recipe),
    )


def _template(name: str) -> Any:
    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent), undefined=StrictUndefined, trim_blocks=True
    )
    return environment.get_template(name)


def _sources(recipe: Recipe) -> list[str]:
    return list(dict.fromkeys(source.name for source in recipe.data.policy))


def _public(model: str) -> str:
    return "a model that is not public" if Path(model).exists() else f"`{model}`"


def _base(recipe: Recipe, method: str) -> str:
    start, backbone = recipe.start_of(method), _public(recipe.backbone)
    return backbone if start == "backbone" else f"the checkpoint {start}, itself from {backbone}"


def _settings(recipe: Recipe, method: str) -> dict[str, Any]:
    """The settings of its training; for a method that is not trained, its own options."""
    used = trained_with(recipe, method)
    is_trained = training_log(recipe, method) is not None
    shown: dict[str, Any] = without_paths(used if is_trained else recipe.overrides(method))
    return shown


def _evaluation(recipe: Recipe, method: str) -> tuple[str, str]:
    """The tables of backbone and methods, and the findings about this method and the judge."""
    if not (recipe.output / layout.SUMMARY).exists():
        return "", ""
    for of_seed in recipes_of_seeds(recipe):
        verify(of_seed, [layout.scores(name) for name in of_seed.models])
    summary = load_summary(recipe)
    names = list(dict.fromkeys(("backbone", recipe.baseline, *recipe.methods)))
    kept = [row for row in summary if row["method"] in (*names, "reference")]
    judges = load_judges(recipe)
    tables = [
        *main_tables(kept, names, recipe.generate.samples, recipe.seeds),
        *map(judge_table, judges),
    ]
    own = [f for f in findings(summary, recipe, judges) if _is_about(f, method)]
    shown = "\n\n".join(markdown(table).replace("## ", "### ", 1) for table in tables if table.rows)
    said = [model_line(summary, recipe, method), *map(sentence, own)]
    return shown + "\n", "\n".join(f"- {text}" for text in said if text)


def _is_about(finding: Finding, method: str) -> bool:
    """Whether a finding is about this method or the judge."""
    if isinstance(finding, AboutMethod):
        return finding.method == method
    return isinstance(finding, AboutJudge)


def _steps(log: list[dict[str, float]] | None) -> str:
    return f"{log[-1]['step']:,} optimizer steps." if log else "No training."
