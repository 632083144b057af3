"""The settings of a judge in a recipe."""

from typing import Any, Literal, get_args

from pydantic import Field, field_validator, model_validator

from flatgd.config.section import MOST_TOKENS, TOKENS, ModelName, Section, about

Kind = Literal["linear", "embedding", "trained", "hf", "guard"]
GuardPreset = Literal[
    "llama_guard",
    "qwen3guard",
    "shieldgemma",
    "wildguard",
    "granite_guardian",
    "granite_guardian_4",
]
WITH_MODEL = tuple(kind for kind in get_args(Kind) if kind != "linear")
OF_KIND: dict[tuple[str, ...], set[str]] = {
    WITH_MODEL: {"model", "separator", "history_lines", "max_tokens", "batch_size"},
    ("hf",): {"toxic_label", "activation", "negate"},
    ("hf", "guard"): {"template", "human", "bot"},
    ("trained",): {"epochs", "learning_rate", "train_batch_size", "top_layers"},
    ("guard",): {"preset", "instruction", "template_kwargs", "prefix", "toxic_words", "safe_words"},
}


class JudgeSettings(Section):
    """A reporting judge. `data.judge` trains it where it is trained here, and calibrates any."""

    kind: Kind = "linear"
    """linear: n-grams, trained here in seconds. embedding: a frozen encoder under a linear head,
    trained here in minutes. trained: a transformer fine-tuned here. hf: a Hugging Face sequence
    classifier. guard: a generative safety model."""
    name: str = Field(
        "",
        pattern=r"^([A-Za-z0-9][A-Za-z0-9_.-]*)?$",
        max_length=100,
        json_schema_extra=about(values="letters, digits, _ . -"),
    )
    """Name in tables and folders. Without it, the kind."""
    false_positive_rate: float = Field(
        0.02, gt=0, lt=1, json_schema_extra=about("of the safe replies")
    )
    """Fraction of the safe held-out replies that the threshold lets through as toxic."""
    model: ModelName | None = None
    """All but linear: a folder or a hub name. embedding takes any encoder, trained also any model
    that flatgd knows."""
    toxic_label: str | None = None
    """hf: the label that means toxic, or its number. Without it, found among the model's labels."""
    activation: Literal["softmax", "sigmoid"] | None = None
    """hf: turns logits into probabilities. Without it, what the model's config says."""
    negate: bool = False
    """hf: uses 1 - score, for a model whose score falls with toxicity, such as a reward model."""
    template: str = Field("{reply}", json_schema_extra=about(values="text with {reply}"))
    """hf, and guard without a preset: the model's input. {history} and {reply} are filled in."""
    separator: str = "\n"
    """Stands between the lines of the history, wherever they become one text."""
    human: str = ""
    """hf, guard: stands before each line of the human in a template, as "Human: "."""
    bot: str = ""
    """hf, guard: stands before each line of the bot in a template, the reply too."""
    preset: GuardPreset | None = None
    """guard: whose prompt and verdict to use. Without it, `template`, `toxic_words` and
    `safe_words` say so."""
    instruction: str = ""
    """guard: fills {instruction} of a preset's prompt. wildguard needs that of its model card."""
    template_kwargs: dict[str, Any] = Field(default_factory=dict)
    """guard: further arguments of the tokenizer's chat template, over those of the preset."""
    prefix: str | None = None
    """guard: text between the prompt and the verdict. Without it, the preset's."""
    toxic_words: tuple[str, ...] = ()
    """guard: verdicts that mean toxic, as the model spells them. Without it, the preset's."""
    safe_words: tuple[str, ...] = ()
    """guard: verdicts that mean safe."""
    history_lines: int = Field(3, ge=0, json_schema_extra=about("turns"))
    """All but linear: newest turns of the history that the judge reads."""
    max_tokens: int = Field(512, ge=8, le=MOST_TOKENS, json_schema_extra=TOKENS)
    """All but linear: longest input, never more than the model's positions. Longer ones lose their
    oldest text, the history first; the report says how many did."""
    batch_size: int = Field(64, ge=1, json_schema_extra=about("replies"))
    """All but linear: most replies judged at once. Lower takes less memory."""
    epochs: float = Field(3.0, gt=0, json_schema_extra=about("epochs"))
    """trained: passes over its rows."""
    learning_rate: float = Field(3e-4, gt=0)
    """trained: step size of AdamW. The default suits small models; 2e-5 suits 100M parameters and
    more."""
    train_batch_size: int = Field(32, ge=1, json_schema_extra=about("rows"))
    """trained: rows in a step."""
    top_layers: int | None = Field(None, ge=1, json_schema_extra=about("layers"))
    """trained: tunes only so many of an encoder's last layers, which is faster. Without it, all."""

    @property
    def label(self) -> str:
        return self.name or self.kind

    @field_validator("toxic_label", mode="before")
    @classmethod
    def _as_text(cls, value: Any) -> Any:
        return str(value) if isinstance(value, int) else value

    @model_validator(mode="after")
    def _check(self) -> "JudgeSettings":
        for kinds, fields in OF_KIND.items():
            if self.kind not in kinds and (own := sorted(self.model_fields_set & fields)):
                *some, last = kinds
                named = f"{', '.join(some)} or {last}" if some else last
                raise ValueError(f"{own[0]} is for kind: {named}")
        if self.kind != "linear" and not self.model:
            raise ValueError(f"kind: {self.kind} needs a model, a folder or a hub name")
        if "{reply}" not in self.template:
            raise ValueError("the template must hold {reply}")
        if self.kind == "guard":
            self._check_guard()
        return self

    def _check_guard(self) -> None:
        if self.preset:
            if "template" in self.model_fields_set:
                raise ValueError("a guard takes a preset or a template, not both")
            if self.preset == "wildguard" and not self.instruction:
                raise ValueError(
                    "preset: wildguard needs `instruction`, the sentence that follows [INST] in "
                    "the prompt of its model card"
                )
        elif not (self.toxic_words and self.safe_words):
            raise ValueError(
                "a guard needs a preset, or a template with toxic_words and safe_words, the words "
                "of its verdict"
            )
