"""The benchmark beside TRL's KTO and DPO: each method trains on the same tokens. Skipped without
TRL; `make test-install` installs it."""

from argparse import Namespace
from pathlib import Path

import pytest
from conftest import byte_tokenizer, tiny_llama

from benchmarks.peers import OURS, PEERS, measure, targets_of

pytest.importorskip("trl")
pytest.importorskip("datasets")
pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("ignore")]  # TRL's own


@pytest.mark.parametrize("is_cheap", [False, True], ids=["float32", "lora, bf16, in halves"])
def test_each_method_is_measured(tmp_path: Path, is_cheap: bool) -> None:
    tiny_llama().save_pretrained(tmp_path)
    byte_tokenizer().save_pretrained(tmp_path)
    given = Namespace(folder=str(tmp_path), rows=4, lora=is_cheap, bf16=is_cheap, halves=is_cheap)
    few = ["kto", "dpo", "flatgd", "flatgd, an eighth, cached", "flatgd, lookahead"]
    names = few if is_cheap else [*PEERS, *OURS]
    found = {name: measure(name, given) for name in names}
    assert all(cost["seconds"] > 0 for cost in found.values())
    tokens = {cost["tokens"] for name, cost in found.items() if name != "dpo"}
    assert max(tokens) - min(tokens) <= 0.02 * max(tokens)
    assert next(target.what for target in targets_of(found)) == "flatgd / kto"
