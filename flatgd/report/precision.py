"""The report's table of precisions: in which one each number was computed."""

from collections import defaultdict

from flatgd.artifacts import layout
from flatgd.artifacts.store import ArtifactStore
from flatgd.config.recipe import Recipe
from flatgd.report.cells import Table

NOTE = (
    "Trained weights are float32 in every run. bfloat16 has 8 significant bits; what it changes is "
    "in docs/performance.md. Runs of flatgd 0.1 computed in float32 and did not record it."
)
UNRECORDED = "float32"


def precision_tables(recipe: Recipe) -> list[Table]:
    """One table: the numbers of the report and their precision, as the manifests record it."""
    store = ArtifactStore(recipe.output)
    models: defaultdict[str, list[str]] = defaultdict(list)
    for name in recipe.models:
        cost = store.cost(layout.generations(name))
        models[cost.get("dtype", UNRECORDED)].append(name)
    rows = [[f"replies and contrast of {', '.join(own)}", dtype] for dtype, own in models.items()]
    if recipe.scorer:
        cost = store.cost(layout.scores(recipe.models[0]))
        rows.append(["perplexity and relevance", cost.get("scorer_dtype", UNRECORDED)])
    for judge in recipe.judges:
        cost = store.cost(layout.judge(judge.label))
        rows.append([f"judge {judge.label}", cost.get("dtype", UNRECORDED)])
    return [Table("Precision", ["numbers", "computed in"], rows, NOTE)]
