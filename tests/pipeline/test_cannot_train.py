"""What cannot train is told before weights load, in a recipe as in Python, all of it at once."""

from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import byte_tokenizer, mild_rows, tiny_blenderbot, tiny_llama
from training import ROWS, config, experts
from transformers.integrations.integration_utils import INTEGRATION_TO_CALLBACK
from transformers.trainer_utils import SchedulerType
from transformers.training_args import OptimizerNames

from flatgd import Clean, FlatGD, FlatGDTrainer
from flatgd.config.loading import load_recipe
from flatgd.errors import RecipeError, UnsupportedError
from flatgd.models.loading import load_as
from flatgd.pipeline.loader import load_validated
from flatgd.training.trainer_components import part_faults


def made(
    folder: Path, model: Any = None, given: dict | None = None, **fields: Any
) -> FlatGDTrainer:
    plain = {"method": Clean(), "train_dataset": ROWS, "processing_class": byte_tokenizer()}
    return FlatGDTrainer(
        model or tiny_blenderbot(), config(folder, **fields), **{**plain, **(given or {})}
    )


def trained_or_refused(folder: Path, **fields: Any) -> bool:
    """Whether it trains; any end but an UnsupportedError at the start fails the test."""
    try:
        subject = made(folder, max_steps=1, **fields)
    except UnsupportedError:
        return False
    subject.train()
    return True


@pytest.mark.parametrize("name", [name.value for name in OptimizerNames])
@pytest.mark.filterwarnings("ignore")
def test_every_optimizer_trains_or_is_refused(tmp_path: Path, name: str) -> None:
    trains = trained_or_refused(tmp_path, optim=name, optim_target_modules="all-linear")
    if name in ("adamw_torch", "sgd", "adafactor", "rmsprop", "adagrad"):
        assert trains
    if "lomo" in name or "layerwise" in name:
        with pytest.raises(UnsupportedError, match="changes weights inside the backward pass"):
            config(tmp_path, optim=name)


@pytest.mark.parametrize("name", [name.value for name in SchedulerType])
@pytest.mark.filterwarnings("ignore")
def test_every_schedule_trains_or_is_refused(tmp_path: Path, name: str) -> None:
    trained_or_refused(tmp_path, lr_scheduler_type=name)


@pytest.mark.parametrize("name", INTEGRATION_TO_CALLBACK)
def test_every_tracker_is_there_or_refused(tmp_path: Path, name: str) -> None:
    kind = INTEGRATION_TO_CALLBACK[name]
    try:
        type("Tried", (kind,), {"__del__": lambda self: None})()
    except Exception:  # of its own kind each
        with pytest.raises(UnsupportedError, match=f"report_to: {name} cannot be used: .*"):
            config(tmp_path, report_to=name)
    else:
        config(tmp_path, report_to=name)


@pytest.mark.parametrize(
    ("fields", "told"),
    [
        ({"optim": "adamw_bnb_8bit"}, "optim: adamw_bnb_8bit cannot be used.*bitsandbytes"),
        ({"optim": "adamv"}, "optim: adamv cannot be used: adamv is not a valid"),
        ({"optim_args": "nonsense=1", "optim": "sgd"}, None),
        ({"report_to": ["wandb", "mlflow"]}, r"(?s)wandb cannot be used.*mlflow cannot be used"),
        ({"report_to": "nobody"}, "nobody is not supported"),
        ({"lr_scheduler_type": "cosine_with_min_lr"}, "min_lr or min_lr_rate.*lr_scheduler_kwargs"),
        ({"lr_scheduler_type": "linear", "lr_scheduler_kwargs": {"x": 1}}, "lr_scheduler_kwargs"),
        ({"lr_scheduler_type": "reduce_lr_on_plateau"}, "needs evaluations; set eval_strategy"),
    ],
)
def test_the_mend_is_told(tmp_path: Path, fields: dict, told: str | None) -> None:
    if told is None:
        config(tmp_path, **fields)
        return
    with pytest.raises(UnsupportedError, match=told):
        config(tmp_path, **fields)


def test_all_faults_come_at_once(tmp_path: Path) -> None:
    with pytest.raises(UnsupportedError) as told:
        config(tmp_path, fp16=True, optim="adamw_bnb_8bit", report_to="wandb", lora_rank=-1)
    lines = str(told.value).splitlines()
    assert len(lines) == 4
    assert not list(part_faults(config(tmp_path)))


def test_check_tells_all_and_loads_no_weights(
    recipe_file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def never(*_: Any) -> None:
        raise AssertionError("weights are loaded")

    monkeypatch.setattr("flatgd.models.loading.load_as", never)
    assert load_as is not never
    sets = [
        "train.optim=adamw_bnb_8bit", "train.report_to=wandb", "train.lora_targets=[nowhere]",
        "experts={lora_rank: 2, optim: sgd}", "max_history_tokens=200",
        "methods.flatgd={train_sampling_strategy: group_by_length, optim: sgd, report_to: none}",
        "methods.clean={save_only_model: true, save_strategy: steps, optim: sgd, report_to: none}",
    ]  # fmt: skip
    with pytest.raises(RecipeError) as told:
        load_validated(load_recipe(recipe_file, [*sets, "experts.report_to=none"]))
    text = str(told.value)
    for part in (
        "optim: adamw_bnb_8bit cannot be used",
        "report_to: wandb cannot be used",
        "flatgd: train_sampling_strategy: group_by_length needs a column",
        "clean: save_only_model keeps weights alone",
        "experts: lora_targets ['nowhere']",
    ):
        assert part in text, text
    assert text.count("adamw_bnb_8bit") == 1


@pytest.mark.parametrize("strategy", ["group_by_length", "batch_rebalance"])
def test_a_way_of_sampling_that_needs_columns_is_refused(tmp_path: Path, strategy: str) -> None:
    with pytest.raises(UnsupportedError, match=f"{strategy} needs a column"):
        made(tmp_path, train_sampling_strategy=strategy)


LONG = [{"prompt": ["a" * 500], "completion": "fine " * 100, "label": True, "conversation": "c"}]


def test_rows_longer_than_the_models_positions_are_refused(tmp_path: Path) -> None:
    """Decoders: history and reply together; encoder-decoders: each for itself. Experts too."""
    fields = {"max_history_tokens": 200, "max_reply_tokens": 100}
    rows = [*mild_rows(3, 1), *LONG]
    told = r"train_dataset: row 4 is 300 tokens long, and the model has 256 positions; lower max_h"
    with pytest.raises(UnsupportedError, match=told):
        made(tmp_path, tiny_llama(), {"train_dataset": rows}, **fields)
    made(tmp_path, tiny_llama(), {"train_dataset": rows}, **{**fields, "max_reply_tokens": 56})
    with pytest.raises(UnsupportedError, match="eval_dataset: row 1 is 300 tokens long"):
        made(tmp_path, tiny_llama(), {"eval_dataset": LONG}, **fields)
    subject = made(tmp_path, tiny_llama(), **fields)
    with pytest.raises(UnsupportedError, match="eval_dataset: row 1 is 300 tokens long"):
        subject.evaluate(LONG)
    with pytest.raises(UnsupportedError, match=r"row 4 is 200 tokens long.*has 128 positions"):
        made(tmp_path, None, {"train_dataset": rows}, max_reply_tokens=200)
    made(tmp_path, None, {"train_dataset": rows}, max_history_tokens=128, max_reply_tokens=128)


def test_an_experts_positions_count(tmp_path: Path) -> None:
    short = tiny_llama(1)
    short.config.max_position_embeddings = 64
    given = {"method": FlatGD(clean_expert=tiny_llama(2), toxic_expert=short)}
    rows = [*mild_rows(3, 1), *LONG]
    with pytest.raises(UnsupportedError, match="and toxic_expert has 64 positions"):
        made(tmp_path, tiny_llama(), {**given, "train_dataset": rows}, max_history_tokens=40)


def test_a_loss_of_the_callers_own_is_not_passed_over(tmp_path: Path) -> None:
    with pytest.raises(UnsupportedError, match="compute_loss_func would have no effect"):
        made(tmp_path, None, {"compute_loss_func": lambda *_: torch.zeros(())})


def test_positions_that_suffice_are_no_matter(tmp_path: Path) -> None:
    made(tmp_path, None, {"method": FlatGD(**experts())})
