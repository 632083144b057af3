"""What judges read: which end is cut, what is counted, and that no score depends on its batch."""

import json
from io import StringIO
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import byte_tokenizer, tiny_blenderbot, tiny_llama
from rich.console import Console
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import (
    AutoModelForSequenceClassification,
    BertConfig,
    BertForSequenceClassification,
    BertModel,
    CTRLTokenizer,
    GPT2Config,
    GPT2ForSequenceClassification,
    GPT2Model,
    LlamaConfig,
    LlamaForSequenceClassification,
    LlamaModel,
    OPTConfig,
    OPTForSequenceClassification,
    PreTrainedTokenizerFast,
    Qwen2Config,
    Qwen2ForSequenceClassification,
    RobertaConfig,
    RobertaForSequenceClassification,
    XLNetConfig,
    XLNetForSequenceClassification,
)

from flatgd.config.judge import JudgeSettings
from flatgd.config.loading import load_recipe
from flatgd.errors import ModelError, RecipeError
from flatgd.judges.classifier import HFJudge, check_judge
from flatgd.judges.reading import Cuts, longest_input
from flatgd.judges.registry import make_judge
from flatgd.judges.trained import TrainedJudge, check_trained_judge
from flatgd.pipeline.loader import load_validated
from flatgd.pipeline.pipeline import Pipeline
from flatgd.report.findings import findings
from flatgd.report.sentences import sentence
from flatgd.runtime.display import Display

SPECIALS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "<s>", "</s>"]
OLD = [f"old{n}" for n in range(60)]
REPLY = [f"said{n}" for n in range(60)]
WORDS = [*SPECIALS, *OLD, *REPLY, "after", "|"]
SHAPE = {"vocab_size": len(WORDS), "hidden_size": 16, "num_hidden_layers": 1}
SHAPE |= {"num_attention_heads": 2, "intermediate_size": 32}
MARKERS = {
    "bert": ("[CLS] $A [SEP]", "[CLS] $A [SEP] $B [SEP]"),
    "bos": ("<s> $A", "<s> $A <s> $B"),
    "none": ("$A", "$A $B"),
    "both": ("<s> $A </s>", "<s> $A </s> $B </s>"),
}


def word_tokenizer(markers: str, **options) -> PreTrainedTokenizerFast:
    inner = Tokenizer(models.WordLevel({w: i for i, w in enumerate(WORDS)}, unk_token="[UNK]"))
    inner.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    single, pair = MARKERS[markers]
    numbers = [(word, n) for n, word in enumerate(SPECIALS)]
    inner.post_processor = processors.TemplateProcessing(
        single=single, pair=pair, special_tokens=numbers
    )
    known = {"unk_token": "[UNK]", "bos_token": "<s>", "eos_token": "</s>", **options}
    return PreTrainedTokenizerFast(tokenizer_object=inner, **known)


def classifier(folder: Path, tokenizer: PreTrainedTokenizerFast, **config) -> Path:
    torch.manual_seed(0)
    labels = {"id2label": {0: "ok", 1: "toxic"}, "initializer_range": 0.5}
    whole = BertConfig(**SHAPE, max_position_embeddings=20, **labels, **config)
    BertForSequenceClassification(whole).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def words_read(judge: HFJudge, history: list[str], reply: list[str]) -> list[str]:
    read = judge._read(((" ".join(history),), " ".join(reply)))["input_ids"]
    return [WORDS[number] for number in read]


@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize("markers", list(MARKERS))
@pytest.mark.parametrize(
    "template",
    ["{history} | {reply}", "{reply} after {history}", "after {history} | {reply} after"],
)
def test_a_classifiers_input_loses_its_oldest_text(
    tmp_path: Path, side: str, markers: str, template: str
) -> None:
    """However long the history, what is left is its newest end; then the reply's beginning goes."""
    tokenizer = word_tokenizer(markers, truncation_side=side)
    folder = classifier(tmp_path, tokenizer)
    judge = HFJudge.load(JudgeSettings(kind="hf", model=str(folder), template=template))
    fixed = len(words_read(judge, [], [])) if markers != "none" else len(template.split()) - 2
    assert judge.cuts.take_summary() == ""
    for many, reply in ((40, 3), (60, 10), (40, 40), (3, 60), (2, 3)):
        room = 20 - fixed
        replied = REPLY[:reply][-room:]
        kept = OLD[:many][max(0, many - (room - len(replied))) :]
        filled = template.replace("{history}", " ".join(kept)).replace("{reply}", " ".join(replied))
        single = MARKERS[markers][0].replace("$A", filled)
        assert words_read(judge, OLD[:many], REPLY[:reply]) == single.split()
    assert judge.cuts == Cuts(5, 4, 2)


@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize("markers", list(MARKERS))
def test_an_encoders_pair_loses_its_oldest_text(tmp_path: Path, side: str, markers: str) -> None:
    tokenizer = word_tokenizer(markers, truncation_side=side, padding_side=side)
    tokenizer.save_pretrained(tmp_path)
    BertModel(BertConfig(**SHAPE, max_position_embeddings=20)).save_pretrained(tmp_path)
    judge = TrainedJudge.untrained(JudgeSettings(kind="trained", model=str(tmp_path)))
    pair = MARKERS[markers][1]
    room = 20 - len(pair.split()) + 2
    cuts = Cuts()
    for many, reply in ((40, 3), (60, 10), (40, 40), (2, 3)):
        item = {"pair": ((" ".join(OLD[:many]),), " ".join(REPLY[:reply]))}
        batch = judge.collate([item], cuts)
        replied = REPLY[:reply][-room:]
        kept = OLD[:many][max(0, many - (room - len(replied))) :]
        wanted = pair.replace("$A", " ".join(kept)).replace("$B", " ".join(replied)).split()
        assert [WORDS[n] for n in batch["input_ids"][0]] == wanted
        masked = zip(wanted, batch["reply_mask"][0].tolist(), strict=True)
        assert [word for word, of_reply in masked if of_reply] == replied
    assert cuts == Cuts(4, 3, 1)


@pytest.mark.parametrize("kind", ["llama", "gpt2", "blenderbot"])
def test_a_known_familys_input_loses_its_oldest_text(tmp_path: Path, kind: str) -> None:
    """In tokens of one byte; history and reply share max_tokens, the reply first."""
    if kind == "gpt2":
        config = GPT2Config(vocab_size=260, n_embd=16, n_layer=1, n_head=2, n_positions=64)
        model: torch.nn.Module = GPT2Model(config)
    else:
        model = tiny_llama() if kind == "llama" else tiny_blenderbot()
    model.save_pretrained(tmp_path)
    tokenizer = byte_tokenizer()
    tokenizer.save_pretrained(tmp_path)
    judge = TrainedJudge.untrained(
        JudgeSettings(kind="trained", model=str(tmp_path), max_tokens=64)
    )
    old, new = "a" * 150 + "b" * 10, "c" * 20
    cuts = Cuts()

    def read(history: tuple[str, ...], reply: str) -> tuple[str, int]:
        batch = judge.collate([{"pair": (history, reply)}], cuts)
        rows = [batch["input_ids"][0]]
        if "decoder_input_ids" in batch:
            rows.append(batch["decoder_input_ids"][0])
        return tokenizer.decode(torch.cat(rows)), sum(map(len, rows))

    text, length = read((old, "newest line"), new)
    assert "bbb" in text
    assert "newest line" in text
    assert new in text
    assert length in (64, 65)  # the decoder's start stands for the end that it does not read
    text, length = read((old, "newest line"), "x" * 80 + "END")
    assert "END" in text
    assert "newest" not in text
    assert length in (64, 65)
    text, length = read(("hi",), "y" * 50)
    assert text.count("y") == 50  # a short history leaves its room to the reply
    assert cuts == Cuts(3, 2, 1)


def test_a_python_tokenizer_loses_its_oldest_text_too(tmp_path: Path) -> None:
    """CTRL's says nothing of letters; here it has one token a letter."""
    letters = [*"abcdefghijklmnopqrstuvwxyz|"]
    vocab = ["<unk>", *letters, *(f"{letter}@@" for letter in letters)]
    (tmp_path / "vocab.json").write_text(json.dumps({w: i for i, w in enumerate(vocab)}))
    (tmp_path / "merges.txt").write_text("#version: 0.2\n")
    tokenizer = CTRLTokenizer(str(tmp_path / "vocab.json"), str(tmp_path / "merges.txt"))
    assert not tokenizer.is_fast
    folder = classifier(tmp_path / "model", word_tokenizer("bert"))
    template = {"template": "{reply} | {history}", "max_tokens": 12}
    judge = HFJudge.load(JudgeSettings(kind="hf", model=str(folder), **template))
    judge.tokenizer = tokenizer
    for history, reply, wanted in (
        ("oldesttextnew", "yes", "yes|" + "oldesttextnew"[-8:]),
        ("oldest", "abcdefghijklmnop", "fghijklmnop|"),
        ("old", "yes", "yes|old"),
    ):
        read = judge._read(((history,), reply))["input_ids"]
        assert "".join(vocab[n].removesuffix("@@") for n in read) == wanted
    assert judge.cuts == Cuts(3, 2, 1)


def test_no_input_is_longer_than_the_models_positions() -> None:
    asked = JudgeSettings(kind="hf", model="a/b", max_tokens=500)
    tokenizer = word_tokenizer("bert")
    for config, longest in (
        (BertConfig(max_position_embeddings=128), 128),
        (RobertaConfig(max_position_embeddings=130, pad_token_id=1), 128),
        (GPT2Config(n_positions=256), 256),
        (XLNetConfig(), 500),  # which says -1 for any number
        (LlamaConfig(max_position_embeddings=4096), 500),
    ):
        assert longest_input(asked, config, tokenizer) == longest
    tokenizer.model_max_length = 100
    assert longest_input(asked, LlamaConfig(), tokenizer) == 100


def test_a_template_that_leaves_no_room_is_refused(tmp_path: Path) -> None:
    folder = classifier(tmp_path, word_tokenizer("bert"))
    long = JudgeSettings(kind="hf", model=str(folder), template="after " * 18 + "{reply}")
    with pytest.raises(ModelError, match="reads at most 20 tokens, but its template"):
        check_judge(long)
    longer = long.model_copy(update={"template": "after " * 19 + "{reply}"})
    with pytest.raises(ModelError, match="raise max_tokens, shorten the template"):
        HFJudge.load(longer).score([((), "said1 " * 40)])
    BertModel(BertConfig(**SHAPE, max_position_embeddings=3)).save_pretrained(tmp_path)
    with pytest.raises(ModelError, match="reads at most 3 tokens"):
        check_trained_judge(JudgeSettings(kind="trained", model=str(tmp_path)))


def test_an_encoder_with_a_python_tokenizer_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = classifier(tmp_path, word_tokenizer("bert"))
    monkeypatch.setattr(PreTrainedTokenizerFast, "is_fast", False)
    with pytest.raises(ModelError, match="needs a fast tokenizer"):
        check_trained_judge(JudgeSettings(kind="trained", model=str(folder)))


# Padding

HEADS = {
    "gpt2": lambda own: GPT2ForSequenceClassification(
        GPT2Config(vocab_size=len(WORDS), n_embd=16, n_layer=1, n_head=2, n_positions=64, **own)
    ),
    "llama": lambda own: LlamaForSequenceClassification(
        LlamaConfig(**SHAPE, max_position_embeddings=64, num_key_value_heads=2, **own)
    ),
    "qwen2": lambda own: Qwen2ForSequenceClassification(
        Qwen2Config(**SHAPE, max_position_embeddings=64, num_key_value_heads=2, **own)
    ),
    "opt": lambda own: OPTForSequenceClassification(
        OPTConfig(
            **{k: v for k, v in SHAPE.items() if k != "intermediate_size"},
            **{"ffn_dim": 32, "word_embed_proj_dim": 16, "max_position_embeddings": 64, **own},
        )
    ),
    "roberta": lambda own: RobertaForSequenceClassification(
        RobertaConfig(**SHAPE, max_position_embeddings=64, **own)
    ),
    "xlnet": lambda own: XLNetForSequenceClassification(
        XLNetConfig(vocab_size=len(WORDS), d_model=16, n_layer=1, n_head=2, d_inner=32, **own)
    ),
}
TEXTS = [
    *("said1", "said2 said3 old1", "old4 " * 9 + "said5", "said9 said8", "old9 old8 old7 said3"),
    *("said4 [PAD] old3", "old5 said6 [PAD]", "said7 </s>", "</s> said2 </s> said3", ""),
]


@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize("of_tokenizer", [None, "[PAD]", "</s>"])
@pytest.mark.parametrize(
    ("kind", "of_config"),
    [
        (kind, of_config)
        for kind in HEADS
        for of_config in (None, "[PAD]", "</s>")
        if (kind, of_config) != ("roberta", None)  # it counts positions from its padding token on
    ],
)
def test_scores_of_a_batch_are_those_of_one_by_one(
    tmp_path: Path, kind: str, of_config: str | None, of_tokenizer: str | None, side: str
) -> None:
    """Whatever is the padding token, in the tokenizer or in the config, also inside a text."""
    torch.manual_seed(0)
    number = None if of_config is None else WORDS.index(of_config)
    names = {"id2label": {0: "ok", 1: "toxic"}, "label2id": {"ok": 0, "toxic": 1}}
    own = {"pad_token_id": number, "bos_token_id": 4, "eos_token_id": 5, **names}
    model = HEADS[kind](own).eval()
    for weights in model.parameters():
        torch.nn.init.normal_(weights, std=0.5)
    model.save_pretrained(tmp_path)
    more = {} if of_tokenizer is None else {"pad_token": of_tokenizer}
    tokenizer = word_tokenizer("none", padding_side=side, **more)
    tokenizer.save_pretrained(tmp_path)
    plain = AutoModelForSequenceClassification.from_pretrained(tmp_path).eval()
    one_by_one = []
    for text in TEXTS:
        ids = torch.tensor([tokenizer(text)["input_ids"] or [WORDS.index("<s>")]])
        with torch.no_grad():
            one_by_one.append(float(plain(ids).logits.double().softmax(-1)[0, 1]))
    settings = JudgeSettings(kind="hf", model=str(tmp_path), batch_size=3)
    check_judge(settings)
    judge = HFJudge.load(settings)
    judge.tokenizer = tokenizer  # transformers makes one of its own for qwen2
    found = judge.score([((), text) for text in TEXTS])
    assert found == pytest.approx(one_by_one, abs=1e-4)
    assert np.ptp(one_by_one) > 1e-3


@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize("kind", ["gpt2", "llama", "bert"])
def test_a_trained_judge_needs_no_padding_token(tmp_path: Path, kind: str, side: str) -> None:
    torch.manual_seed(0)
    base = {
        "gpt2": lambda: GPT2Model(HEADS["gpt2"]({}).config),
        "llama": lambda: LlamaModel(HEADS["llama"]({}).config),
        "bert": lambda: BertModel(BertConfig(**SHAPE, max_position_embeddings=64)),
    }[kind]()
    base.save_pretrained(tmp_path)
    word_tokenizer("bert" if kind == "bert" else "bos", padding_side=side).save_pretrained(tmp_path)
    settings = JudgeSettings(kind="trained", model=str(tmp_path), batch_size=4)
    check_trained_judge(settings)
    judge = TrainedJudge.untrained(settings)
    torch.nn.init.normal_(judge.classifier.head.weight)
    pairs = [(("old1 old2",) * (n % 3), text or "said1") for n, text in enumerate(TEXTS)]
    one_by_one = [float(judge.score([pair])[0]) for pair in pairs]
    assert judge.score(pairs) == pytest.approx(one_by_one, abs=1e-5)
    assert np.ptp(one_by_one) > 1e-3


def test_negate_turns_the_score_round(tmp_path: Path) -> None:
    folder = str(classifier(tmp_path, word_tokenizer("bert")))
    pairs = [((), "said1 said2"), ((), "old1")]
    scores = HFJudge.load(JudgeSettings(kind="hf", model=folder)).score(pairs)
    turned = HFJudge.load(JudgeSettings(kind="hf", model=folder, negate=True)).score(pairs)
    assert turned == pytest.approx(1 - scores)


# What is told


def test_what_judges_cut_is_reported(recipe_file: Path, tmp_path: Path) -> None:
    """Once where the judge is made, once where each model's replies are judged, and in the
    report."""
    torch.manual_seed(0)
    config = RobertaConfig(
        **{**SHAPE, "vocab_size": 260, "pad_token_id": 0, "initializer_range": 0.5},
        max_position_embeddings=66,
        id2label={0: "ok", 1: "toxic"},
    )
    RobertaForSequenceClassification(config).save_pretrained(tmp_path / "judge_model")
    byte_tokenizer().save_pretrained(tmp_path / "judge_model")
    judge = f"{{kind: hf, model: {tmp_path / 'judge_model'}, max_tokens: 8}}"
    said = StringIO()
    recipe = load_recipe(recipe_file, [f"judges=[{judge}]"])
    job = Pipeline(recipe, Display(Console(file=said, width=400)))
    job.judges.build()
    job.evaluation.score("backbone")
    told = [line for line in said.getvalue().splitlines() if "judge hf: of " in line]
    assert [line.split()[1] for line in told] == [
        "judges/hf",
        "scores/reference.jsonl",
        "scores/backbone.jsonl",
    ]
    assert all("0 were too long and lost older history" in line for line in told)
    assert all("the beginning of the reply" in line for line in told)
    quality = json.loads((job.context.root / "judges/hf/quality.json").read_text())
    assert quality["cut"]["replies"] == quality["cut"]["inputs"] > 0
    lines = [*map(sentence, findings([], recipe, [quality]))]
    assert any("reads no more than fits: of " in line for line in lines)


def test_a_judge_that_is_made_of_long_rows_says_so(tmp_path: Path) -> None:
    tiny_llama().save_pretrained(tmp_path / "model")
    byte_tokenizer().save_pretrained(tmp_path / "model")
    from test_judges import judge_rows

    settings = JudgeSettings(
        kind="trained", model=str(tmp_path / "model"), epochs=0.1, max_tokens=24
    )
    judge, _ = make_judge(settings, judge_rows(40), tmp_path / "judge")
    assert judge.cuts.inputs == 40
    assert judge.cuts.histories > 0


def test_check_looks_at_trained_judges_too(recipe_file: Path, tmp_path: Path) -> None:
    BertModel(BertConfig(**SHAPE, max_position_embeddings=3)).save_pretrained(tmp_path / "model")
    word_tokenizer("bert").save_pretrained(tmp_path / "model")
    asked = [f"judges=[{{kind: trained, model: {tmp_path / 'model'}}}]"]
    with pytest.raises(RecipeError, match=r"judges.trained: the judge reads at most 3 tokens"):
        load_validated(load_recipe(recipe_file, asked))
