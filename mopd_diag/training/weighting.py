"""How much each domain's tokens weigh in a distillation step."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

CLIP = (0.25, 4.0)


def domain_weights(
    domain_M: Tensor, domains: int, weighting: Literal["none", "token-balanced", "domain-normalized"], log_ratio_M: Tensor | None = None
) -> Tensor:  # fmt: skip
    """A factor a domain, [domains], for the weights of its tokens; 1 for a domain with no tokens in the batch.

    *token-balanced*: every domain gets the same share of the gradient's tokens, whatever the length of its answers.
    *domain-normalized*: DN-MOPD (2609.35347), w_d = clip(σ_all/σ_d, 0.25, 4), σ the standard deviation of the log-ratios
    log π_teacher − log π_student of the sampled tokens, in `log_ratio_M`, over all tokens and over those of domain d.
    """
    ones = torch.ones(domains, device=domain_M.device)
    if weighting == "none":
        return ones
    count = torch.bincount(domain_M, minlength=domains)
    if weighting == "token-balanced":
        present = count > 0
        return torch.where(present, len(domain_M) / present.sum() / count.clamp(min=1), ones)
    if log_ratio_M is None:
        raise ValueError("domain-normalized weights need the log-ratios of the sampled tokens")
    spread = log_ratio_M.std(correction=0)
    weights = [
        (spread / log_ratio_M[domain_M == d].std(correction=0)).clamp(*CLIP) if count[d] > 1 else ones[d]
        for d in range(domains)
    ]
    return torch.stack(weights).nan_to_num(1.0)
