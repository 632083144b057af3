"""Training sees the tokens that inference will see: eight invariants over every shape."""

import pytest
from shapes import INVARIANTS, SHAPES, applies

CASES = [
    (name, invariant) for name in SHAPES for invariant in INVARIANTS if applies(name, invariant)
]


@pytest.mark.parametrize("kind", ["bytes", "words"])
@pytest.mark.parametrize(("name", "invariant"), CASES)
def test_invariant(name: str, invariant: str, kind: str) -> None:
    INVARIANTS[invariant](SHAPES[name], kind)
