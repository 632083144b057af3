"""A small training: three steps on mild rows."""

from pathlib import Path
from typing import Any

import torch
from conftest import byte_tokenizer, mild_rows, tiny_blenderbot
from torch import nn
from transformers import DataCollatorForSeq2Seq, Trainer

from flatgd import FlatGDConfig, FlatGDTrainer, FlatnessMixin
from flatgd.models.encoding import IGNORE

ROWS = mild_rows(16, seed=5)

# Two computations of one gradient differ by rounding. Adam divides a gradient by its own size, also
# where that is rounding alone (the keys' biases: a softmax does not see them), so trajectories are
# compared under plain gradient descent.
DESCENT = {"optim": "sgd", "learning_rate": 0.1}


def config(folder: Path, **fields: Any) -> FlatGDConfig:
    defaults = {
        "max_steps": 3,
        "per_device_train_batch_size": 8,
        "learning_rate": 1e-2,
        "penalty_warmup": 0.0,
        "use_cpu": True,
        "disable_tqdm": True,
        "max_reply_tokens": 32,
        "rho": 3e-4,  # measured, it can differ between two computations of one gradient
    }
    return FlatGDConfig(output_dir=str(folder), **{**defaults, **fields})


def experts() -> dict[str, nn.Module]:
    return {"clean_expert": tiny_blenderbot(seed=11), "toxic_expert": tiny_blenderbot(seed=12)}


def trainer(folder: Path, model: Any = None, kind: Any = None, **fields: Any) -> FlatGDTrainer:
    made = {"method": kind(**experts())} if kind else experts()
    return FlatGDTrainer(
        model or tiny_blenderbot(),
        config(folder, **fields),
        train_dataset=ROWS,
        processing_class=byte_tokenizer(),
        **made,
    )


def trained(folder: Path, **fields: Any) -> dict[str, torch.Tensor]:
    subject = trainer(folder, **fields)
    subject.train()
    return {name: value.clone() for name, value in subject.model.state_dict().items()}


def largest_difference(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> float:
    return max(float((one[name] - other[name]).abs().max()) for name in one)


class OwnTrainer(FlatnessMixin, Trainer):
    """Any Trainer: its own batches, its own loss."""


def own_trainer(folder: Path, make: Any, kind: Any = OwnTrainer, **fields: Any) -> Trainer:
    model, tokenizer = make(), byte_tokenizer()
    rows = [
        {
            "input_ids": (ids := tokenizer(row["prompt"][-1] + row["completion"])["input_ids"]),
            "labels": [IGNORE] * 4 + ids[4:],
        }
        for row in ROWS
    ]
    return kind(
        model=model,
        args=config(folder, **fields),
        train_dataset=rows,
        data_collator=DataCollatorForSeq2Seq(tokenizer, model),  # it pads labels of any model
    )
