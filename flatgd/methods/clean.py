"""Clean fine-tuning: the likelihood of the given replies, nothing else.

On safe replies this is the paper's first baseline and its clean expert; on toxic replies it is the
toxic expert (Khalatbari et al. 2024, section 3.1; Eq. 3, here a mean over the batch's tokens).
"""

from dataclasses import dataclass

from torch import nn

from flatgd.losses import negative_log_likelihood
from flatgd.methods.base import Method, Scored, Totals, scored
from flatgd.models.encoding import Batch
from flatgd.models.heads import reply_log_probs, reply_tokens


@dataclass
class Clean(Method):
    name = "clean"
    summary = "fine-tuned on the safe replies alone."
    trains_on_toxic = False

    def terms(self, policy: nn.Module, batch: Batch, totals: Totals) -> Scored:
        targets_N, _ = reply_tokens(batch)
        nll_N = negative_log_likelihood(reply_log_probs(policy, batch), targets_N)
        lm = nll_N.sum() / totals.tokens
        return scored(lm, lm=lm)
