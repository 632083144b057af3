"""Director: a second head that tells safe from toxic tokens steers decoding (Arora et al. 2022).

    training    a * L_LM + weight * L_class
                L_class = binary cross-entropy of sigmoid(c_t[y_t]) with the row's label, mean over
                all rows' tokens; c = C h, one logit a token of the vocabulary, h the last hidden
                state
    decoding    log p = log p_LM + strength * log sigmoid(c), normalised again

C starts at 0, where it has no effect, and has no bias. Its gradient also reaches h, so the policy
changes too. weight 0.5 is ParlAI's default, strength 1 is ours. The checkpoint is a plain model;
`finish` saves C beside it in director.safetensors. Code that trains without a recipe calls `finish`
itself.
"""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.nn.functional import binary_cross_entropy_with_logits, logsigmoid
from transformers import LogitsProcessor

from flatgd.config.options import option
from flatgd.errors import ModelError
from flatgd.methods.base import LM_WEIGHT, Method, Scored, Totals, likelihood_of_safe, scored
from flatgd.models.encoding import IGNORE, Batch
from flatgd.models.guides import Guide, GuideProcessor, HeadInput
from flatgd.models.heads import head_weight, reply_log_probs, reply_tokens

FILE = "director.safetensors"
HEAD = "director_head"


@dataclass
class Director(Method):
    lm_weight: float = field(default=1.0, metadata=LM_WEIGHT)
    weight: float = field(
        default=0.5, metadata=option("Weight of L_class. ParlAI's default is 0.5.", ge=0)
    )
    strength: float = field(
        default=1.0,
        metadata=option(
            "Weight of the second head while decoding. Higher is safer and less fluent.", ge=0
        ),
    )

    name = "director"
    needs_guide = True
    summary = "fine-tuned with a second head that tells safe tokens from toxic ones while decoding."

    def begin(self, model: nn.Module) -> None:
        vocabulary, width = head_weight(model).shape
        head = nn.Linear(width, vocabulary, bias=False, device=next(model.parameters()).device)
        nn.init.zeros_(head.weight)
        setattr(model, HEAD, head)

    def finish(self, model: nn.Module, folder: Path) -> None:
        head = getattr(model, HEAD)
        save_file({"weight": head.weight.detach().cpu().contiguous()}, folder / FILE)
        delattr(model, HEAD)

    def terms(self, policy: nn.Module, batch: Batch, totals: Totals) -> Scored:
        targets_N, is_safe_N = reply_tokens(batch)
        with HeadInput(policy) as states:
            log_p_NV = reply_log_probs(policy, batch)
        lm = likelihood_of_safe(log_p_NV, targets_N, is_safe_N, totals)
        inner: Any = getattr(policy, "module", policy)
        states_ND = states.last[batch["targets"] != IGNORE]
        logits_N = (states_ND * getattr(inner, HEAD).weight[targets_N]).sum(-1)
        classified = class_loss(logits_N, is_safe_N).sum() / totals.tokens
        return scored(self.lm_weight * lm + self.weight * classified, lm=lm, class_loss=classified)

    @classmethod
    def guide(cls, folder: Path, options: dict[str, Any]) -> "DirectorGuide":
        """The guide that steers the trained checkpoint in `folder`. Raises ModelError if the file
        of its second head is missing, corrupted or not such a head."""
        path = folder / FILE
        try:
            tensors = load_file(path)
        except (OSError, SafetensorError) as error:
            raise ModelError(f"{path} cannot be read: {error}; train the method again") from None
        if list(tensors) != ["weight"] or tensors["weight"].dim() != 2:
            found = ", ".join(f"{name} {list(value.shape)}" for name, value in tensors.items())
            raise ModelError(
                f"{path} must hold one matrix, weight [vocabulary, width], and holds "
                f"{found or 'nothing'}; train the method again"
            )
        return DirectorGuide(tensors["weight"], options.get("strength", cls.strength))


def class_loss(logits_N: Tensor, is_safe_N: Tensor) -> Tensor:
    """-log P(label) of each token; no reduction; nats. Shape [N]."""
    return binary_cross_entropy_with_logits(
        logits_N, is_safe_N.to(logits_N.dtype), reduction="none"
    )


@dataclass
class DirectorGuide(Guide):
    """Decoding with the second head, whose matrix is `weight` [V, D]."""

    weight: Tensor = field(repr=False)
    strength: float = 1.0

    def log_probs(self, model: nn.Module, batch: Batch) -> Tensor:
        self._refuse_other_shape(model)
        with HeadInput(model) as states:
            log_p_NV = reply_log_probs(model, batch)
        shift_NV = self._shift(states.last[batch["targets"] != IGNORE])
        return (log_p_NV + self.strength * shift_NV).log_softmax(-1)

    def processor(
        self, model: nn.Module, prompt: Batch, temperature: float = 1.0, top_p: float = 1.0
    ) -> LogitsProcessor:
        self._refuse_other_shape(model)
        states = HeadInput(model).attach()
        return GuideProcessor(
            lambda ids: self._shift(states.last[:, -1]), self.strength, temperature, top_p, states
        )

    def _refuse_other_shape(self, model: nn.Module) -> None:
        needed, found = list(head_weight(model).shape), list(self.weight.shape)
        if found != needed:
            raise ModelError(
                f"Director's second head is {found}, and this model needs {needed}; take the "
                f"{FILE} that was trained with it"
            )

    def _shift(self, states_ND: Tensor) -> Tensor:
        self.weight = self.weight.to(states_ND)
        return logsigmoid(states_ND @ self.weight.T)

    def weights(self) -> int:
        return self.weight.numel()
