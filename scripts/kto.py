"""A KTO row for a comparison: TRL's KTOTrainer on the rows that a run's methods learn from.

    python scripts/kto.py RECIPE FOLDER [--set KEY=VALUE ...]
    flatgd run RECIPE --set methods.kto.checkpoint=FOLDER

Rows, steps, batch, learning rate and adapter are those of the recipe's entry `flatgd`, beta is
KTO's own 0.1. It needs flatgd and TRL in one environment (`pip install trl`), and the run's sampled
replies, if the recipe has a `sample.share`: `flatgd train RECIPE --method clean` samples them.
"""

import argparse
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from flatgd.config.loading import load_recipe
from flatgd.dialogue import Dialogue, as_messages
from flatgd.models.adapters import with_adapter
from flatgd.models.loading import load_model, load_tokenizer
from flatgd.pipeline.pipeline import Pipeline

BETA = 0.1
LIKE = "flatgd"  # the entry whose rows and settings it takes


def kto_rows(rows: Sequence[Dialogue], histories: int) -> list[dict[str, Any]]:
    """Rows in KTO's form: chat messages, and whether the reply is wanted. `histories`: newest turns
    kept."""
    return [
        {
            "prompt": as_messages(row.history[-histories:]),
            "completion": [{"role": "assistant", "content": row.reply}],
            "label": bool(row.is_safe),
        }
        for row in rows
        if row.history
    ]


def main() -> None:
    from datasets import Dataset
    from trl import KTOConfig, KTOTrainer  # type: ignore[import-not-found]

    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("recipe")
    parser.add_argument("folder", type=Path)
    parser.add_argument("--set", action="append", default=[], dest="overrides")
    given = parser.parse_args()
    recipe = load_recipe(given.recipe, given.overrides)
    plan = Pipeline(recipe).context.plan
    config = plan.config(LIKE, given.folder)
    trainer = KTOTrainer(
        with_adapter(load_model(recipe.backbone), config),
        args=KTOConfig(
            output_dir=str(given.folder),
            max_steps=config.max_steps,
            per_device_train_batch_size=config.per_device_train_batch_size,
            learning_rate=config.learning_rate,
            warmup_steps=config.warmup_steps,
            max_length=recipe.max_history_tokens + recipe.max_reply_tokens,
            beta=BETA,
            seed=recipe.seed,
            save_strategy="no",
            logging_steps=10,
            report_to="none",
            use_cpu=True,
            bf16=False,
        ),
        train_dataset=Dataset.from_list(kto_rows(plan.policy(LIKE), 3)),
        processing_class=load_tokenizer(recipe.backbone),
    )
    begun = time.perf_counter()
    trainer.train()
    print(f"{config.max_steps} steps in {time.perf_counter() - begun:.0f} s")
    trainer.save_model(str(given.folder))


if __name__ == "__main__":
    main()
