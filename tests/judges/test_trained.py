"""The trained judge: what it learns from which model, which layers, in which precision."""

from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import byte_tokenizer, tiny_blenderbot, tiny_llama
from judged import judge_rows
from safetensors.torch import load_file
from transformers import BertConfig, BertModel

from flatgd.config.judge import JudgeSettings
from flatgd.errors import ModelError
from flatgd.judges.base import pairs_of
from flatgd.judges.quality import quality
from flatgd.judges.registry import load_judge, make_judge
from flatgd.judges.trained import check_trained_judge, tuning_steps


@pytest.mark.parametrize("kind", ["blenderbot", "llama", "bert"])
def test_trained_judge_learns_from_any_kind_of_model(tmp_path: Path, kind: str) -> None:
    folder = tmp_path / "model"
    if kind == "bert":
        bert(folder, 1)
    else:
        (tiny_blenderbot() if kind == "blenderbot" else tiny_llama()).save_pretrained(folder)
        byte_tokenizer().save_pretrained(folder)
    settings = JudgeSettings(
        kind="trained", model=str(folder), epochs=12, learning_rate=1e-2, max_tokens=96
    )
    steps: list[int] = []
    judge, about = make_judge(settings, judge_rows(160), tmp_path / "judge", steps.append)
    assert sum(steps) == tuning_steps(160, settings)
    assert "four fifths of 160" in about
    held_out = judge_rows(40, offset=1000)
    assert quality(judge, held_out, 0.1).auc[0] > 0.9
    again = load_judge(settings, tmp_path / "judge")
    assert np.allclose(again.score(pairs_of(held_out)), judge.score(pairs_of(held_out)), atol=1e-6)
    one_by_one = [float(judge.score([pair])[0]) for pair in pairs_of(held_out[:5])]
    assert judge.score(pairs_of(held_out))[:5] == pytest.approx(one_by_one, abs=1e-5)
    assert judge.score([]).shape == (0,)
    assert np.isfinite(judge.score([((), ""), ((), "x " * 200)])).all()


def bert(folder: Path, layers: int) -> Path:
    torch.manual_seed(0)
    shape = {"hidden_size": 16, "num_hidden_layers": layers, "num_attention_heads": 2}
    BertModel(BertConfig(vocab_size=260, intermediate_size=32, **shape)).save_pretrained(folder)
    byte_tokenizer().save_pretrained(folder)
    return folder


def test_only_the_top_layers_are_tuned(tmp_path: Path) -> None:
    folder = bert(tmp_path / "model", 3)
    settings = JudgeSettings(
        kind="trained", model=str(folder), top_layers=2, epochs=1, learning_rate=1e-2
    )
    make_judge(settings, judge_rows(80), tmp_path / "judge")
    before = BertModel.from_pretrained(folder).state_dict()
    after = load_file(tmp_path / "judge/judge.safetensors")
    changed = {
        name for name, value in before.items() if not torch.equal(after[f"model.{name}"], value)
    }
    assert changed
    assert all(name.startswith(("encoder.layer.1.", "encoder.layer.2.")) for name in changed)
    too_many = settings.model_copy(update={"top_layers": 4})
    with pytest.raises(ModelError, match=r"top_layers is 4, but .* has 3 layers"):
        check_trained_judge(too_many)
    tiny_blenderbot().save_pretrained(tmp_path / "bot")
    byte_tokenizer().save_pretrained(tmp_path / "bot")
    with pytest.raises(ModelError, match="one stack of layers"):
        check_trained_judge(settings.model_copy(update={"model": str(tmp_path / "bot")}))


def test_a_trained_judge_in_bfloat16(tmp_path: Path) -> None:
    """The passes round, the weights do not."""
    settings = JudgeSettings(
        kind="trained", model=str(bert(tmp_path / "model", 1)), epochs=12, learning_rate=1e-2
    )
    given = settings, judge_rows(160), tmp_path / "judge"
    judge, _ = make_judge(*given, dtype=torch.bfloat16)
    held_out = judge_rows(40, offset=1000)
    assert quality(judge, held_out, 0.1).auc[0] > 0.9
    weights = load_file(tmp_path / "judge/judge.safetensors")
    assert {tensor.dtype for tensor in weights.values()} == {torch.float32}
    pairs = pairs_of(held_out)
    again = load_judge(settings, tmp_path / "judge", torch.bfloat16)
    assert np.allclose(again.score(pairs), judge.score(pairs), atol=1e-6)
    exact = load_judge(settings, tmp_path / "judge").score(pairs)
    assert 0 < np.abs(exact - judge.score(pairs)).max() < 0.1
