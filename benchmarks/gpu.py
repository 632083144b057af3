"""Speed and memory of whole training steps on a GPU, in bfloat16, in at most nine minutes.

    python -m benchmarks.gpu [--minutes 9] [--models blenderbot llama] [--smoke]

Needs torch and transformers alone, of `flatgd` only losses/ and flatness/. The models have random
weights in the shape of BlenderBot-400M and of Llama 3.2 1B, and no dropout. A step has all its
parts: the experts, whose weights are bfloat16, autocast over float32 weights, clipping, AdamW. A
line shows

    seconds   of a step, the median of five after two that are not counted
    ratio     to safety_loss of the same model
    tokens/s  of histories and replies
    peak      the matrix products of a step, as torch counts them (attention on a GPU alone), per
              second, over those of one large bfloat16 product
    memory    the most that torch's allocator held, on a GPU

"naive" has logits of a whole micro-batch. Then the head alone, in bfloat16: both divergences, L_LM
and one gradient, naive, fused and by liger-kernel; "apart" is the gradient's relative distance from
naive's. What is not installed, or does not fit into time or memory, is named. Exits with 1 if a
target is missed; that of lookahead is for sixteen steps, one of them a refresh. --smoke has tiny
shapes for a CPU, and no targets.
"""

import gc
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from functools import cached_property, partial
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode
from transformers import AutoModelForCausalLM, AutoModelForSeq2SeqLM, BlenderbotConfig, LlamaConfig

from benchmarks.table import Target, conclude, machine, options
from flatgd import flatness
from flatgd.flatness import FlatGradient, Mean, Objective, Split, Terms, TermWeights
from flatgd.flatness.penalty import norm
from flatgd.losses import js_divergence, negative_log_likelihood
from flatgd.losses.fused import Expert, Head, fused_losses, head_log_probs

ATTRACT, REPEL, SAFE, EIGHTH = 3.0, 2.0, 0.6, 1 / 8
LAMBDA, LN_2 = 0.01, 0.6931471805599453
PENALTY = flatness.PenaltySettings(LAMBDA, None, rho=1e-2)
TIMED, SPARE = 5, 15.0  # steps; seconds kept for the head alone
BASE, NAIVE, REFRESH = "safety_loss", "safety_loss, naive", "lookahead, refresh"
# of the time of BASE, for the mean of these steps
LIMITS = {("finite_difference",): 1.8, ("fast",): 1.55, (*["lookahead"] * 15, REFRESH): 1.1}
HALF, DEVICE = torch.bfloat16, torch.device("cuda" if torch.cuda.is_available() else "cpu")


class Shape(NamedTuple):
    """A model's configuration, and a batch: rows, rows at once, tokens of history and reply."""

    config: Any
    rows: int
    at_once: int
    history: int = 128
    reply: int = 64


def shapes(is_smoke: bool) -> dict[str, Shape]:
    width, layers, vocabulary = (64, 1, 500) if is_smoke else (1280, 12, 8008)
    bot = BlenderbotConfig(
        vocab_size=vocabulary, d_model=width, encoder_layers=min(2, layers), decoder_layers=layers,
        encoder_ffn_dim=4 * width, decoder_ffn_dim=4 * width, dropout=0.0,
    )  # fmt: skip
    width, layers, vocabulary, heads = (64, 1, 500, 4) if is_smoke else (2048, 16, 128256, 32)
    llama = LlamaConfig(
        vocab_size=vocabulary, hidden_size=width, intermediate_size=4 * width,
        num_hidden_layers=layers, num_attention_heads=heads, num_key_value_heads=heads // 4,
        tie_word_embeddings=True,
    )  # fmt: skip
    if is_smoke:
        return {n: Shape(c, 16, 8, 12, 6) for n, c in (("blenderbot", bot), ("llama", llama))}
    return {"blenderbot": Shape(bot, 64, 64), "llama": Shape(llama, 64, 32)}


class Replies(NamedTuple):
    """The reply tokens of a micro-batch: states [N, D], targets and labels [N], for each expert its
    states and its head, and two counts of the whole batch: tokens, and those of safe rows."""

    states: Tensor
    head: Head
    targets: Tensor
    is_safe: Tensor
    said: Sequence[tuple[Tensor, Head]]
    tokens: int
    safe_tokens: int


def naive_head(of: Replies) -> tuple[Tensor, Tensor]:
    """(L_S, L_LM), each a share of the whole batch's mean, by way of all logits."""
    log_p = head_log_probs(of.states, of.head)
    clean, toxic = (js_divergence(log_p, head_log_probs(*one)).sum() for one in of.said)
    lm = negative_log_likelihood(log_p[of.is_safe], of.targets[of.is_safe]).sum()
    return (ATTRACT * clean - REPEL * toxic) / of.tokens, lm / of.safe_tokens


def log_probs_of(states: Tensor, head: Head, part: slice) -> Tensor:
    return head_log_probs(states[part], head)


def fused_head(of: Replies, term_weights: TermWeights | None = None) -> tuple[Tensor, Tensor]:
    """The same in chunks. With `term_weights` the first value is their weighted sum."""
    experts = [
        Expert(weight / of.tokens, partial(log_probs_of, *one))
        for weight, one in zip((ATTRACT, -REPEL), of.said, strict=True)
    ]
    given = of.states, of.head, of.targets, of.is_safe, experts, 1 / of.safe_tokens
    found = fused_losses(*given, term_weights)
    return found.safety, found.lm


def liger_head(of: Replies) -> tuple[Tensor, Tensor]:
    """The same by liger-kernel: two fused divergences, in nats, and one fused cross-entropy."""
    from liger_kernel.transformers import LigerFusedLinearCrossEntropyLoss, LigerFusedLinearJSD

    divergence, weight = LigerFusedLinearJSD(jsd_beta=0.5), of.head.weight
    clean, toxic = (divergence(of.states, weight, q, head.weight, None) for q, head in of.said)
    lm = LigerFusedLinearCrossEntropyLoss()(weight, of.states[of.is_safe], of.targets[of.is_safe])
    return (ATTRACT * clean - REPEL * toxic) / LN_2, lm


class Way(NamedTuple):
    """How a step's gradient is computed. `few` is the share of the rows that are penalised, or keep
    both gradients apart; with `is_apart` no micro-batch of them mixes labels, as in training."""

    gradient: Callable[["Subject", Objective], FlatGradient]
    is_fused: bool = True
    is_apart: bool = False
    few: float = 1.0
    has_experts: bool = True


class Subject:
    """A policy, two experts and one batch, with safety_loss's objective as a step computes it."""

    def __init__(self, shape: Shape, in_half: bool = True):
        torch.manual_seed(0)
        self.shape, self.in_half = shape, in_half
        self.policy = random_model(shape.config)
        self.parameters: list[Tensor] = list(self.policy.parameters())
        self.optimizer = torch.optim.AdamW(self.parameters, lr=1e-6, fused=DEVICE.type == "cuda")

    @cached_property
    def experts(self) -> list[Any]:
        """Built when they are first needed: `plain` has none in memory."""
        made = [random_model(self.shape.config).to(HALF) for _ in range(2)]
        return [expert.requires_grad_(False).eval() for expert in made]

    def begin(self, way: Way) -> None:
        """The same rows for each way, in its micro-batches. The first are its few rows."""
        self.way = way
        small = [torch.full_like(p, 1e-6) for p in self.parameters]
        self.mean = Mean(small, norm(small))
        torch.manual_seed(2)
        few = round(self.shape.rows * way.few)
        first, rest = self._cut(few, way.is_apart), self._cut(self.shape.rows - few, False)
        self.batches = [*first, *rest]
        places, self.tokens = range(len(self.batches)), self.shape.rows * self.shape.reply
        self.safe_tokens = self.shape.reply * sum(int(b["is_safe"].sum()) for b in self.batches)
        self.split = Split(places[: len(first)], places[len(first) :], 1 / (way.few or 1))

    def _cut(self, rows: int, is_apart: bool) -> list[dict[str, Any]]:
        """Micro-batches of random rows, toxic ones first."""
        toxic, size = rows - round(rows * SAFE), self.shape.history + self.shape.reply
        ids = torch.randint(5, self.shape.config.vocab_size, (rows, size), device=DEVICE)
        numbers = torch.arange(rows, device=DEVICE)
        groups = [numbers[:toxic], numbers[toxic:]] if is_apart else [numbers]
        return [
            {"ids": ids[part], "is_safe": part >= toxic}
            for group in groups
            for part in group.tensor_split(max(1, -(-len(group) // self.shape.at_once)))
            if len(part)
        ]

    def states(self, model: Any, batch: dict[str, Any]) -> Tensor:
        """The last hidden states of the reply, [N, D]."""
        ids, history = batch["ids"], self.shape.history
        if self.shape.config.is_encoder_decoder:
            inputs = {"decoder_input_ids": ids[:, history:], "use_cache": False}
            states: Tensor = model.model(ids[:, :history], **inputs).last_hidden_state
        else:
            states = model.model(ids, use_cache=False).last_hidden_state[:, history - 1 : -1]
        return states.reshape(-1, states.shape[-1])

    def losses(self, batch: dict[str, Any], term_weights: TermWeights | None) -> Terms:
        """(L_S, L_LM) of a micro-batch; with `term_weights` their sum and nothing."""
        targets = batch["ids"][:, self.shape.history :].reshape(-1)
        is_safe = batch["is_safe"].repeat_interleave(self.shape.reply)
        head = Head(self.policy.lm_head.weight)
        with torch.autocast(DEVICE.type, HALF, enabled=self.in_half):
            states = self.states(self.policy, batch)
            if not self.way.has_experts:
                nll = negative_log_likelihood(head_log_probs(states, head), targets)
                return Terms(states.new_zeros(()), nll.sum() / self.tokens)
            heads = [Head(expert.lm_head.weight) for expert in self.experts]
            said = list(zip(batch["experts"], heads, strict=True))
            of = Replies(states, head, targets, is_safe, said, self.tokens, self.safe_tokens)
            safety, rest = fused_head(of, term_weights) if self.way.is_fused else naive_head(of)
        has_rest = term_weights is None and bool(is_safe.any())
        return Terms(safety, rest if has_rest else rest.detach())

    def gradient(self) -> list[Tensor]:
        """The step's gradient. The experts run once, without autocast."""
        if self.way.has_experts:
            with torch.no_grad():
                for batch in self.batches:
                    batch["experts"] = [self.states(expert, batch) for expert in self.experts]

        def terms(index: int) -> Terms:
            return self.losses(self.batches[index], None)

        def mixed(index: int, term_weights: TermWeights) -> Tensor:
            return self.losses(self.batches[index], term_weights).penalised

        can_mix = self.way.is_fused and self.way.has_experts
        return self.way.gradient(self, Objective(terms, mixed if can_mix else None)).gradient

    def step(self) -> None:
        for parameter, grad in zip(self.parameters, self.gradient(), strict=True):
            parameter.grad = grad
        nn.utils.clip_grad_norm_(self.parameters, 1.0)
        self.optimizer.step()
        self.optimizer.zero_grad()


def random_model(config: Any) -> Any:
    auto = AutoModelForSeq2SeqLM if config.is_encoder_decoder else AutoModelForCausalLM
    with DEVICE:
        return auto.from_config(config).float()


def alone(gradient: list[Tensor]) -> None: ...


def flat(
    subject: Subject, objective: Objective, way: Callable[..., FlatGradient], **more: Any
) -> FlatGradient:
    with sdpa_kernel(SDPBackend.MATH) if way is flatness.exact else nullcontext():
        return way(subject.parameters, objective, subject.split, alone, PENALTY, **more)


def ahead(subject: Subject, objective: Objective) -> FlatGradient:
    """The few rows keep both gradients apart and refresh the running mean."""
    given = subject.parameters, objective, subject.split, alone, PENALTY
    found, fresh = flatness.lookahead(*given, subject.mean, LAMBDA)
    if subject.split.penalised:
        mean = subject.mean.gradient
        torch._foreach_lerp_(mean, fresh, 0.5)
        subject.mean = Mean(mean, norm(mean))
    return found


SAFETY = Way(lambda s, e: flatness.plain_gradient(s.parameters, e, s.split.penalised, alone))
FAST = Way(partial(flat, way=flatness.fast_difference, weight=LAMBDA))
FINITE = Way(partial(flat, way=flatness.finite_difference), is_apart=True)
WAYS = {
    "plain": SAFETY._replace(has_experts=False),
    BASE: SAFETY,
    "finite_difference": FINITE,
    "fast": FAST,
    "lookahead": Way(ahead, few=0.0),
    REFRESH: Way(ahead, is_apart=True),
    "finite, an eighth": FINITE._replace(few=EIGHTH),
    NAIVE: SAFETY._replace(is_fused=False),
    "finite, naive": FINITE._replace(is_fused=False),
    "exact, naive": Way(partial(flat, way=flatness.exact), is_fused=False, is_apart=True),
}
# addmm_ is not in torch's own list; from the shapes of its arguments
COUNTED = {torch.ops.aten.addmm_: lambda _, a, b, **__: 2 * a[0] * a[1] * b[1]}


class Cost(NamedTuple):
    """Seconds, floating-point operations of matrix products, and peak bytes."""

    seconds: float
    products: float
    memory: int


def seconds_of(work: Callable[[], object]) -> float:
    begun = time.perf_counter()
    work()
    if DEVICE.type == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter() - begun


def forget() -> None:
    """Return memory to the card, and begin a new peak."""
    if DEVICE.type == "cuda":
        gc.collect()
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()


def attempt(name: str, work: Callable[[], object], until: float) -> Cost | None:
    """The cost of `work`; None after a line that says why it, and its repeats, did not run."""
    forget()
    fault = "left out, no time"
    try:
        if time.perf_counter() < until:
            with FlopCounterMode(display=False, custom_mapping=COUNTED) as counter:
                work()
            if seconds_of(work) * TIMED < until - time.perf_counter():
                taken = statistics.median(seconds_of(work) for _ in range(TIMED))
                memory = torch.cuda.max_memory_allocated() if DEVICE.type == "cuda" else 0
                return Cost(taken, float(counter.get_total_flops()), memory)
    except (RuntimeError, ImportError) as error:  # out of memory is a RuntimeError
        fault = f"left out, {str(error).splitlines()[0][:80]}"
    print(f"  {name:<24}{fault}", flush=True)
    return None


def largest_rate(size: int) -> float:
    """Operations per second of one bfloat16 product of square matrices."""
    one = torch.randn(size, size, device=DEVICE, dtype=HALF)
    return 2 * size**3 / statistics.median(seconds_of(lambda: one @ one) for _ in range(4 * TIMED))


def measure_steps(shape: Shape, rate: float, until: float) -> dict[str, Cost]:
    """A line for each way."""
    subject, found = Subject(shape), dict[str, Cost]()
    titles = "seconds", "ratio", "tokens/s", "peak", "memory"
    print(f"  {'a step':<24}" + "".join(f"{title:>12}" for title in titles))
    for name, way in WAYS.items():
        subject.begin(way)
        if cost := attempt(name, subject.step, until):
            found[name] = cost
            ratio = f"{cost.seconds / found[BASE].seconds:.2f} x" if BASE in found else ""
            tokens = shape.rows * (shape.history + shape.reply) / cost.seconds
            of_peak = cost.products / cost.seconds / rate
            cells = f"{cost.seconds:12.4f}{ratio:>12}{tokens:12,.0f}{of_peak:12.1%}"
            print(f"  {name:<24}{cells}{cost.memory / 2**30:9.2f} GB", flush=True)
    return found


def head_gradient(way: Callable[[Replies], tuple[Tensor, Tensor]], of: Replies) -> Any:
    return torch.autograd.grad(torch.stack(way(of)).sum(), (of.states, of.head.weight))


def measure_heads(shape: Shape, until: float) -> None:
    """A line for each way to compute the head alone, on the replies of a whole batch."""
    width, vocabulary = shape.config.hidden_size, shape.config.vocab_size
    tokens = shape.rows * shape.reply
    with DEVICE:
        states, *others = (torch.randn(tokens, width, dtype=HALF) for _ in range(3))
        weights = [torch.randn(vocabulary, width, dtype=HALF) * width**-0.5 for _ in range(3)]
        targets, is_safe = torch.randint(vocabulary, (tokens,)), torch.rand(tokens) < SAFE
    states.requires_grad_(), weights[0].requires_grad_()
    head, *heads = map(Head, weights)
    said = list(zip(others, heads, strict=True))
    of = Replies(states, head, targets, is_safe, said, tokens, int(is_safe.sum()))
    first: list[Tensor] = []
    fused = partial(fused_head, term_weights=TermWeights())
    print(f"  {f'the head, {tokens:,} tokens':<24}{'seconds':>12}{'memory':>12}{'apart':>12}")
    for name, way in (("naive", naive_head), ("fused", fused), ("liger", liger_head)):
        work = partial(head_gradient, way, of)
        if cost := attempt(name, work, until):
            made = [gradient.float() for gradient in work()]
            first = first or made
            apart = max(float((a - b).norm() / b.norm()) for a, b in zip(made, first, strict=True))
            cells = f"{cost.seconds:12.4f}{cost.memory / 2**30:9.2f} GB{apart:12.1e}"
            print(f"  {name:<24}{cells}", flush=True)


def main(arguments: Sequence[str] | None = None) -> int:
    parser, names = options(__doc__), list(shapes(True))
    parser.add_argument("--minutes", type=float, default=9.0, help="no way begins that ends later")
    parser.add_argument("--models", nargs="+", choices=names, default=names)
    parser.add_argument("--smoke", action="store_true", help="tiny shapes, no targets")
    given = parser.parse_args(arguments)
    until = time.perf_counter() + 60 * given.minutes
    print(machine(), flush=True)
    rate = largest_rate(256 if given.smoke else 8192)
    print(f"one bfloat16 product: {rate / 1e12:.3g} TFLOP/s")
    targets = []
    for name in given.models:
        shape = shapes(given.smoke)[name]
        print(f"\n{name}", flush=True)
        found = measure_steps(shape, rate, until - SPARE)
        measure_heads(shape, until)
        for ways in (ways for ways in LIMITS if {*ways, BASE} <= found.keys()):
            ratio = statistics.mean(found[way].seconds for way in ways) / found[BASE].seconds
            targets.append(Target(f"{name}: {ways[0]} / {BASE}", ratio, LIMITS[ways]))
        if {BASE, NAIVE} <= found.keys() and found[NAIVE].memory:
            memory = found[BASE].memory / found[NAIVE].memory
            targets.append(Target(f"{name}: memory, fused / naive", memory, 1.0))
    return conclude(targets) if targets and not given.smoke else 0


if __name__ == "__main__":
    sys.exit(main())
