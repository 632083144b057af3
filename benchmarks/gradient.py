"""The accuracy of the penalty's gradient on the shipped backbone, and of micro-batches.

    python -m benchmarks.gradient
    python -m benchmarks.gradient --model FOLDER     a table for any model, also in bfloat16

Prints the relative error of the penalty's gradient 2 H g, in float64 and float32, against double
backward in float64. Also prints the largest difference between the weights after five steps with
one micro-batch of 8 rows and with 8 micro-batches of one row. (Adam scales up rounding errors of
gradients that are zero in exact arithmetic, such as those of the keys' biases.) Exits with 1 if a
target is missed.
"""

import copy
import sys
import tempfile
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PrinterCallback

from benchmarks.gradient_of_model import table_of
from benchmarks.table import DEMO, options
from flatgd import FlatGD, FlatGDConfig, FlatGDTrainer, load_model, load_tokenizer
from flatgd.data.formats.diasafety import load_diasafety
from flatgd.dialogue import Dialogue
from flatgd.flatness import (
    Objective,
    PenaltySettings,
    Split,
    exact,
    finite_difference,
    plain_gradient,
)
from flatgd.flatness.penalty import norm
from flatgd.methods.base import Totals
from flatgd.models.dialogue_format import format_for
from flatgd.models.encoding import Batch
from flatgd.models.heads import reply_tokens
from flatgd.training.micro_batches import split_batch

ROWS, STEPS = 8, 5
RHOS = (1e-3, 5e-4, 3e-4, 1e-4)


def expert(backbone: nn.Module, batch: Batch, is_safe: bool) -> nn.Module:
    """The backbone after a small step towards the safe or the toxic rows, like an expert."""
    copied = copy.deepcopy(backbone)
    optimizer = torch.optim.AdamW(copied.parameters(), lr=3e-4)
    rows = batch["is_safe"] == is_safe
    part = {key: value[rows] for key, value in batch.items()}
    for _ in range(40):
        labels = part["targets"]
        feed = {k: v for k, v in part.items() if k not in ("targets", "is_safe")}
        copied(**feed, labels=labels).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    return copied


def penalty(
    method: FlatGD, model: nn.Module, batch: Batch, function: Any, settings: PenaltySettings
) -> list[Tensor]:
    """The penalty's gradient: (gradient with penalty - gradient without it) / lambda."""
    parts = method.prepare(split_batch(batch, 4))
    targets, is_safe = reply_tokens(batch)
    totals = Totals(float(len(targets)), float(is_safe.sum()))
    parameters = [p for p in model.parameters() if p.requires_grad]

    objective = Objective(lambda index: method.terms(model, parts[index], totals).terms)
    indices = range(len(parts))
    plain = plain_gradient(parameters, objective, indices, lambda gradient: None)
    full = function(parameters, objective, Split(indices), lambda gradient: None, settings)
    return list(torch._foreach_sub(full.gradient, plain.gradient))


def errors(policy: nn.Module, experts: list[nn.Module], batch: Batch) -> dict[str, list[float]]:
    """Relative error by dtype and variant: one number for exact, one per rho for differences."""
    results: dict[str, list[float]] = {}
    reference: list[Tensor] = []
    with torch.nn.attention.sdpa_kernel(torch.nn.attention.SDPBackend.MATH):
        for dtype in (torch.float64, torch.float32):
            model, *pair = (copy.deepcopy(m).to(dtype).eval() for m in (policy, *experts))
            method = FlatGD(pair[0], pair[1])
            for way in ("exact", "forward", "central"):
                for rho in RHOS if way != "exact" else RHOS[:1]:
                    # a weight of 1e3 lifts the penalty out of the rounding of the subtraction
                    difference: Any = "central" if way == "central" else "forward"
                    settings = PenaltySettings(1e3, None, difference=difference, rho=rho)
                    function = exact if way == "exact" else finite_difference
                    got = [t.double() for t in penalty(method, model, batch, function, settings)]
                    reference = reference or got
                    error = norm(list(torch._foreach_sub(got, reference))) / norm(reference)
                    label = f"{str(dtype).removeprefix('torch.')} {way}"
                    results.setdefault(label, []).append(error)
    return results


def trainer_of(
    folder: str, rows: list[Dialogue], experts: list[nn.Module], size: int, **fields: Any
) -> FlatGDTrainer:
    trainer = FlatGDTrainer(
        load_model(DEMO / "backbone"),
        FlatGDConfig(
            output_dir=folder,
            per_device_train_batch_size=ROWS,
            micro_batch_size=size,
            penalty_warmup=0.0,
            use_cpu=True,
            disable_tqdm=True,
            max_history_tokens=64,
            max_reply_tokens=32,
            **fields,
        ),
        train_dataset=rows,
        processing_class=load_tokenizer(str(DEMO / "backbone")),
        method=FlatGD(experts[0], experts[1]),
    )
    trainer.remove_callback(PrinterCallback)
    return trainer


def model_of(trainer: FlatGDTrainer) -> nn.Module:
    assert isinstance(trainer.model, nn.Module)
    return trainer.model


def trained(
    rows: list[Dialogue], experts: list[nn.Module], size: int, optim: str, rate: float
) -> dict[str, Tensor]:
    with tempfile.TemporaryDirectory() as folder:
        trainer = trainer_of(
            folder, rows, experts, size, max_steps=STEPS, optim=optim, learning_rate=rate
        )
        trainer.train()
        return {n: p.detach().clone() for n, p in model_of(trainer).named_parameters()}


def main() -> int:
    parser = options(__doc__)
    parser.add_argument("--model", help="a folder with a model")
    parser.add_argument("--ways", default="", help="with --model: only those named like this")
    parser.add_argument("--rows", type=int, default=ROWS, help="rows of the batch, with --model")
    given = parser.parse_args()
    if given.model:
        return table_of(given.model, given.rows, given.ways)
    torch.manual_seed(0)
    backbone = load_model(DEMO / "backbone")
    dialogue_format = format_for(backbone.config, load_tokenizer(str(DEMO / "backbone")), 64, 32)
    rows = load_diasafety(DEMO / "data/diasafety", "train")[:40]
    batch = dialogue_format.collate([dialogue_format.encode(row) for row in rows[:ROWS]])
    experts = [expert(backbone, batch, is_safe) for is_safe in (True, False)]
    with tempfile.TemporaryDirectory() as folder:
        tuned = trainer_of(
            folder, rows, experts, ROWS, max_steps=30, flatness_weight=0.0, learning_rate=3e-4
        )
        tuned.train()

    print("penalty's gradient 2 H g against float64 double backward: relative error")
    found = {}
    for place, policy in (("backbone as shipped", backbone), ("after 30 steps", model_of(tuned))):
        found = errors(policy, experts, batch)
        print(f"  {place:<22}" + "".join(f"  rho {rho:<7g}" for rho in RHOS))
        for label, values in found.items():
            print(f"    {label:<20}" + "".join(f"  {value:<11.2e}" for value in values))
    print(f"{STEPS} steps of 1 x {ROWS} and {ROWS} x 1 rows: largest difference of a weight")
    apart, moved = {}, {}
    for optim, rate in (("sgd", 0.1), ("adamw_torch", 3e-4)):
        whole, single = (trained(rows, experts, size, optim, rate) for size in (ROWS, 1))
        apart[optim] = max(float((whole[name] - single[name]).abs().max()) for name in whole)
        start = dict(backbone.named_parameters())
        moved[optim] = max(
            float((whole[name] - start[name]).detach().abs().max()) for name in whole
        )
        print(f"    {optim:<20}  {apart[optim]:.2e} after a largest change of {moved[optim]:.2e}")
    targets = [
        min(found["float64 central"]) <= 1e-4,
        found["float32 exact"][0] <= 1e-4,
        min(found["float32 central"]) <= 1e-3,
        apart["sgd"] <= 1e-3 * moved["sgd"],
    ]
    print("targets met" if all(targets) else f"TARGETS MISSED: {targets}")
    return 0 if all(targets) else 1


if __name__ == "__main__":
    sys.exit(main())
