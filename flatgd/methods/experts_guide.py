"""The guide from a clean and a toxic expert, shared by DExperts and GeDi. Shapes as in
flatgd/models/guides.py."""

from abc import abstractmethod
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn
from transformers import LogitsProcessor

from flatgd.config.names import EXPERTS
from flatgd.config.options import option
from flatgd.methods.base import System
from flatgd.models.encoding import IGNORE, Batch
from flatgd.models.guides import Guide, GuideProcessor, Stream
from flatgd.models.heads import head_weight, in_vocabulary, reply_log_probs


@dataclass
class ExpertGuide(System, Guide):
    """A guide that compares the clean and the toxic expert."""

    clean_expert: nn.Module = field(repr=False)
    toxic_expert: nn.Module = field(repr=False)
    strength: float = field(
        default=1.0, metadata=option("Weight of the experts while decoding.", ge=0)
    )

    needs = EXPERTS
    needs_guide = True
    models_held = len(EXPERTS)

    @abstractmethod
    def shift(self, difference_RV: Tensor, evidence_R: Tensor, length_R: Tensor) -> Tensor:
        """The shift [R, V] of the log-probabilities.

        `difference_RV`: log p_clean - log p_toxic of every next token. `evidence_R`: the same,
        summed over the reply so far. `length_R`: tokens of the reply, the next one included.
        """

    def log_probs(self, model: nn.Module, batch: Batch) -> Tensor:
        log_p_NV = reply_log_probs(model, batch)
        clean_NV, toxic_NV = (
            in_vocabulary(reply_log_probs(expert, batch), log_p_NV.shape[-1])
            for expert in self.models()
        )
        difference_NV = _difference(clean_NV, toxic_NV)
        real_BT = batch["targets"] != IGNORE
        spoken_BT = torch.zeros_like(real_BT, dtype=log_p_NV.dtype)
        spoken_BT[real_BT] = difference_NV.gather(-1, batch["targets"][real_BT][:, None])[:, 0]
        evidence_BT = spoken_BT.cumsum(1) - spoken_BT
        length_N = real_BT.cumsum(1)[real_BT].to(log_p_NV.dtype)
        shift_NV = self.shift(difference_NV, evidence_BT[real_BT], length_N)
        return (log_p_NV + self.strength * shift_NV).log_softmax(-1)

    def processor(
        self, model: nn.Module, prompt: Batch, temperature: float = 1.0, top_p: float = 1.0
    ) -> LogitsProcessor:
        streams = [Stream(expert, prompt) for expert in self.models()]
        begin = prompt.get("decoder_input_ids", prompt["input_ids"]).shape[1]

        def shift(ids: Tensor) -> Tensor:
            size = head_weight(model).shape[0]
            (clean, clean_R), (toxic, toxic_R) = (stream.read(ids) for stream in streams)
            difference = _difference(in_vocabulary(clean, size), in_vocabulary(toxic, size))
            length_R = torch.full_like(clean_R, ids.shape[1] - begin + 1)
            return self.shift(difference, clean_R - toxic_R, length_R)

        return GuideProcessor(shift, self.strength, temperature, top_p)

    def weights(self) -> int:
        return sum(p.numel() for model in self.models() for p in model.parameters())


def _difference(clean: Tensor, toxic: Tensor) -> Tensor:
    """log p_clean - log p_toxic; 0 for tokens that are padding in an expert's vocabulary."""
    return torch.nan_to_num(clean - toxic, nan=0.0, posinf=0.0, neginf=0.0)
