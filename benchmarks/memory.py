"""The fused head compared with the unfused computation, at a large vocabulary.

    python -m benchmarks.memory [--tokens 2048 --vocabulary 131072 --width 1024]

Both receive hidden states of policy and experts and return L_LM, both divergences, and the two
gradients of states and head. Each runs in its own processes, in turn. Memory is the peak above the
inputs and the two weight gradients; on a GPU it is that of torch's allocator. If liger-kernel is
installed, its fused JSD and cross-entropy are shown too. Exits with 1 if a target is missed.
"""

import argparse
import json
import resource
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor

from benchmarks.table import Target, conclude, machine, options
from flatgd.losses import js_divergence, negative_log_likelihood
from flatgd.losses.fused import Expert, Head, fused_losses, head_log_probs

ATTRACT, REPEL = 3.0, 2.0
Inputs = dict[str, Any]
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}


def inputs(tokens: int, vocabulary: int, width: int, dtype: torch.dtype) -> Inputs:
    device = "cuda" if torch.cuda.is_available() else "cpu"
    torch.manual_seed(0)

    def draw(*shape: int) -> Tensor:
        return torch.randn(*shape, device=device).to(dtype)

    made = {name: draw(tokens, width) for name in ("states", "clean", "toxic")}
    made["weight"] = draw(vocabulary, width).mul_(width**-0.5)
    made["targets"] = torch.randint(vocabulary, (tokens,), device=device)
    made["is_safe"] = torch.arange(tokens, device=device) >= tokens * 2 // 5
    return made


def leaves(given: Inputs) -> tuple[Tensor, Tensor]:
    return given["states"].detach().requires_grad_(), given["weight"].detach().requires_grad_()


def naive(given: Inputs) -> tuple[Any, ...]:
    states, weight = leaves(given)
    log_p = head_log_probs(states, Head(weight))
    said = [head_log_probs(given[name], Head(given["weight"])) for name in ("clean", "toxic")]
    tokens, safe = len(states), given["is_safe"]
    clean, toxic = (js_divergence(log_p, log_q).sum() for log_q in said)
    safety = (ATTRACT * clean - REPEL * toxic) / tokens
    lm = negative_log_likelihood(log_p[safe], given["targets"][safe]).sum() / safe.sum()
    return (
        (lm, clean, toxic),
        torch.autograd.grad(safety, (states, weight), retain_graph=True),
        torch.autograd.grad(lm, (states, weight)),
    )


def said(states: Tensor, head: Head, part: slice) -> Tensor:
    return head_log_probs(states[part], head)


def fused(given: Inputs) -> tuple[Any, ...]:
    states, weight = leaves(given)
    tokens, safe = len(states), given["is_safe"]
    head = Head(given["weight"])
    experts = [
        Expert(w / tokens, partial(said, given[name], head))
        for w, name in ((ATTRACT, "clean"), (-REPEL, "toxic"))
    ]
    found = fused_losses(
        states, Head(weight), given["targets"], safe, experts, 1 / float(safe.sum())
    )
    return (
        (found.lm, *found.divergences),
        torch.autograd.grad(found.safety, (states, weight), retain_graph=True),
        torch.autograd.grad(found.lm, (states, weight)),
    )


def liger(given: Inputs) -> tuple[Any, ...]:
    """Two calls of the fused linear JSD and one of the cross-entropy; GPU only."""
    from liger_kernel.transformers import (
        LigerFusedLinearCrossEntropyLoss,
        LigerFusedLinearJSD,
    )

    states, weight = leaves(given)
    tokens, safe, plain = len(states), given["is_safe"], given["weight"]
    divergence = LigerFusedLinearJSD(jsd_beta=0.5)
    clean, toxic = (
        divergence(states, weight, given[name], plain, None) * tokens for name in ("clean", "toxic")
    )
    lm = LigerFusedLinearCrossEntropyLoss()(weight, states[safe], given["targets"][safe])
    return (
        (lm, clean, toxic),
        torch.autograd.grad((ATTRACT * clean - REPEL * toxic) / tokens, (states, weight)),
        torch.autograd.grad(lm, (states, weight)),
    )


WAYS: dict[str, Callable[[Inputs], tuple[Any, ...]]] = {
    "naive": naive,
    "fused": fused,
    "liger": liger,
}


def peak() -> int:
    """The peak memory so far, in bytes."""
    if torch.cuda.is_available():
        return torch.cuda.max_memory_allocated()
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def measure(way: str, shape: tuple[int, int, int], dtype: str, repeats: int) -> dict[str, float]:
    """Peak bytes of the first call and median seconds of the next calls, in a new process."""
    given = inputs(*shape, DTYPES[dtype])
    before = torch.cuda.memory_allocated() if torch.cuda.is_available() else peak()
    result = WAYS[way](given)
    gradients = sum(t.numel() * t.element_size() for part in result[1:] for t in part)
    used = peak() - before - gradients
    checks = [float(value) for value in result[0]] + [
        float(t.norm()) for p in result[1:] for t in p
    ]
    del result
    seconds = []
    for _ in range(repeats):
        begun = time.perf_counter()
        WAYS[way](given)
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        seconds.append(time.perf_counter() - begun)
    return {"bytes": used, "seconds": statistics.median(seconds), "checks": checks}


def main() -> int:
    parser = options(__doc__)
    parser.add_argument("--tokens", type=int, default=2048)
    parser.add_argument("--vocabulary", type=int, default=131072)
    parser.add_argument("--width", type=int, default=1024)
    parser.add_argument("--dtype", choices=list(DTYPES), default="float32")
    parser.add_argument("--rounds", type=int, default=2, help="new processes for each variant")
    parser.add_argument("--repeats", type=int, default=2, help="timed calls per process")
    parser.add_argument("--one", choices=list(WAYS), help=argparse.SUPPRESS)
    given = parser.parse_args()
    shape = given.tokens, given.vocabulary, given.width
    if given.one:
        print(json.dumps(measure(given.one, shape, given.dtype, given.repeats)))
        return 0
    print(f"{machine()}\n{given.tokens} tokens, vocabulary {given.vocabulary}, width {given.width}")
    ways = ["naive", "fused"] + (["liger"] if torch.cuda.is_available() else [])
    found: dict[str, list[dict[str, Any]]] = {way: [] for way in ways}
    for _ in range(given.rounds):
        for way in ways:
            command = [sys.executable, "-m", "benchmarks.memory", "--one", way, *sys.argv[1:]]
            done = subprocess.run(command, capture_output=True, text=True, check=False)
            if done.returncode == 0:
                found[way].append(json.loads(done.stdout.splitlines()[-1]))
            else:
                print(f"{way} failed: {done.stderr.strip().splitlines()[-1]}")
    bytes_, seconds = {}, {}
    for way in (way for way in ways if found[way]):
        bytes_[way] = statistics.median(f["bytes"] for f in found[way])
        seconds[way] = statistics.median(f["seconds"] for f in found[way])
        print(f"{way:<8}{bytes_[way] / 2**20:10,.0f} MB{seconds[way]:10.2f} s")
    exact, ours = (found[way][0]["checks"] for way in ("naive", "fused"))
    apart = max(abs(a - b) / abs(a) for a, b in zip(exact, ours, strict=True))
    targets = [
        Target("activation memory, fused / naive", bytes_["fused"] / bytes_["naive"], 1 / 8),
        Target("time, fused / naive", seconds["fused"] / seconds["naive"], 1.0),
        Target(
            "losses and norms apart, x 1e-6", apart * 1e6, 1.0 if given.dtype == "float32" else 1e4
        ),
    ]
    return conclude(targets)


if __name__ == "__main__":
    sys.exit(main())
