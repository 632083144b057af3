"""The embedding judge: features against a slow twin, its cache, its fit, what it refuses."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import byte_tokenizer, tiny_blenderbot
from guards import guard
from judged import ENCODER_WIDTH, encoder_folder, judge_rows
from transformers import BertModel
from typer.testing import CliRunner

from flatgd.cli.main import app
from flatgd.config.judge import JudgeSettings
from flatgd.config.loading import load_recipe
from flatgd.errors import ModelError, RecipeError
from flatgd.judges.base import pairs_of
from flatgd.judges.embedding import Encoder, FeatureCache, _Row, check_encoder
from flatgd.judges.quality import quality
from flatgd.judges.reading import Cuts
from flatgd.judges.registry import load_judge, make_judge

VERDICTS = {"prefix": " ", "toxic_words": ("Yes",), "safe_words": ("No",)}
PAIRS = [((), "alone"), (("a", "b", "c", "d"), "x" * 40), (("hi",), ""), (("hi",), "hi")]


def settings(folder: Path, **fields: Any) -> JudgeSettings:
    return JudgeSettings(kind="embedding", model=str(folder), max_tokens=100, **fields)


def slow_features(folder: Path, history: tuple[str, ...], reply: str) -> np.ndarray:
    """One pair, without padding, in float64."""
    model = BertModel.from_pretrained(folder).double().eval()
    encoded = byte_tokenizer()("\n".join(history[-3:]), reply or " ", return_tensors="pt")
    of_reply = torch.tensor([part == 1 for part in encoded.sequence_ids(0)])
    with torch.no_grad():
        states = model(**encoded, output_hidden_states=True).hidden_states
    return torch.cat([states[layer][0, of_reply].mean(0) for layer in (1, 2, 3)]).numpy()


def test_features_against_one_by_one(tmp_path: Path) -> None:
    folder = encoder_folder(tmp_path)
    encoder = Encoder.load(settings(folder, batch_size=3), torch.float32)
    found = encoder.features(PAIRS)
    expected = np.stack([slow_features(folder, *pair) for pair in PAIRS])
    assert found.shape == (len(PAIRS), 3 * ENCODER_WIDTH)
    assert np.allclose(found, expected, atol=2e-3)  # kept in float16
    assert np.ptp(expected) > 1
    half = Encoder.load(settings(folder), torch.bfloat16).features(PAIRS)
    assert np.allclose(half, expected, atol=0.2)


def test_features_are_read_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = encoder_folder(tmp_path / "model")
    read: list[int] = []
    inner = Encoder._read
    monkeypatch.setattr(Encoder, "_read", lambda self, p: read.append(len(p)) or inner(self, p))
    advanced: list[int] = []
    first = Encoder.load(settings(folder), torch.float32, tmp_path / "kept")
    found = first.features([*PAIRS, PAIRS[0]], advanced.append)
    assert sum(read) == len(PAIRS)  # the last is a repetition
    assert sum(advanced) == len(PAIRS) + 1
    again = Encoder.load(settings(folder), torch.float32, tmp_path / "kept")
    assert np.array_equal(again.features(PAIRS), found[:-1])
    assert sum(read) == len(PAIRS)
    others = [settings(encoder_folder(tmp_path / "b", 1)), settings(folder, separator=" ")]
    for number, other in enumerate(others, 2):  # another model, another reading
        Encoder.load(other, torch.float32, tmp_path / "kept").features(PAIRS)
        assert sum(read) == number * len(PAIRS)


def test_a_damaged_cache_is_made_again(tmp_path: Path) -> None:
    path = tmp_path / "kept.safetensors"
    FeatureCache(path).add({"00" * 16: _Row(np.ones(3, dtype=np.float16), Cuts(1, 1, 0))})
    assert FeatureCache(path).rows["00" * 16].cuts == Cuts(1, 1, 0)
    path.write_bytes(path.read_bytes()[:-4])
    assert FeatureCache(path).rows == {}


def test_a_full_cache_keeps_what_it_has(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("flatgd.judges.embedding.MOST_KEPT", 2)
    folder = encoder_folder(tmp_path / "model")
    encoder = Encoder.load(settings(folder), torch.float32, tmp_path / "kept")
    found = encoder.features(PAIRS)
    assert len(encoder.cache.rows) == 2
    again = Encoder.load(settings(folder), torch.float32, tmp_path / "kept")
    assert len(again.cache.rows) == 2
    assert np.allclose(again.features(PAIRS), found, atol=1e-2)


def test_another_configuration_is_read_again(tmp_path: Path) -> None:
    """The same weights with other heads give other features."""
    folder = encoder_folder(tmp_path / "model")
    given = settings(folder), torch.float32, tmp_path / "kept"
    before = Encoder.load(*given).features(PAIRS)
    config = json.loads((folder / "config.json").read_text()) | {"num_attention_heads": 4}
    (folder / "config.json").write_text(json.dumps(config))
    assert not np.allclose(Encoder.load(*given).features(PAIRS), before, atol=0.01)


def test_a_cache_that_cannot_be_written_is_no_fault(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "kept").write_text("a file where the folder should be")
    encoder = Encoder.load(
        settings(encoder_folder(tmp_path / "model")), torch.float32, tmp_path / "kept"
    )
    assert len(encoder.features(PAIRS)) == len(PAIRS)
    assert "features are not kept" in caplog.text


def test_layers_that_nothing_reads_are_dropped(tmp_path: Path) -> None:
    encoder = Encoder.load(settings(encoder_folder(tmp_path)), torch.float32)
    assert encoder.layers == [1, 2, 3]
    assert len(encoder.model.encoder.layer) == 3


def test_it_learns_saves_and_loads(tmp_path: Path) -> None:
    given = settings(encoder_folder(tmp_path / "encoder"), false_positive_rate=0.05)
    judge, about = make_judge(given, judge_rows(64), tmp_path / "judge", features=tmp_path / "kept")
    held_out = judge_rows(24, offset=1000)
    result = quality(judge, held_out, 0.05)
    assert result.auc[0] > 0.75  # of an encoder with random weights
    assert about == "a linear head over encoder, trained on 64 labelled replies"
    again = load_judge(given, tmp_path / "judge", features=tmp_path / "kept")
    pairs = pairs_of(held_out)
    assert np.allclose(again.score(pairs), judge.score(pairs), atol=1e-6)
    assert again.score([]).shape == (0,)
    (tmp_path / "judge/judge.safetensors").unlink()
    with pytest.raises(ModelError, match="`flatgd run` builds it"):
        load_judge(given, tmp_path / "judge")


def test_what_is_too_long_is_counted(tmp_path: Path) -> None:
    """Also where the features come from the cache."""
    folder = encoder_folder(tmp_path / "model")
    for _ in range(2):
        encoder = Encoder.load(settings(folder), torch.float32, tmp_path / "kept")
        encoder.features([(("x" * 90,), "y" * 60), ((), "z" * 120)])
        assert encoder.cuts == Cuts(2, 1, 1)


def test_models_that_do_not_fit(tmp_path: Path) -> None:
    tiny_blenderbot().save_pretrained(tmp_path / "bot")
    byte_tokenizer().save_pretrained(tmp_path / "bot")
    with pytest.raises(ModelError, match="is an encoder-decoder"):
        check_encoder(settings(tmp_path / "bot"))
    check_encoder(settings(encoder_folder(tmp_path / "encoder")))


def test_three_judges_in_one_recipe(
    recipe_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A linear, an embedding and a guard judge: a run, its vote, a second run from the cache."""
    encoder = encoder_folder(tmp_path / "encoder")
    asked = guard(tmp_path / "guard", None, template="{reply}?", **VERDICTS)
    judges = [
        {"kind": "linear"},
        {"kind": "embedding", "model": str(encoder), "max_tokens": 100},
        asked.model_dump(exclude_defaults=True) | {"kind": "guard", "max_tokens": 100},
    ]
    words = ["--set", f"judges={json.dumps(judges)}", "--set", "methods={clean: {}}"]
    checked = CliRunner().invoke(app, ["check", str(recipe_file), *words], catch_exceptions=False)
    assert checked.exit_code == 0
    assert "memory: judge embedding" in checked.output
    assert "memory: judge guard" in checked.output
    told = CliRunner().invoke(app, ["run", str(recipe_file), *words], catch_exceptions=False)
    assert told.exit_code == 0, told.output
    root = tmp_path / "run"
    summary = json.loads((root / "report/summary.json").read_text())
    metrics = {row["metric"] for row in summary if row["method"] == "clean"}
    assert {"toxicity_mean@guard", "toxicity_any2@majority", "toxicity_mean@majority"} <= metrics
    tables = (root / "report/tables.md").read_text()
    assert "replies that most judges flag ↓" in tables
    assert "toxic, any of 2 by majority ↓" in tables
    for name in ("linear", "embedding", "guard"):
        assert f"The judge {name} is set to flag 2.0%" in tables
    read: list[int] = []
    inner = Encoder._read
    monkeypatch.setattr(Encoder, "_read", lambda self, p: read.append(len(p)) or inner(self, p))
    judges[1]["false_positive_rate"] = 0.1  # another judge with the same features
    words[1] = f"judges={json.dumps(judges)}"
    told = CliRunner().invoke(app, ["run", str(recipe_file), *words], catch_exceptions=False)
    assert told.exit_code == 0, told.output
    assert read == []


def test_no_judge_is_called_majority(recipe_file: Path) -> None:
    with pytest.raises(RecipeError, match="majority is their vote"):
        load_recipe(recipe_file, ["judges=[{kind: linear, name: majority}]"])
