"""Models, adapters and templates that are incomplete or hostile: each must end in a clear message.

`benchmarks.faults --what hostile` runs `CASES`. A case gets an empty folder and returns None if
flatgd held, else a line that says what broke.
"""

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig, get_peft_model
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from torch import Tensor
from transformers import (
    AutoModel,
    AutoModelForSequenceClassification,
    BertConfig,
    BertForSequenceClassification,
    BertModel,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedTokenizerFast,
)

from flatgd import Clean, FlatGDConfig, FlatGDTrainer
from flatgd.errors import FlatGDError, ModelError, UnsupportedError
from flatgd.methods import Director
from flatgd.methods.director import FILE
from flatgd.models import chat_template
from flatgd.models.adapters import load, save
from flatgd.models.dialogue_format import format_for
from flatgd.models.loading import ADAPTER, load_as, load_model

Case = Callable[[Path], str | None]
State = dict[str, Tensor]
BERT: dict[str, Any] = {
    "vocab_size": 32,
    "hidden_size": 16,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
}
LLAMA: dict[str, Any] = {
    "hidden_size": 16,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "head_dim": 8,
}
PRECISION = "ACCELERATE_MIXED_PRECISION"
TURNS = "{% for m in messages %}{{ m.content }}</s>{% endfor %}"


def refused(call: Callable[[], Any], kind: type[FlatGDError], words: str) -> str | None:
    """None if `call` raises `kind` with `words` in its message."""
    try:
        call()
    except kind as error:
        return None if words in str(error) else f"the message lacks {words!r}: {error}"
    except Exception as error:
        return f"{type(error).__name__} instead of {kind.__name__}: {error}"
    return f"accepted, where {words!r} should be refused"


def llama(folder: Path) -> Path:
    config = LlamaConfig(vocab_size=300, intermediate_size=16, num_key_value_heads=2, **LLAMA)
    LlamaForCausalLM(config).save_pretrained(folder)
    return folder


def classifier(folder: Path) -> Path:
    BertForSequenceClassification(BertConfig(intermediate_size=16, **BERT)).save_pretrained(folder)
    return folder


def adapter(folder: Path) -> Path:
    base = load_model(llama(folder / "base"))
    lora = LoraConfig(r=2, target_modules=["q_proj"], task_type="CAUSAL_LM")
    save(get_peft_model(base, lora), folder / "adapter")
    return folder / "adapter"


def changed(folder: Path, change: Callable[[State], State], name: str = "model") -> Path:
    path = folder / f"{name}.safetensors"
    save_file(change(load_file(path)), path, {"format": "pt"})
    return folder


def without(part: str) -> Callable[[State], State]:
    return lambda state: {name: value for name, value in state.items() if part not in name}


def prefixed(state: State) -> State:
    return {f"_orig_mod.{name}": value for name, value in state.items()}


def backbone(change: Callable[[State], State]) -> Case:
    return lambda folder: refused(
        lambda: load_model(changed(llama(folder / "m"), change)), ModelError, "do not fit"
    )


def wrong_adapter(change: Callable[[State], State]) -> Case:
    return lambda folder: refused(
        lambda: load(changed(adapter(folder), change, "adapter_model")), ModelError, "do not fit"
    )


def judge(make: Callable[[Path], Path]) -> Case:
    def run(folder: Path) -> str | None:
        name = str(make(folder))
        return refused(
            lambda: load_as(AutoModelForSequenceClassification, name, "classifier"),
            ModelError,
            "must be a trained classifier",
        )

    return run


def headless(folder: Path) -> Path:
    return changed(classifier(folder), without("classifier."))


def bare(folder: Path) -> Path:
    BertModel(BertConfig(intermediate_size=16, **BERT)).save_pretrained(folder)
    return folder


def labelled(folder: Path) -> Path:
    """A causal model whose configuration has the labels of a classifier."""
    path = llama(folder) / "config.json"
    labels = {"id2label": {"0": "safe", "1": "toxic"}}
    path.write_text(json.dumps(json.loads(path.read_text()) | labels))
    return folder


def encoder(folder: Path) -> str | None:
    name = str(changed(classifier(folder), without("attention.output")))
    return refused(lambda: load_as(AutoModel, name, "body"), ModelError, "do not fit")


def legitimate(folder: Path) -> str | None:
    """What transformers and peft saved themselves must load."""
    try:
        load(adapter(folder))
        judged = str(classifier(folder / "judge"))
        load_as(AutoModelForSequenceClassification, judged, "classifier")
        load_as(AutoModel, str(changed(folder / "judge", without("pooler"))), "body")
    except FlatGDError as error:
        return f"refused: {error}"
    return None


def ring(links: int) -> Case:
    def run(folder: Path) -> str | None:
        names = [folder / str(number) for number in range(links)]
        for place, name in enumerate(names):
            name.mkdir()
            base = {"base_model_name_or_path": str(names[(place + 1) % links])}
            (name / ADAPTER).write_text(json.dumps({"peft_type": "LORA", **base}))
        return refused(lambda: load(names[0]), ModelError, "leads back to")

    return run


def director(folder: Path) -> str | None:
    save_file({"bias": torch.zeros(3)}, folder / FILE)
    return refused(lambda: Director.guide(folder, {}), ModelError, "must hold one matrix")


def tokenizer(template: str) -> PreTrainedTokenizerFast:
    specials = ["<pad>", "<s>", "</s>"]
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocab = {token: number for number, token in enumerate([*specials, *letters])}
    core = Tokenizer(models.BPE(vocab=vocab, merges=[]))
    core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    core.decoder = decoders.ByteLevel()
    names = dict(zip(("pad_token", "bos_token", "eos_token"), specials, strict=True))
    return PreTrainedTokenizerFast(tokenizer_object=core, chat_template=template, **names)


def template(code: str, words: str) -> Case:
    def run(folder: Path) -> str | None:
        kept, chat_template.MAX_SECONDS = chat_template.MAX_SECONDS, 1.0
        try:
            config = LlamaConfig(vocab_size=300, **LLAMA)
            return refused(lambda: format_for(config, tokenizer(code + TURNS)), ModelError, words)
        finally:
            chat_template.MAX_SECONDS = kept

    return run


def trainer(folder: Path) -> FlatGDTrainer:
    """A trainer under whatever precision the environment names."""
    rows = [{"prompt": "hi", "completion": "hello", "label": True}] * 2
    return FlatGDTrainer(
        load_model(llama(folder / "m")),
        FlatGDConfig(output_dir=str(folder / "out"), use_cpu=True, max_steps=1),
        train_dataset=rows,
        processing_class=tokenizer(TURNS),
        method=Clean(),
    )


def in_precision(name: str, check: Case) -> Case:
    def run(folder: Path) -> str | None:
        kept = os.environ.get(PRECISION)
        os.environ[PRECISION] = name
        try:
            return check(folder)
        finally:
            if kept is None:
                del os.environ[PRECISION]
            else:
                os.environ[PRECISION] = kept

    return run


def rho_of_bf16(folder: Path) -> str | None:
    settings = trainer(folder).penalty_settings()
    rho = settings and settings.rho
    return None if rho == 1e-2 else f"rho is {rho}, and bfloat16 needs 0.01"


def fp16(folder: Path) -> str | None:
    return refused(lambda: trainer(folder), UnsupportedError, "fp16")


LOOP = "{% for a in range(99999) %}" * 3 + "{% endfor %}" * 3
CASES: list[tuple[str, Case]] = [
    ("models that transformers and peft saved", legitimate),
    ("backbone with _orig_mod. prefixes", backbone(prefixed)),
    ("backbone without its layers", backbone(without("layers"))),
    ("backbone with an empty safetensors file", backbone(lambda state: {})),
    ("backbone with a weight too many", backbone(lambda state: {**state, "x": torch.zeros(1)})),
    ("hf judge without its head", judge(headless)),
    ("hf judge that is a bare encoder", judge(bare)),
    ("hf judge that is a causal model with labels", judge(labelled)),
    ("encoder of a trained judge without weights", encoder),
    ("adapter with _orig_mod. prefixes", wrong_adapter(prefixed)),
    ("adapter with an empty safetensors file", wrong_adapter(lambda state: {})),
    ("adapter without half of its weights", wrong_adapter(without("lora_B"))),
    ("adapter that names itself as its base", ring(1)),
    ("three adapters in a ring", ring(3)),
    ("Director's second head with wrong names", director),
    ("chat template that divides by zero", template("{{ 1 / 0 }}", "ZeroDivisionError")),
    ("chat template that loops for very long", template(LOOP, "did not end within")),
    ("chat template over a huge range", template("{{ range(10 ** 12) }}", "OverflowError")),
    ("bf16 from the environment", in_precision("bf16", rho_of_bf16)),
    ("fp16 from the environment", in_precision("fp16", fp16)),
]
