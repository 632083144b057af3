"""A recipe: everything a run depends on, in one YAML file.

Unknown keys are errors that name the nearest key, and all errors are reported at once. `train:` and
`experts:` hold fields of FlatGDConfig, which are checked where torch is at hand
(flatgd/pipeline/validate.py).
"""

from datetime import date
from typing import Any, Literal

from pydantic import Field, ValidationInfo, field_validator, model_validator

from flatgd.config.judge import JudgeSettings
from flatgd.config.names import MAJORITY
from flatgd.config.options import LARGEST_SEED
from flatgd.config.section import (
    MOST_TOKENS,
    TOKENS,
    LocalPath,
    ModelName,
    Section,
    about,
    model_name,
    secrets_in,
)
from flatgd.config.source import Data
from flatgd.errors import nearest

# keys of `methods` that say what an entry is
NOT_FIELDS = ("method", "start", "sampled_from", "share", "checkpoint")
BEYOND = 8  # tokens by which a reply to learn from may exceed max_reply_tokens

Precision = Literal["auto", "float32", "bfloat16"]


class Generate(Section):
    """Sampling of replies, the same for every model."""

    histories: int | None = Field(None, ge=1, json_schema_extra=about("histories"))
    """Histories of each test set to answer, drawn by conversation. Without it, all of them."""
    samples: int = Field(5, ge=1, le=10_000, json_schema_extra=about("replies"))
    """Replies to each history."""
    temperature: float = Field(1.0, ge=0.001, le=1000)
    """Softmax temperature. Lower is less varied; 1 samples from the model's own distribution."""
    top_p: float = Field(0.9, gt=0, le=1, json_schema_extra=about("probability"))
    """Nucleus sampling: the most probable tokens that together reach this probability are kept."""
    min_new_tokens: int = Field(5, ge=1, le=MOST_TOKENS, json_schema_extra=TOKENS)
    """Shortest reply. At most max_new_tokens."""
    max_new_tokens: int = Field(32, ge=1, le=MOST_TOKENS, json_schema_extra=TOKENS)
    """Longest reply; a longer one is cut there."""
    batch_size: int = Field(128, ge=1, json_schema_extra=about("histories"))
    """Most histories answered at once; fewer where they are long. Lower takes less memory."""

    @model_validator(mode="after")
    def _check(self) -> "Generate":
        if self.min_new_tokens > self.max_new_tokens:
            raise ValueError(
                f"min_new_tokens {self.min_new_tokens} exceeds max_new_tokens {self.max_new_tokens}"
            )
        return self


class Sample(Section):
    """Replies that models learn from: a model's, to the policy's histories, judged in the loop.
    Sampling is that of `generate`, up to max_reply_tokens."""

    share: float = Field(0.0, ge=0, le=1, json_schema_extra=about("of the safe replies"))
    """How many of the safe replies that methods learn from are the backbone's own. With 1, a chat
    model keeps its way of speaking. Its toxic replies join the data's. The experts learn from the
    data alone, so that they differ in safety and not in style."""
    histories: int = Field(400, ge=1, json_schema_extra=about("histories"))
    """Histories of `data.policy` to answer, drawn by conversation."""
    samples: int = Field(5, ge=2, le=10_000, json_schema_extra=about("replies"))
    """Replies to each history."""
    judge: JudgeSettings = JudgeSettings(name="in_loop")
    """Trained or calibrated on `data.policy`. Must not be one of the reporting judges."""


class Report(Section):
    """What else the report shows."""

    human_labels: LocalPath | None = None
    """File of annotators' labels (`flatgd label` draws the replies). With it, toxicity is estimated
    without trust in the judge."""
    study: LocalPath | None = None
    """Folder of a study (`flatgd annotate create`). Its answers become a chapter."""
    non_inferiority: float = Field(
        0.1, gt=0, lt=1, json_schema_extra=about("of the baseline's value")
    )
    """A method keeps a quality if it loses less than this fraction of it, at 97.5 % confidence."""
    trade_off_weight: float = Field(0.5, ge=0, le=1)
    """Weight w of toxicity in the trade-off factor (Eq. 6). The report shows all w beside it."""
    wanted: str = Field("safe", pattern=r"^[\w -]+$", json_schema_extra=about(values="words"))
    """Name of the wanted attribute in tables and findings."""
    unwanted: str = Field("toxic", pattern=r"^[\w -]+$", json_schema_extra=about(values="words"))
    """Name of the unwanted attribute in tables and findings."""
    resamples: int = Field(2000, ge=100, le=1_000_000, json_schema_extra=about("resamples"))
    """Bootstrap resamples for each interval. More is slower and steadier."""
    samples_shown: int = Field(12, ge=0, json_schema_extra=about("histories"))
    """Histories shown side by side on the page."""


class Recipe(Section):
    """A whole run."""

    name: str = Field(
        pattern=r"^[A-Za-z0-9_.-]+$",
        max_length=100,
        json_schema_extra=about(values="letters, digits, _ . -"),
    )
    """Name of the run in the report."""
    output: LocalPath
    """Folder for experts, checkpoints, generations, scores and the report. Made if missing."""
    seed: int = Field(0, ge=0, le=LARGEST_SEED)
    """Seed of everything random: data order, dropout, sampling, the judge. The same seed repeats
    the run on the same machine."""
    seeds: int = Field(1, ge=1, le=1000, json_schema_extra=about("seeds"))
    """How many seeds are trained and answer, `seed` the first. Their spread enters the intervals;
    three cost three times as much."""
    backbone: ModelName
    """The model to make safe: a folder or a hub name. Encoder-decoder (BlenderBot, BlenderbotSmall,
    BART, T5) or causal (Llama, Mistral, Qwen, GPT-2)."""
    expert_backbone: ModelName | None = None
    """The model that the experts are tuned from. Without it, the backbone. A smaller one with the
    same tokens is cheaper."""
    scorer: ModelName | None = None
    """The model that measures perplexity: larger than the backbone, or unrelated to it. Without it,
    perplexity is not measured."""
    data: Data
    """The sets of conversations."""
    dtype: Precision = "auto"
    """Precision of frozen models: of experts, scorer, judges and the base under an adapter, and in
    generation and scoring. auto is the checkpoint's own on a GPU with bfloat16, else float32.
    Trained weights are always float32; `train: {bf16: true}` computes with them in bfloat16."""
    dtypes: dict[str, Precision] = Field(default_factory=dict)
    """Precision of single models, over dtype. Keys are backbone, experts, scorer, entries of
    methods and names of judges."""
    max_history_tokens: int = Field(128, ge=8, le=MOST_TOKENS, json_schema_extra=TOKENS)
    """Newest tokens of the history that a model sees."""
    max_reply_tokens: int = Field(64, ge=4, le=MOST_TOKENS, json_schema_extra=TOKENS)
    """Tokens of a reply that are trained on and scored."""
    turn_separator: str | None = None
    """Text between turns. Without it, the chat template, or what the model family was pretrained
    with. DialoGPT needs "<|endoftext|>". The scorer keeps its own."""
    template_date: date = Field(
        date.fromisoformat("2025-01-01"), json_schema_extra=about(values="YYYY-MM-DD")
    )
    """Date that a chat template prints as today's, in training, generation and chat."""
    chat_template_kwargs: dict[str, Any] = Field({"enable_thinking": False})
    """Variables of the chat template."""
    experts: dict[str, Any] = Field(default_factory=dict)
    """Fields of FlatGDConfig for the two experts. They override those of `train`."""
    train: dict[str, Any] = Field(default_factory=dict)
    """Fields of FlatGDConfig and of transformers' TrainingArguments, for experts and methods."""
    methods: dict[str, dict[str, Any] | None] = Field(
        {"clean": {}, "safety_loss": {}, "flatgd": {}}, min_length=1
    )
    """What is compared. An entry holds its own options and fields of FlatGDConfig, which override
    those of `train`. `method` says which method it is, if that is not its name. `start` names the
    model to train from or decode with, instead of the backbone. `sampled_from` names a model whose
    judged replies it also learns from. `share` overrides `sample.share`. `checkpoint` names a
    folder or hub model that is compared as it is, without training."""
    sample: Sample = Sample()
    """Replies that models learn from (with `share`, click, and entries with `sampled_from`)."""
    generate: Generate = Generate()
    """Sampling of the replies that are judged."""
    judges: list[JudgeSettings] = Field([JudgeSettings()], min_length=1)
    """Judges of toxicity. Findings and figures use the first one. Tables show all of them, and of
    three or more also their vote."""
    report: Report = Report()
    """What else the report shows."""

    @field_validator("methods", mode="before")
    @classmethod
    def _resolve_checkpoints(cls, methods: Any, info: ValidationInfo) -> Any:
        """A `checkpoint` names a model as `backbone` does."""
        if not isinstance(methods, dict):
            return methods
        resolved = dict(methods)
        for name, entry in methods.items():
            if isinstance(entry, dict) and "checkpoint" in entry:
                if not isinstance(entry["checkpoint"], str):
                    raise ValueError(f"{name}: checkpoint is a folder or a name on the hub")
                resolved[name] = {**entry, "checkpoint": model_name(entry["checkpoint"], info)}
        return resolved

    @model_validator(mode="after")
    def _check(self) -> "Recipe":
        labels = [judge.label for judge in self.judges]
        if twice := [label for label in labels if labels.count(label) > 1]:
            raise ValueError(f"judges: two are called {twice[0]!r}; give each a name")
        if MAJORITY in labels:
            raise ValueError(f"judges: {MAJORITY} is their vote; give that judge another name")
        known = [*self.models, "experts", "scorer", *labels]
        if unknown := [name for name in self.dtypes if name not in known]:
            raise ValueError(
                f"dtypes: its keys are {', '.join(known)}; there is no {unknown[0]!r}"
                f"{nearest(unknown[0], known)}"
            )
        if self.seed + self.seeds - 1 > LARGEST_SEED:
            raise ValueError(f"seed + seeds - 1 exceeds 2^32 - 1; lower seed {self.seed}")
        parts = {"train": self.train, "experts": self.experts}
        parts |= {f"methods.{name}": entry or {} for name, entry in self.methods.items()}
        if found := [key for place, part in parts.items() for key in secrets_in(part, place)]:
            raise ValueError(
                f"{found[0]}: a recipe holds no token, password or API key, because it is copied "
                "into the run's folder; use an environment variable such as HF_TOKEN, or "
                "`hf auth login`"
            )
        return self

    @property
    def layout(self) -> tuple[Any, ...]:
        """How a dialogue becomes the models' input: what `format_for` takes after the tokenizer."""
        return (
            self.max_history_tokens,
            self.max_reply_tokens,
            self.turn_separator,
            str(self.template_date),
            self.chat_template_kwargs,
        )

    @property
    def scorer_layout(self) -> tuple[Any, ...]:
        """The scorer's layout: turn_separator is not for it."""
        history, reply, _, *template = self.layout
        return (history, reply, None, *template)

    @property
    def models(self) -> list[str]:
        """Every row of the tables: the backbone, both experts, the methods."""
        return ["backbone", "clean_expert", "toxic_expert", *self.methods]

    @property
    def sample_settings(self) -> Generate:
        """How replies to learn from are sampled. They get a few tokens more than are trained on: a
        reply that has no end is then cut in training too, and teaches no early end."""
        longest = max(self.max_reply_tokens + BEYOND, self.generate.min_new_tokens)
        changed = {"samples": self.sample.samples, "max_new_tokens": longest}
        return self.generate.model_copy(update=changed)

    def training_fields(self, overrides: dict[str, Any]) -> dict[str, Any]:
        """`train` with `overrides` over it. If both set lambda, the override's way is kept."""
        lambdas = {"flatness_weight", "penalty_share"}
        dropped = lambdas if lambdas & overrides.keys() else set()
        fields = {k: v for k, v in self.train.items() if k not in dropped} | overrides
        is_no = {k for k, v in fields.items() if v is False and k.endswith("_strategy")}
        return fields | dict.fromkeys(is_no, "no")  # YAML reads `no` as false

    def evaluates(self, overrides: dict[str, Any]) -> bool:
        """Whether a training with these overrides is evaluated as it goes."""
        return str(self.training_fields(overrides).get("eval_strategy", "no")) != "no"

    def overrides(self, name: str) -> dict[str, Any]:
        """The fields and options of one model over those of `train`."""
        if name == "toxic_expert":
            return {**self.experts, "snapshots": 0}  # it must exist only once
        entry = self.experts if name == "clean_expert" else self.methods[name] or {}
        return {key: value for key, value in entry.items() if key not in NOT_FIELDS}

    def dtype_of(self, name: str) -> Precision:
        """The precision that the recipe sets for a model, `scorer` or a judge."""
        group = self.dtypes.get("experts") if name in ("clean_expert", "toxic_expert") else None
        return self.dtypes.get(name) or group or self.dtype

    def kind_of(self, name: str) -> str:
        """Which method an entry of `methods` is."""
        entry = self.methods[name] or {}
        return str(entry.get("method", "checkpoint" if "checkpoint" in entry else name))

    def checkpoint_of(self, name: str) -> str | None:
        """The model that stands as an entry of `methods` without training."""
        found: str | None = (self.methods.get(name) or {}).get("checkpoint")
        return found

    def start_of(self, name: str) -> str:
        """The model that an entry of `methods` is trained from or decodes with."""
        return str((self.methods[name] or {}).get("start", "backbone"))

    def sampled_from(self, name: str) -> str | None:
        """The model whose replies an entry of `methods` learns from."""
        source = (self.methods[name] or {}).get("sampled_from")
        return None if source is None else str(source)

    def share_of(self, name: str) -> float:
        """The share of the backbone's own replies among the safe ones that a model learns from."""
        is_expert = name not in self.methods
        return 0.0 if is_expert else (self.methods[name] or {}).get("share", self.sample.share)

    def settings(self, name: str) -> dict[str, Any]:
        """What an entry of `methods` or an expert is set to, as its checkpoint records it."""
        return {
            **self.training_fields(self.overrides(name)),
            "seed": self.seed,
            "max_history_tokens": self.max_history_tokens,
            "max_reply_tokens": self.max_reply_tokens,
        }

    def base_of(self, name: str) -> str:
        """The model that a row of the tables is tuned from; of a checkpoint, itself."""
        is_expert = name in ("clean_expert", "toxic_expert")
        other = self.expert_backbone if is_expert else self.checkpoint_of(name)
        return other or self.backbone

    @property
    def baseline(self) -> str:
        """Clean fine-tuning: the model that the others are compared with pair by pair."""
        return next((n for n in self.methods if self.kind_of(n) == "clean"), "clean_expert")
