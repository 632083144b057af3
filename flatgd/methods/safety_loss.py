"""Safety_loss: towards a clean expert, away from a toxic one (LOT, Khalatbari et al. 2023).

    a * L_LM + L_S                                                  (FlatGD's Eq. 1 with lambda = 0)
    L_S  = gamma * D(p, clean) - beta * D(p, toxic)                                          (Eq. 4)
    L_LM = -log p(reply), over safe replies                                                  (Eq. 3)

D is a mean over all reply tokens of the batch, safe and toxic, in bits. L_LM is a mean over the
safe rows' tokens. By default D is the Jensen-Shannon divergence, and L_S lies in [-beta, gamma].
The other divergences (Appendix F names Bhattacharyya's) are ablations. They have no upper bound, so
the distance to the toxic expert can grow forever.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from flatgd.config.names import EXPERTS
from flatgd.config.options import option
from flatgd.flatness import Terms, TermWeights
from flatgd.losses import bhattacharyya_distance, js_divergence, kl_divergence
from flatgd.losses.fused import Expert, Head, fused_losses, head_log_probs
from flatgd.methods.base import (
    LM_WEIGHT,
    Method,
    Scored,
    Totals,
    has_likelihood,
    likelihood_of_safe,
)
from flatgd.models.encoding import IGNORE, Batch
from flatgd.models.heads import (
    HeadOnly,
    at_head,
    has_plain_head,
    head_of,
    head_weight,
    in_vocabulary,
    reply_log_probs,
    reply_states,
    reply_tokens,
)

DIVERGENCES: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "js": js_divergence,
    "kl": kl_divergence,
    "kl_from_expert": lambda log_p, log_q: kl_divergence(log_q, log_p),
    "bhattacharyya": bhattacharyya_distance,
}
ATTRACT_WEIGHT = option(
    "Weight gamma of the distance to the clean expert (Eq. 4). Higher is safer. Table 5: 3.", ge=0
)
REPEL_WEIGHT = option(
    "Weight beta of the distance to the toxic expert (Eq. 4). Higher is safer and costs more "
    "quality. Table 5: 2.",
    ge=0,
)
PENALISE = option(
    "The loss whose gradient norm is penalised.", choices=("safety_loss", "objective")
)
MAX_CACHED_BYTES = 2**28  # of the experts' log-probabilities kept from one pass to the next


@dataclass
class SafetyLoss(Method):
    clean_expert: nn.Module = field(repr=False)
    toxic_expert: nn.Module = field(repr=False)
    lm_weight: float = field(default=1.0, metadata=LM_WEIGHT)
    attract_weight: float = field(default=3.0, metadata=ATTRACT_WEIGHT)
    repel_weight: float = field(default=2.0, metadata=REPEL_WEIGHT)
    penalise: str = field(default="safety_loss", metadata=PENALISE)
    divergence: str = field(
        default="js",
        metadata=option(
            "Distance to the experts. js is the paper's and bounded; the others are ablations that "
            "can grow without bound.",
            choices=tuple(DIVERGENCES),
        ),
    )

    name = "safety_loss"
    summary = (
        "drawn to an expert tuned on safe replies, pushed away from one tuned on toxic replies."
    )
    needs = EXPERTS

    def __post_init__(self) -> None:
        super().__post_init__()
        self._is_plain: dict[str, bool] = {}  # whether an expert has a plain head, once tried
        self._states: dict[str, Callable[[Batch], Tensor]] = {}

    def use_cached_states(self, name: str, states: Callable[[Batch], Tensor]) -> None:
        """Use `states`, which gives an expert's last hidden states [N, D] of a batch, and keep only
        the expert's head in memory."""
        self._states[name] = states
        setattr(self, name, HeadOnly(head_of(getattr(self, name))))

    def prepare(self, parts: Sequence[Batch]) -> list[Batch]:
        """Micro-batches with the outputs of both experts: log-probabilities [N, V] if all fit into
        MAX_CACHED_BYTES, else states [N, D], to which the heads are applied in every pass.

        The experts compute in their own precision, also under autocast: rounding the weights of a
        fully tuned expert to bfloat16 undoes most of its tuning (docs/performance.md)."""
        tokens = sum(int((part["targets"] != IGNORE).sum()) for part in parts)
        vocabulary = head_weight(self.clean_expert).shape[0]
        keep = 2 * 4 * tokens * vocabulary <= MAX_CACHED_BYTES
        device = parts[0]["targets"].device.type
        with torch.no_grad(), torch.autocast(device, enabled=False):
            return [self._with_experts(part, keep) for part in parts]

    def _with_experts(self, part: Batch, keep: bool) -> Batch:
        for name in EXPERTS:
            part = {**part, **self._expert_outputs(name, part, keep)}
        return part

    def _expert_outputs(self, name: str, part: Batch, keep: bool) -> Batch:
        """One expert's log-probabilities, under the key `name`, or its states, under
        `name_states`."""
        expert, states_of = getattr(self, name), self._states.get(name)
        if states_of is None and (keep or not self._has_plain_head(name, part)):
            return {name: reply_log_probs(expert, part)}
        states_ND = states_of(part) if states_of else reply_states(expert, part)
        if keep:
            return {name: head_log_probs(states_ND, head_of(expert))}
        return {f"{name}_states": states_ND}

    def _has_plain_head(self, name: str, part: Batch) -> bool:
        if name not in self._is_plain:
            self._is_plain[name] = has_plain_head(getattr(self, name), part)
        return self._is_plain[name]

    def terms(self, policy: nn.Module, batch: Batch, totals: Totals) -> Scored:
        targets_N, is_safe_N = reply_tokens(batch)
        log_p_NV = reply_log_probs(policy, batch)
        lm = likelihood_of_safe(log_p_NV, targets_N, is_safe_N, totals)
        divergence, everything = DIVERGENCES[self.divergence], slice(None)
        to_clean, to_toxic = (
            divergence(log_p_NV, said(everything)).sum() / totals.tokens
            for said in self._experts_say(batch, log_p_NV.shape[-1])
        )
        safety = self.attract_weight * to_clean - self.repel_weight * to_toxic
        rest = self.lm_weight * lm
        figures = self._figures(lm, to_clean, to_toxic)
        if self.penalise == "objective":
            safety, rest = safety + rest, rest.new_zeros(())
        return Scored(Terms(safety, rest), figures)

    def can_fuse(self, policy: nn.Module, batch: Batch) -> bool:
        return self.divergence == "js" and has_plain_head(policy, batch)

    def fused(
        self,
        policy: nn.Module,
        batch: Batch,
        totals: Totals,
        term_weights: TermWeights | None = None,
    ) -> Scored:
        targets_N, is_safe_N = reply_tokens(batch)
        weights = self.attract_weight / totals.tokens, -self.repel_weight / totals.tokens
        safe_tokens = max(totals.safe_tokens, 1.0)
        if self.penalise == "objective":  # E is the whole objective
            term_weights = TermWeights(
                *[1.0 if term_weights is None else term_weights.penalised] * 2
            )

        def compute(states_ND: Tensor, head: Head) -> Tensor:
            said = self._experts_say(batch, head.weight.shape[0])
            experts = [Expert(w, log_probs) for w, log_probs in zip(weights, said, strict=True)]
            lm_weight = self.lm_weight / safe_tokens
            found = fused_losses(
                states_ND, head, targets_N, is_safe_N, experts, lm_weight, term_weights
            )
            figures.update(
                self._figures(found.lm_sum / safe_tokens, *found.divergences / totals.tokens)
            )
            return torch.cat([found.safety.reshape(1, 1), found.lm.reshape(1, 1)])

        figures: dict[str, Tensor] = {}
        safety, rest = at_head(policy, batch, compute)[:, 0]
        has_rest = term_weights is None and has_likelihood(is_safe_N)
        return Scored(Terms(safety, rest if has_rest else rest.detach()), figures)

    def _experts_say(self, batch: Batch, size: int) -> list[Callable[[slice], Tensor]]:
        """For each expert a function from a slice of the batch's reply tokens to log-probabilities
        [n, V] over `size` tokens of the vocabulary."""

        def saying(name: str) -> Callable[[slice], Tensor]:
            if name in batch:
                return lambda part: in_vocabulary(batch[name][part], size)
            head, states_ND = head_of(getattr(self, name)), batch[f"{name}_states"]
            return lambda part: in_vocabulary(head_log_probs(states_ND[part], head), size)

        return [saying(name) for name in EXPERTS]

    def _figures(self, lm: Tensor, to_clean: Tensor, to_toxic: Tensor) -> dict[str, Tensor]:
        safety = self.attract_weight * to_clean - self.repel_weight * to_toxic
        figures = {
            "loss": safety + self.lm_weight * lm,
            "lm": lm,
            f"{self.divergence}_clean": to_clean,
            f"{self.divergence}_toxic": to_toxic,
        }
        return {name: value.detach() for name, value in figures.items()}
