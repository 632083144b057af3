"""The whole job: a recipe from data to report."""

from pathlib import Path

from flatgd.artifacts import layout
from flatgd.config.loading import as_text
from flatgd.config.recipe import Recipe
from flatgd.pipeline.pipeline import Pipeline
from flatgd.publish.hub import write_cards
from flatgd.report.build import build_report
from flatgd.report.progress import write_progress
from flatgd.runtime import distributed
from flatgd.runtime.display import Display


def run(recipe: Recipe, display: Display | None = None) -> Path:
    """Build everything that a recipe asks for; returns the report's page. Finished artifacts whose
    inputs have not changed are kept, so that an interrupted run resumes."""
    pipeline = Pipeline(recipe, display)
    if distributed.is_first():
        page = recipe.output / layout.PAGE
        pipeline.context.display.line("progress", f"{page} shows how far the run is")
        pipeline.run(lambda progress: write_progress(recipe, progress))
    else:
        pipeline.run()
    return report(pipeline)


def report(pipeline: Pipeline) -> Path:
    """Report and model cards from a run's files; returns the report's page."""
    recipe, root = pipeline.context.recipe, pipeline.context.root
    if not distributed.is_first():
        return root / layout.PAGE
    page = build_report(recipe)
    (root / layout.RECIPE).write_text(as_text(recipe))
    write_cards(recipe)
    pipeline.context.display.line("report", str(page))
    return page
