"""What `flatgd check` says of memory, disk space and time."""

from collections.abc import Iterator

from flatgd.config.recipe import Recipe
from flatgd.data.sets import Sets
from flatgd.methods import Method
from flatgd.pipeline.context import model_fingerprint
from flatgd.pipeline.disk_space import disk_of, free_space
from flatgd.pipeline.estimates import Lengths, fits, lengths_of, memory_of
from flatgd.pipeline.plan import Plan


def estimated(
    recipe: Recipe, sets: Sets, processes: int, strategy: str, with_time: bool
) -> Iterator[str]:
    """Lines of text. `with_time` loads the models and runs a few steps."""
    plan = Plan(recipe, sets, model_fingerprint)
    lengths = lengths_of(plan)
    yield f"{'disk':<18}{disk_of(plan)}; {free_space(recipe.output)} free"
    each = " in each process" if processes > 1 else ""
    for stage, memory in memory_of(plan, lengths, processes, strategy).items():
        yield f"{f'memory: {stage} ':<26}{memory}{each}"
    for name in recipe.methods:
        if issubclass(plan.model(name).kind, Method):
            yield f"{f'fits: {name} ':<26}{_rows_on_cards(plan, name, lengths)}"
    if with_time:
        from flatgd.pipeline.timing import duration, times_of, total

        stages = []
        for found in times_of(plan):
            stages.append(found)
            yield f"{'time: ' + found.stage:<26}{duration(found.seconds)} ({found.basis})"
        yield f"{'time: all':<26}{duration(recipe.seeds * total(stages))}"


def _rows_on_cards(plan: Plan, name: str, lengths: Lengths) -> str:
    """The largest micro-batch on each size of card."""
    whole = plan.config(name, plan.recipe.output).per_device_train_batch_size
    return ", ".join(
        f"{card} GB: "
        + ("no" if not rows else "yes" if rows == whole else f"micro_batch_size {rows}")
        for card, rows in fits(plan, name, lengths)
    )
