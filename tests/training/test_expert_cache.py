"""Experts' states on disk equal the expert's own; stale and corrupted files are rebuilt."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import byte_tokenizer, mild_rows, tiny_blenderbot, tiny_llama
from safetensors.torch import load_file

from flatgd import FlatGDConfig, FlatGDTrainer
from flatgd.data.jsonl import dialogues_from_row
from flatgd.models.dialogue_format import format_for
from flatgd.models.encoding import DialogueFormat, Example
from flatgd.models.heads import reply_states
from flatgd.runtime import distributed
from flatgd.training import expert_cache
from flatgd.training.expert_cache import cached_states, fault_of, states_fingerprint
from flatgd.training.resume_fingerprint import digest_of


@pytest.fixture(autouse=True)
def small_shards(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(expert_cache, "ROWS_A_SHARD", 5)


def material(seed: int = 3) -> tuple[torch.nn.Module, DialogueFormat, list[Example]]:
    expert = tiny_blenderbot(seed).eval()
    family = format_for(expert.config, byte_tokenizer(), 64, 32)
    rows = [d for row in mild_rows(12, seed=4) for d in dialogues_from_row(row)]
    return expert, family, [family.encode(r)._replace(row=n) for n, r in enumerate(rows)]


def build(folder: Path, told: list[str] | None = None, seed: int = 3):  # type: ignore[no-untyped-def]
    expert, family, examples = material(seed)
    tell = told.append if told is not None else print
    return cached_states(folder, expert, examples, family.collate, rows_at_once=4, tell=tell)


def test_states_are_the_experts(tmp_path: Path) -> None:
    expert, family, examples = material()
    states = build(tmp_path)
    assert len(list(tmp_path.glob("shard-*.npy"))) == 3
    for numbers in ([0, 1, 2], [11, 4, 5, 9]):
        batch = family.collate([examples[n] for n in numbers])
        with torch.no_grad():
            wanted = reply_states(expert, batch)
        assert torch.allclose(states.of(batch), wanted, atol=1e-5)


def test_size_is_reported_before_writing_and_an_intact_cache_is_kept(tmp_path: Path) -> None:
    told: list[str] = []
    build(tmp_path, told)
    written = sum(path.stat().st_size for path in tmp_path.glob("shard-*.npy"))
    assert "no cache yet" in told[0]
    assert float(told[0].split()[-5]) == pytest.approx(written / 2**20, abs=0.1)
    stamps = [path.stat().st_mtime_ns for path in sorted(tmp_path.iterdir())]
    build(tmp_path, told)
    assert len(told) == 1
    assert stamps == [path.stat().st_mtime_ns for path in sorted(tmp_path.iterdir())]


@pytest.mark.parametrize(
    "damage", ["cut", "flip", "delete", "index", "tokens", "format", "weights"]
)
def test_stale_and_corrupted_caches_are_rebuilt(tmp_path: Path, damage: str) -> None:
    build(tmp_path)
    whole = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    shard = tmp_path / "shard-00001.npy"
    content = bytearray(shard.read_bytes())
    if damage == "cut":
        shard.write_bytes(content[:-8])
    elif damage == "flip":
        content[-1] ^= 1
        shard.write_bytes(content)
    elif damage == "delete":
        shard.unlink()
    elif damage == "index":
        (tmp_path / "index.json").write_text("{")
    elif damage == "tokens":
        index = json.loads((tmp_path / "index.json").read_text())
        index["tokens"][0] += 1
        (tmp_path / "index.json").write_text(json.dumps(index))
    elif damage == "format":
        index = json.loads((tmp_path / "index.json").read_text())
        (tmp_path / "index.json").write_text(json.dumps({**index, "format": 0}))
    told: list[str] = []
    build(tmp_path, told, seed=8 if damage == "weights" else 3)
    reasons = {
        "index": "index is unreadable",
        "tokens": "index is corrupted",
        "weights": "weights or rows changed",
        "format": "its index has format 0, and this version of flatgd reads format 1",
    }
    assert reasons.get(damage, "shard-00001.npy is corrupted") in told[0]
    if damage != "weights":
        assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == whole


def test_the_fingerprint_depends_on_weights_rows_and_truncation() -> None:
    expert, _, examples = material()
    weights = digest_of(expert.state_dict().items())
    key = states_fingerprint(weights, examples)
    assert weights == digest_of(tiny_blenderbot(3).state_dict().items())
    assert weights != digest_of(tiny_blenderbot(4).state_dict().items())
    assert key != states_fingerprint(digest_of(tiny_blenderbot(4).state_dict().items()), examples)
    assert key != states_fingerprint(weights, examples[1:])
    cut = [examples[0]._replace(reply_ids=examples[0].reply_ids[:-1]), *examples[1:]]
    assert key != states_fingerprint(weights, cut)
    assert fault_of(Path("nowhere"), key, []) == "no cache yet"


def test_processes_share_the_shards(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each writes its own shards; here in turn, the first one last, as it writes the index."""
    expert, family, examples = material()
    one = build(tmp_path / "one")
    (tmp_path / "two").mkdir()
    monkeypatch.setattr(distributed, "count", lambda: 2)
    monkeypatch.setattr(distributed, "wait", lambda: None)
    for rank in (1, 0):
        monkeypatch.setenv("RANK", str(rank))
        try:
            cached_states(tmp_path / "two", expert, examples, family.collate, rows_at_once=4)
        except FileNotFoundError:  # rank 1 has nobody to wait for
            assert rank == 1
    batch = family.collate(examples)
    names = [path.name for path in (tmp_path / "two").glob("shard-*.npy")]
    assert len(names) == 3
    again = expert_cache.ExpertStates(tmp_path / "two")
    assert np.array_equal(one.of(batch).numpy(), again.of(batch).numpy())


@pytest.mark.parametrize("make", [tiny_blenderbot, tiny_llama])
def test_a_training_with_cached_states_is_the_same(tmp_path: Path, make) -> None:  # type: ignore[no-untyped-def]
    weights = {}
    for name, cache in (("live", None), ("cached", str(tmp_path / "states"))):
        trainer = FlatGDTrainer(
            make(0),
            FlatGDConfig(
                output_dir=str(tmp_path / name),
                max_steps=3,
                per_device_train_batch_size=8,
                micro_batch_size=3,
                optim="sgd",
                learning_rate=0.1,
                penalty_warmup=0.0,
                use_cpu=True,
                disable_tqdm=True,
                max_reply_tokens=32,
                expert_cache=cache,
            ),
            train_dataset=mild_rows(16, seed=8),
            processing_class=byte_tokenizer(),
            clean_expert=make(1),
            toxic_expert=make(2),
        )
        trainer.train()
        trainer.save_model(str(tmp_path / name))
        weights[name] = load_file(tmp_path / name / "model.safetensors")
        kept = sum(p.numel() for expert in trainer.method.models() for p in expert.parameters())
        assert (kept < 2 * trainer.model.num_parameters()) == (cache is not None)
    start = make(0).state_dict()
    gone = max(float((start[n] - w).abs().max()) for n, w in weights["live"].items())
    apart = max(float((weights["cached"][n] - w).abs().max()) for n, w in weights["live"].items())
    assert gone > 1e-4
    assert apart <= 1e-3 * gone
