"""Generation speed of a FlatGD checkpoint compared with its backbone and with DExperts.

    python -m benchmarks.decode [--repeats 5]

Samples replies of exactly 32 tokens to histories of real dialogue, 64 at a time, with the shipped
backbone. A FlatGD checkpoint is the backbone with other weights and must not be slower. Exits with
1 if a target is missed.
"""

import sys
from collections.abc import Callable

from benchmarks.step import expert
from benchmarks.table import DEMO, Target, conclude, interleaved, machine, options
from flatgd import load_model, load_tokenizer
from flatgd.config.recipe import Generate
from flatgd.data.formats.diasafety import load_diasafety
from flatgd.methods import DExperts
from flatgd.models.dialogue_format import format_for
from flatgd.models.speaker import Speaker
from flatgd.runtime.memory_meter import peak_memory

TOKENS, HISTORIES = 32, 128


def speakers() -> dict[str, Speaker]:
    backbone = load_model(DEMO / "backbone")
    dialogue_format = format_for(
        backbone.config, load_tokenizer(str(DEMO / "backbone")), 64, TOKENS
    )
    experts = expert(backbone, 2), expert(backbone, 3)
    guide = DExperts(clean_expert=experts[0], toxic_expert=experts[1], strength=2.0)
    return {
        "backbone": Speaker(backbone, dialogue_format),
        "flatgd": Speaker(expert(backbone, 1), dialogue_format),
        "dexperts": Speaker(backbone, dialogue_format, guide),
    }


def main() -> int:
    parser = options(__doc__)
    parser.add_argument("--repeats", type=int, default=5)
    repeats = parser.parse_args().repeats
    print(machine())
    rows = load_diasafety(DEMO / "data/diasafety", "test")[:HISTORIES]
    settings = Generate(
        samples=1, min_new_tokens=TOKENS, max_new_tokens=TOKENS, batch_size=64, histories=HISTORIES
    )
    found = speakers()

    def say(speaker: Speaker) -> Callable[[], object]:
        return lambda: speaker.generate(rows, settings, 0)

    taken = interleaved({name: say(speaker) for name, speaker in found.items()}, repeats)
    for name, speaker in found.items():
        with peak_memory() as peak:
            say(speaker)()
        speed = HISTORIES * TOKENS / taken[name].median
        print(f"{name:<10}{speed:8.0f} tokens/s {peak.megabytes or 0.0:8.0f} MB peak")
    print(f"dexperts over backbone: {taken['dexperts'].over(taken['backbone']):.2f} x the time")
    return conclude(
        [Target("flatgd / backbone, time", taken["flatgd"].over(taken["backbone"]), 1.05)]
    )


if __name__ == "__main__":
    sys.exit(main())
