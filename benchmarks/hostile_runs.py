"""Ways to have a finished run reported, pushed or exported as what it is not.

Each function tries one of them in an empty folder. It returns None if flatgd holds, else a line
that says what broke. `CASES` names them all.
"""

import json
import shutil
import tempfile
from collections.abc import Callable
from functools import cache, partial
from io import StringIO
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from transformers import BlenderbotConfig, BlenderbotForConditionalGeneration

from benchmarks.table import DEMO
from flatgd import Clean, FlatGDConfig, FlatGDTrainer, load_model, load_tokenizer
from flatgd.artifacts import layout
from flatgd.artifacts.store import ArtifactStore
from flatgd.config.loading import load_recipe
from flatgd.errors import FlatGDError, UnsupportedError
from flatgd.models.adapters import is_toxic_expert, with_adapter
from flatgd.pipeline.pipeline import Pipeline
from flatgd.publish.hub import ModelPackage
from flatgd.report.build import build_report
from flatgd.run import report
from flatgd.runtime.display import Display

TOKEN = "hf_aSecretThatNobodyMayRead"
METHODS = "{clean: {}, flatgd: {}}"
SECTIONS = ("policy", "judge", "test")


def prepare(folder: Path) -> Path:
    """A small backbone, data and a recipe; returns the recipe."""
    torch.manual_seed(0)
    config = BlenderbotConfig(
        vocab_size=6000,
        d_model=16,
        encoder_layers=1,
        decoder_layers=1,
        encoder_attention_heads=2,
        decoder_attention_heads=2,
        encoder_ffn_dim=32,
        decoder_ffn_dim=32,
        max_position_embeddings=128,
        scale_embedding=False,
        forced_eos_token_id=None,
    )
    for name in ("backbone", "other"):
        BlenderbotForConditionalGeneration(config).save_pretrained(folder / name)
        load_tokenizer(str(DEMO / "backbone")).save_pretrained(folder / name)
    for number, name in enumerate(SECTIONS):
        rows = [_row(number, n) for n in range(24)]
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    data = [f"  {n}: [{{name: {n}, format: jsonl, path: {n}.jsonl}}]" for n in SECTIONS]
    recipe = folder / "recipe.yaml"
    recipe.write_text(
        "name: tiny\noutput: run\nbackbone: ./backbone\nscorer: ./backbone\ndata:\n"
        + "\n".join(data)
        + f"\nmethods: {METHODS}\njudges: [{{kind: linear}}]\n"
        "max_reply_tokens: 16\nmax_history_tokens: 32\n"
        "train: {max_steps: 2, per_device_train_batch_size: 8, learning_rate: 1e-3}\n"
        "generate: {histories: 4, samples: 2, max_new_tokens: 6}\nreport: {resamples: 100}\n"
    )
    return recipe


def _row(section: int, number: int) -> dict[str, Any]:
    return {
        "prompt": ["hello there", f"do you like tea? ({section}.{number})"],
        "completion": "i like tea too." if number % 2 else "nobody likes your hat.",
        "label": bool(number % 2),
        "conversation": f"c{section}-{number // 2}",
    }


def run(recipe: Path, *overrides: str) -> None:
    pipeline = Pipeline(load_recipe(recipe, [*overrides]), Display(Console(file=StringIO())))
    pipeline.run()
    report(pipeline)


@cache
def _finished(*overrides: str) -> Path:
    """The folder of a finished run, made once."""
    folder = Path(tempfile.mkdtemp(prefix="flatgd-hostile-"))
    run(prepare(folder), *overrides)
    return folder


def finished(folder: Path, *overrides: str) -> Path:
    """A copy of a finished run in `folder`; returns its recipe."""
    shutil.copytree(_finished(*overrides), folder, dirs_exist_ok=True)
    return folder / "recipe.yaml"


def refused(act: Callable[[], Any], what: str, *words: str) -> str | None:
    """None if `act` is refused with a message that has all the words."""
    try:
        act()
    except FlatGDError as error:
        absent = [word for word in words if word not in str(error)]
        return f"{what}: the message lacks {absent[0]!r}: {error}" if absent else None
    return f"{what}: not refused"


CHANGES = {
    "generate.temperature=0.5": ("generate.temperature", "0.5", "flatgd run"),
    "judges.0.false_positive_rate=0.2": ("false_positive_rate", "0.02", "0.2"),
    "judges=[{kind: hf, model: ./other, name: linear}]": ("judges.0.kind", "linear", "hf"),
    "backbone=./other": ("backbone", "other"),
    "scorer=./other": ("scorer", "other"),
    "data.test.0.path=judge.jsonl": ("data.test.0.path", "judge.jsonl"),
    "methods={clean: {}, flatgd: {method: safety_loss}}": ("methods.flatgd.method", "safety_loss"),
    "train.learning_rate=0.1": ("train.learning_rate", "0.001", "0.1"),
    "seed=7": ("seed", "7"),
}


def another_recipe_is_reported(folder: Path) -> str | None:
    """A report, a card and an export of a recipe that is not the one that was run."""
    recipe = finished(folder)
    build_report(load_recipe(recipe))  # the same recipe, in a folder that was moved
    build_report(load_recipe(recipe, ["report.wanted=kind", "report.unwanted=rude"]))
    for change, words in CHANGES.items():
        changed = load_recipe(recipe, [change])
        broken = refused(partial(build_report, changed), f"report with {change}", *words)
        broken = broken or refused(
            partial(ModelPackage, changed, "flatgd", "me/x"), f"card with {change}", *words
        )
        if broken:
            return broken
    return None


def a_flipped_bit_is_shown(folder: Path) -> str | None:
    """Scores, generations, a judge's quality, a summary and a checkpoint with one bit flipped."""
    recipe = load_recipe(finished(folder))
    root = recipe.output
    shown = {
        layout.scores("flatgd"): lambda: build_report(recipe),
        layout.generations("clean"): lambda: build_report(recipe),
        layout.judge_quality("linear"): lambda: build_report(recipe),
        layout.training_log("flatgd"): lambda: build_report(recipe),
        layout.SUMMARY: lambda: ModelPackage(recipe, "flatgd", "me/x"),
        f"{layout.model('flatgd')}/model.safetensors": lambda: ModelPackage(
            recipe, "flatgd", "me/x"
        ).pack(folder / "bot"),
    }
    for name, show in shown.items():
        whole = (root / name).read_bytes()
        flipped = bytearray(whole)
        flipped[len(flipped) // 2] ^= 1
        (root / name).write_bytes(flipped)
        if broken := refused(show, f"{name} with a flipped bit", "flatgd"):
            return broken
        (root / name).write_bytes(whole)
    return "a refused export left a folder" if (folder / "bot").exists() else None


def earlier_numbers_on_a_card(folder: Path) -> str | None:
    """A card with the summary of scores that were replaced since."""
    recipe = load_recipe(finished(folder))
    store = ArtifactStore(recipe.output)
    old = (recipe.output / layout.SUMMARY).read_bytes()
    store.record(layout.SUMMARY, "of other scores")
    if broken := refused(lambda: ModelPackage(recipe, "flatgd", "x"), "old summary", "report"):
        return broken
    build_report(recipe)
    ModelPackage(recipe, "flatgd", "x")
    return None if (recipe.output / layout.SUMMARY).read_bytes() == old else "another summary"


def paths_and_tokens_leave(folder: Path) -> str | None:
    """Local paths and tokens in an exported folder."""
    settings = f"train.hub_token={TOKEN}"
    recipe = load_recipe(finished(folder, settings), [settings])
    packed = ModelPackage(recipe, "flatgd", "me/x").pack(folder / "bot")
    private = {
        TOKEN,
        str(folder),
        str(_finished(settings)),
        str(Path.home()),
        tempfile.gettempdir(),
    }
    for path in [*packed.rglob("*"), *recipe.output.rglob("*")]:
        is_ours = path.is_relative_to(packed)
        if path.is_file() and path.suffix != ".safetensors":
            text = path.read_bytes().decode(errors="replace")
            for word in private if is_ours else {TOKEN}:
                if word in text:
                    return f"{path.name} holds {word}"
    return None


def a_toxic_expert_is_a_backbone(folder: Path) -> str | None:
    """A recipe that starts from a toxic expert; it must fail before anything is trained."""
    recipe = finished(folder)
    for role in ("backbone", "expert_backbone"):
        given = load_recipe(recipe, [f"{role}=run/experts/toxic", "output=second"])
        broken = refused(partial(Pipeline, given), f"{role}: toxic", role, "toxic expert")
        if broken or (folder / "second").exists():
            return broken or f"{role}: a run was begun"
    return None


def toxic_trainer(folder: Path, **fields: Any) -> FlatGDTrainer:
    """A training of a toxic expert as a LoRA adapter, by hand."""
    prepare(folder)
    config = FlatGDConfig(
        output_dir=str(folder / "toxic"),
        max_steps=2,
        lora_rank=2,
        per_device_train_batch_size=4,
        max_reply_tokens=16,
        max_history_tokens=32,
        use_cpu=True,
        disable_tqdm=True,
        **fields,
    )
    model = load_model(str(folder / "backbone"))
    model.config.flatgd_role = "toxic expert"
    return FlatGDTrainer(
        with_adapter(model, config),
        config,
        train_dataset=[_row(0, n) for n in range(0, 24, 2)],
        processing_class=load_tokenizer(str(folder / "backbone")),
        method=Clean(),
    )


def a_toxic_checkpoint_is_unmarked(folder: Path) -> str | None:
    """The checkpoints of a LoRA toxic expert, whose folders have no config.json."""
    trainer = toxic_trainer(folder, save_strategy="steps", save_steps=1)
    trainer.train()
    kept = sorted((folder / "toxic").glob("checkpoint-*"))
    unmarked = [path.name for path in kept if not is_toxic_expert(path)]
    if not kept or unmarked:
        return f"unmarked: {unmarked}" if kept else "no checkpoint was saved"
    return None


def a_trainer_pushes_a_toxic_expert(folder: Path) -> str | None:
    """`push_to_hub()` of a trainer whose model is marked."""
    trainer = toxic_trainer(folder)
    try:
        trainer.push_to_hub()
    except UnsupportedError:
        return None
    except Exception as error:  # it tried to reach the hub
        return f"push_to_hub went on: {type(error).__name__}"
    return "push_to_hub sent a toxic expert"


CASES: list[tuple[str, Callable[[Path], str | None]]] = [
    ("another recipe is reported", another_recipe_is_reported),
    ("a flipped bit is shown", a_flipped_bit_is_shown),
    ("earlier numbers on a card", earlier_numbers_on_a_card),
    ("paths and tokens leave", paths_and_tokens_leave),
    ("a toxic expert is a backbone", a_toxic_expert_is_a_backbone),
    ("a toxic checkpoint is unmarked", a_toxic_checkpoint_is_unmarked),
    ("a trainer pushes a toxic expert", a_trainer_pushes_a_toxic_expert),
]
