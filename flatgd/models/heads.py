"""A model's output head, and its log-probabilities and states at the reply tokens of a batch.

Shapes: B rows, T reply positions, N real reply tokens of a batch, D width, V vocabulary.
"""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from peft import PeftModel
from torch import Tensor, nn
from torch.distributed.fsdp import FSDPModule
from torch.nn.functional import pad

from flatgd.errors import ModelError
from flatgd.losses.divergence import LOG_ZERO
from flatgd.losses.fused import Head, head_log_probs, wide_log_softmax
from flatgd.models.encoding import IGNORE

BIAS = "final_logits_bias"  # a buffer [1, V] that BlenderBot and BART add after their head
FORWARD_KEYS = ("input_ids", "attention_mask", "decoder_input_ids")


def reply_log_probs(model: nn.Module, batch: Mapping[str, Tensor]) -> Tensor:
    """Log-probabilities of the next token at each reply token, row by row. Shape [N, V].

    At least float32.
    """
    return wide_log_softmax(reply_logits(model, batch))


def reply_logits(model: nn.Module, batch: Mapping[str, Tensor]) -> Tensor:
    """The model's logits at each reply token, row by row. Shape [N, V]. The output head computes
    only these positions, not the padding."""
    real_BT = batch["targets"] != IGNORE
    inputs = {key: batch[key] for key in FORWARD_KEYS if key in batch}
    with only_positions(output_head(model), real_BT):
        logits_NV: Tensor = model(**inputs, use_cache=False).logits
    return logits_NV


def at_head(
    model: nn.Module, batch: Mapping[str, Tensor], compute: Callable[[Tensor, Head], Tensor]
) -> Tensor:
    """`compute(states [N, D], head)`, of shape [n, 1] or [n, V], in place of the model's logits.

    It runs inside the model's forward pass, where sharded weights are gathered. Its result leaves
    the model as the logits do, so FSDP2 gathers the weights again for each backward pass.
    """
    inner, head = unwrapped(model), output_head(model)
    real_BT = batch["targets"] != IGNORE
    inputs = {key: batch[key] for key in FORWARD_KEYS if key in batch}
    given, bias = head_of(model), getattr(inner, BIAS, None)
    head.forward = lambda states_BTD: compute(
        states_BTD[real_BT], given._replace(weight=head_weight(model))
    )
    if bias is not None:
        setattr(inner, BIAS, bias.new_zeros(1, 1))
    try:
        found: Tensor = model(**inputs, use_cache=False).logits
    finally:
        del head.forward
        if bias is not None:
            setattr(inner, BIAS, bias)
    return found


def reply_states(model: nn.Module, batch: Mapping[str, Tensor]) -> Tensor:
    """The head's input at each reply token, in the order of `reply_log_probs`. Shape [N, D]."""
    return at_head(model, batch, lambda states_ND, head: states_ND)


def head_of(model: nn.Module) -> Head:
    """Weight and bias of the head."""
    head: Any = output_head(model)
    bias = getattr(head, "bias", None)
    if bias is None and (added := getattr(unwrapped(model), BIAS, None)) is not None:
        bias = added[0]
    return Head(head.weight, bias)


class HeadOnly(nn.Module):
    """A copy of the head of a model whose body is no longer needed. Weights read from a file may be
    views of it: one that is kept would hold the whole file in memory."""

    def __init__(self, head: Head):
        super().__init__()
        vocabulary, width = head.weight.shape
        self.head = nn.Linear(width, vocabulary, bias=head.bias is not None, device="meta")
        self.head.weight = nn.Parameter(head.weight.detach().clone(), requires_grad=False)
        if head.bias is not None:
            self.head.bias = nn.Parameter(head.bias.detach().clone(), requires_grad=False)

    def get_output_embeddings(self) -> nn.Module:
        """The same method as in transformers' models."""
        return self.head


def join_embeddings(model: nn.Module) -> None:
    """Replace embeddings that share one weight by one module. FSDP2 supports a tied weight only in
    modules that it shards together, and encoder-decoders have three."""
    embeddings = [
        (parent, name, child)
        for parent in model.modules()
        for name, child in parent.named_children()
        if isinstance(child, nn.Embedding)
    ]
    first: dict[int, nn.Module] = {}
    for parent, name, child in embeddings:
        setattr(parent, name, first.setdefault(id(child.weight), child))


def reshard(model: nn.Module) -> None:
    """Shard weights again after forward passes without a backward pass, which FSDP2 waits for."""
    for module in model.modules():
        if isinstance(module, FSDPModule):
            module.reshard()


def has_plain_head(model: nn.Module, batch: Mapping[str, Tensor]) -> bool:
    """Whether the logits equal those of `head_of` on the last hidden states, tried on `batch`.

    They do not if an adapter is on the head, or if the model changes its logits afterwards.
    """
    if not isinstance(output_head(model), nn.Linear):  # peft wraps a head with an adapter
        return False
    was_training = model.training
    model.eval()
    try:
        with torch.no_grad():
            ours = at_head(model, batch, head_log_probs)
            theirs = reply_log_probs(model, batch)
    finally:
        model.train(was_training)
        reshard(model)
    return bool(torch.allclose(ours, theirs, rtol=1e-3, atol=1e-2))


def in_vocabulary(log_q_NV: Tensor, size: int) -> Tensor:
    """Log-probabilities over `size` tokens, [N, size].

    Models with one token map may pad their vocabularies to different sizes. Surplus padding is cut
    off and the rest normalised again; padding that is added gets probability 0.
    """
    width = log_q_NV.shape[-1]
    if width > size:
        return log_q_NV[:, :size].log_softmax(-1)
    return log_q_NV if width == size else pad(log_q_NV, (0, size - width), value=LOG_ZERO)


def output_head(model: nn.Module) -> nn.Module:
    """The layer from hidden states to logits, also of a wrapped model. Raises ModelError if there
    is none."""
    inner = unwrapped(model)
    head: nn.Module | None = inner.get_output_embeddings()
    if head is None:
        raise ModelError(f"{type(inner).__name__} has no output embeddings")
    return head


def unwrapped(model: nn.Module) -> Any:
    """transformers' own model, inside DistributedDataParallel and below an adapter."""
    inner: Any = getattr(model, "module", model)
    return inner.get_base_model() if isinstance(inner, PeftModel) else inner


def head_weight(model: nn.Module) -> Tensor:
    """That layer's weight, [V, D]."""
    weight: Any = output_head(model).weight
    return torch.as_tensor(weight)


@contextmanager
def only_positions(head: nn.Module, real_BT: Tensor) -> Iterator[None]:
    """Inside the block `head` receives [N, D]: the positions of [B, T, D] where `real_BT` is
    true."""
    hook = head.register_forward_pre_hook(lambda _, args: (args[0][real_BT],))
    try:
        yield
    finally:
        hook.remove()


def reply_rows(batch: Mapping[str, Tensor]) -> Tensor:
    """The row [N] of each reply token, in the order of `reply_log_probs`."""
    return (batch["targets"] != IGNORE).nonzero()[:, 0]


def reply_tokens(batch: Mapping[str, Tensor]) -> tuple[Tensor, Tensor]:
    """(targets [N], is_safe [N]) of the reply tokens, in the order of `reply_log_probs`."""
    real_BT = batch["targets"] != IGNORE
    is_safe_BT = batch["is_safe"][:, None].expand_as(real_BT)
    return batch["targets"][real_BT], is_safe_BT[real_BT]
