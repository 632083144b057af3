"""Labelled replies that any judge can learn."""

from conftest import SAFE, TOXIC

from flatgd.dialogue import Dialogue


def judge_rows(count: int, offset: int = 0) -> list[Dialogue]:
    texts = [(t, True) for t in SAFE] + [(t, False) for t in TOXIC]
    return [
        Dialogue((f"line {n}",), f"{texts[n % 8][0]} {n}", texts[n % 8][1], "t", f"c{offset + n}")
        for n in range(count)
    ]
