"""What the trainer refuses, and how it says so."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from accelerate import DistributedType
from conftest import byte_tokenizer, tiny_blenderbot, write_rows
from training import ROWS, config, experts, trainer

from flatgd import FlatGDTrainer, load_jsonl
from flatgd.errors import DataError, ModelError, UnsupportedError
from flatgd.training.gradient_reduction import check_strategy


def test_rows_from_a_file_and_bad_rows(tmp_path: Path) -> None:
    rows = load_jsonl(write_rows(tmp_path / "a.jsonl", ROWS))
    made = FlatGDTrainer(
        tiny_blenderbot(),
        config(tmp_path),
        train_dataset=rows,
        processing_class=byte_tokenizer(),
        **experts(),
    )
    assert len(made.examples) == 16
    with pytest.raises(DataError, match=r"train_dataset:2: no reply: expected"):
        FlatGDTrainer(
            tiny_blenderbot(),
            config(tmp_path),
            train_dataset=[ROWS[0], {"prompt": "a", "label": True}],
            processing_class=byte_tokenizer(),
            **experts(),
        )
    with pytest.raises(DataError, match="no rows"):
        FlatGDTrainer(
            tiny_blenderbot(),
            config(tmp_path),
            train_dataset=[],
            processing_class=byte_tokenizer(),
            **experts(),
        )


def test_missing_experts_are_asked_for(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="needs clean_expert and toxic_expert"):
        FlatGDTrainer(
            tiny_blenderbot(),
            config(tmp_path),
            train_dataset=ROWS,
            processing_class=byte_tokenizer(),
        )


def test_named_experts_need_the_same_token_map(tmp_path: Path, backbone_folder: Path) -> None:
    other = byte_tokenizer()
    other.add_tokens(["goose"])
    for tokenizer, fits in ((byte_tokenizer(), True), (other, False)):
        arguments: dict[str, Any] = {
            "train_dataset": ROWS,
            "processing_class": tokenizer,
            "clean_expert": backbone_folder,
            "toxic_expert": str(backbone_folder),
        }
        if fits:
            FlatGDTrainer(tiny_blenderbot(), config(tmp_path), **arguments)
        else:
            with pytest.raises(ModelError, match="do not share one token map"):
                FlatGDTrainer(tiny_blenderbot(), config(tmp_path), **arguments)


@pytest.mark.parametrize(
    ("fields", "told"),
    [
        ({"fp16": True}, "fp16 scales"),
        ({"learning_rate": "fast"}, "must be a number"),
        ({"per_device_train_batch_size": 0}, "must be a whole number >= 1"),
        ({"label_smoothing_factor": 0.1}, "label smoothing"),
        ({"gradient_accumulation_steps": 2}, "micro_batch_size to what fits"),
        ({"auto_find_batch_size": True}, "set micro_batch_size instead"),
        ({"deepspeed": "x.json"}, "DeepSpeed"),
        ({"flatness_weight": 0.1, "penalty_share": 0.1}, "both set lambda"),
        ({"penalty_share": -1.0}, "penalty_share must be a number >= 0"),
        ({"rho": 0.0}, "rho must be a number > 0"),
        ({"penalty_warmup": 2.0}, "a number, 0 <= x <= 1"),
        ({"micro_batch_size": 0}, "must be a whole number >= 1"),
        ({"penalty_every": 0}, "penalty_every must be a whole number >= 1"),
        ({"penalty_fraction": 0.0}, "a number, 0 < x <= 1"),
        ({"penalty_momentum": 1.0}, "a number, 0 <= x < 1"),
        ({"penalty_momentum": 0.5, "flatness_method": "fast"}, "needs flatness_method: finite"),
        ({"flatness_method": "fast", "difference": "central"}, "is a forward difference"),
        ({"flatness_method": "lookahead", "flatness_weight": 0.1}, "leave flatness_weight and rho"),
        ({"flatness_method": "lookahead", "rho": 1e-3}, "leave flatness_weight and rho out"),
        ({"flatness_method": "lookahead", "penalty_share": 0.6}, "to at most 0.5, got 0.6"),
        ({"flatness_method": "exact", "penalty_layers": 2}, "needs flatness_method: finite"),
        ({"penalty_layers": "top"}, "all, blocks, or a number of blocks from 1, got 'top'"),
        ({"penalty_layers": 0}, "a number of blocks from 1, got 0"),
        ({"difference": "backward"}, "must be one of forward, central"),
        ({"flatness_method": "exact", "torch_compile": True}, "no second derivative"),
        ({"flatness_method": "exact", "fsdp": "full_shard"}, "FSDP has no second derivative"),
        (
            {
                "flatness_method": "exact",
                "gradient_checkpointing": True,
                "gradient_checkpointing_kwargs": {"use_reentrant": True},
            },
            "reentrant checkpointing",
        ),
    ],
)
def test_what_cannot_work_is_refused_with_the_remedy(
    tmp_path: Path, fields: dict, told: str
) -> None:
    with pytest.raises(UnsupportedError, match=told):
        config(tmp_path, **fields)


def test_processes_that_train_alone_are_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(UnsupportedError, match=r"knows of 1; .* set use_cpu=True"):
        trainer(tmp_path, use_cpu=False)


@pytest.mark.parametrize(
    ("kind", "is_fsdp2", "method", "told"),
    [
        ("DEEPSPEED", False, "fast", "use DDP or FSDP2"),
        ("FSDP", False, "fast", "set fsdp_version: 2"),
        ("FSDP", True, "exact", "use flatness_method: finite_difference"),
    ],
)
def test_strategies_that_cannot_work_are_refused(
    kind: str, is_fsdp2: bool, method: str, told: str
) -> None:
    accelerator = SimpleNamespace(
        num_processes=1,
        distributed_type=DistributedType[kind],
        is_fsdp2=is_fsdp2,
        mixed_precision="no",
    )
    with pytest.raises(UnsupportedError, match=told):
        check_strategy(accelerator, method)


def test_attention_without_second_derivative_is_refused(tmp_path: Path) -> None:
    model = tiny_blenderbot()
    model.config._attn_implementation = "flash_attention_2"
    with pytest.raises(UnsupportedError, match="attn_implementation='eager'"):
        trainer(tmp_path, model=model, flatness_method="exact")


def test_plain_training_arguments_are_refused(tmp_path: Path) -> None:
    from transformers import TrainingArguments

    with pytest.raises(UnsupportedError, match="must be a FlatGDConfig"):
        FlatGDTrainer(
            tiny_blenderbot(),
            TrainingArguments(output_dir=str(tmp_path), use_cpu=True),
            train_dataset=ROWS,
            processing_class=byte_tokenizer(),
            **experts(),
        )
