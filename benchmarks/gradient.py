"""How exact the penalty's gradient is on the shipped backbone, and whether micro-batches agree.

    python -m benchmarks.gradient

Prints the relative error of the penalty's gradient 2 H g against double backward in float64, in
float64 and float32, and the largest difference of the weights after five steps of 1 x 8 rows
against 8 x 1. Exits with 1 where a target is missed.
"""

import copy
import sys
import tempfile
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from flatgd import FlatGD, FlatGDConfig, FlatGDTrainer, load_model, load_tokenizer
from flatgd.data.diasafety import load_diasafety
from flatgd.flatness import PenaltySettings, exact, finite_difference, plain_gradient
from flatgd.flatness.penalty import norm
from flatgd.methods.base import Totals
from flatgd.models import Batch, family_of, reply_tokens, split_batch
from flatgd.records import Dialogue

DEMO = Path(__file__).parent.parent / "flatgd/demo"
ROWS, STEPS = 8, 5


def expert(backbone: nn.Module, batch: Batch, is_safe: bool) -> nn.Module:
    """The backbone moved a little towards the safe or the toxic rows, as an expert would be."""
    copied = copy.deepcopy(backbone)
    optimizer = torch.optim.AdamW(copied.parameters(), lr=3e-4)
    rows = batch["is_safe"] == is_safe
    part = {key: value[rows] for key, value in batch.items()}
    for _ in range(10):
        labels = part["targets"]
        feed = {k: v for k, v in part.items() if k not in ("targets", "is_safe")}
        copied(**feed, labels=labels).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    return copied


def penalty(
    method: FlatGD, model: nn.Module, batch: Batch, function: Any, settings: PenaltySettings
) -> list[Tensor]:
    """grad of the penalty alone: the finished gradient less that without penalty, over lambda."""
    parts = [method.prepare(part) for part in split_batch(batch, 4)]
    targets, is_safe = reply_tokens(batch)
    totals = Totals(float(len(targets)), float(is_safe.sum()))
    parameters = [p for p in model.parameters() if p.requires_grad]

    def terms(index: int) -> Any:
        return method.terms(model, parts[index], totals).terms

    indices = range(len(parts))
    plain = plain_gradient(parameters, terms, indices, lambda gradient: None)
    full = function(parameters, terms, indices, lambda gradient: None, settings)
    return list(torch._foreach_sub(full.gradient, plain.gradient))


def errors(backbone: nn.Module, experts: list[nn.Module], batch: Batch) -> list[tuple[str, float]]:
    results: list[tuple[str, float]] = []
    reference: list[Tensor] = []
    backend = torch.nn.attention.sdpa_kernel(torch.nn.attention.SDPBackend.MATH)
    with backend:
        for dtype in (torch.float64, torch.float32):
            model, *pair = (copy.deepcopy(m).to(dtype).eval() for m in (backbone, *experts))
            method = FlatGD(*pair)
            for name, function, rho in (
                ("exact", exact, 1e-3),
                ("forward", finite_difference, 1e-3),
                ("central", finite_difference, 5e-4),
            ):
                # a weight of 1e3 lifts the penalty out of the rounding of the subtraction
                settings = PenaltySettings(
                    1e3, None, difference="central" if name == "central" else "forward", rho=rho
                )
                got = [t.double() for t in penalty(method, model, batch, function, settings)]
                reference = reference or got
                error = norm(list(torch._foreach_sub(got, reference))) / norm(reference)
                label = f"{name}, rho {rho:g}" if name != "exact" else name
                results.append((f"{str(dtype).removeprefix('torch.')} {label}", error))
    return results


def trained(rows: list[Dialogue], experts: list[nn.Module], size: int) -> dict[str, Tensor]:
    with tempfile.TemporaryDirectory() as folder:
        trainer = FlatGDTrainer(
            load_model(DEMO / "backbone"),
            FlatGDConfig(
                output_dir=folder,
                max_steps=STEPS,
                per_device_train_batch_size=ROWS,
                micro_batch_size=size,
                learning_rate=3e-4,
                penalty_warmup=0.0,
                use_cpu=True,
                disable_tqdm=True,
                max_history_tokens=64,
                max_reply_tokens=32,
            ),
            train_dataset=rows,
            processing_class=load_tokenizer(str(DEMO / "backbone")),
            method=FlatGD(*experts),
        )
        trainer.log = lambda *args, **kwargs: None  # type: ignore[method-assign]
        trainer.train()
        return {n: p.detach().clone() for n, p in trainer.model.named_parameters()}


def main() -> int:
    torch.manual_seed(0)
    backbone = load_model(DEMO / "backbone")
    family = family_of(backbone.config, load_tokenizer(str(DEMO / "backbone")), 64, 32)
    rows = load_diasafety(DEMO / "data/diasafety", "train")[:40]
    batch = family.collate([family.encode(row) for row in rows[:ROWS]])
    experts = [expert(backbone, batch, is_safe) for is_safe in (True, False)]

    print("penalty's gradient against float64 double backward, relative error")
    found = errors(backbone, experts, batch)
    for label, error in found:
        print(f"  {label:<28} {error:.2e}")
    whole, single = trained(rows, experts, ROWS), trained(rows, experts, 1)
    differences = {name: float((whole[name] - single[name]).abs().max()) for name in whole}
    # a softmax does not see its keys' biases: their gradient is rounding, which AdamW scales up
    seen = max(value for name, value in differences.items() if "k_proj.bias" not in name)
    print(f"{STEPS} steps of 1 x {ROWS} against {ROWS} x 1, AdamW: largest difference of a weight")
    print(f"  all but the keys' biases     {seen:.2e}")
    print(f"  the keys' biases             {max(differences.values()):.2e}")
    by_name = dict(found)
    targets = [
        by_name["float64 central, rho 0.0005"] <= 1e-4,
        by_name["float32 exact"] <= 1e-4,
        by_name["float32 central, rho 0.0005"] <= 1e-3,
    ]
    print("targets met" if all(targets) else "TARGET MISSED: see the first table")
    return 0 if all(targets) else 1


if __name__ == "__main__":
    sys.exit(main())
