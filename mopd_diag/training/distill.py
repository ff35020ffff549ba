"""Multi-teacher on-policy distillation: the student's own answers, each pulled toward its domain's teacher.

Three published forms. *sampled*: a reverse-KL advantage on the sampled token with a truncated importance weight and an
optional outcome term (MiMo-V2-Flash, 2601.02780). *full*: the exact KL(student‖teacher) over the vocabulary (DeepSeek V4,
2606.19348), from cached hidden states, so that no array of teachers × tokens × vocabulary exists. *topk*: the same over the
teacher's k likeliest tokens and one bucket for the rest.

With λ ≠ 1 the target is not the teacher but what the teacher's change of a reference would be if it went λ times as far
(reward extrapolation, G-OPD, 2602.12125), in all three forms.

Axis letters: N sequences, L positions, M tokens with loss, V vocabulary, D hidden, k top tokens.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from mopd_diag.config import MOPDStage
from mopd_diag.engines.clock import MODEL_TIME
from mopd_diag.engines.head import chunks
from mopd_diag.models.decoder import Decoder
from mopd_diag.models.linear import linear
from mopd_diag.models.tokenizer import Tokenizer
from mopd_diag.seeds import seed_of
from mopd_diag.training.algorithm import Part, StepBatch, make_parts, microbatch_tokens
from mopd_diag.training.explore import answer
from mopd_diag.training.grpo import entropy, group_advantages
from mopd_diag.training.weighting import domain_weights
from mopd_diag.worlds.world import World


def reverse_kl(student_logp_MV: Tensor, teacher_logp_MV: Tensor) -> Tensor:
    """KL(student‖teacher) in nats a token, [M], exact over the vocabulary; the expectation is under the student."""
    return (student_logp_MV.exp() * (student_logp_MV - teacher_logp_MV)).sum(-1)


def topk_reverse_kl(student_logp_MV: Tensor, teacher_logp_MV: Tensor, k: int) -> Tensor:
    """KL(student‖teacher) in nats over k + 1 events, [M]: the teacher's k likeliest tokens and *anything else*.

    A lower bound of `reverse_kl` (merging events never raises a divergence). The teacher chooses the k: chosen by the student,
    the loss can be lowered by moving mass off them.
    """
    top_logp, top = teacher_logp_MV.topk(k, -1)
    inside = student_logp_MV.gather(1, top)
    teacher_rest = _log1mexp(top_logp.logsumexp(-1))
    student_rest = _log1mexp(inside.logsumexp(-1))
    return (inside.exp() * (inside - top_logp)).sum(-1) + student_rest.exp() * (student_rest - teacher_rest)


def extrapolated(teacher_logp_MV: Tensor, reference_logp_MV: Tensor, scale: float) -> Tensor:
    """log of π_ref·(π_teacher/π_ref)^scale, renormalised, [M, V]: scale 0 is the reference, 1 the teacher, above 1 beyond it.

    It is the π that maximises E_π[scale·log(π_teacher/π_ref)] − KL(π‖π_ref) (2602.12125), which differs from −KL(π‖it) by its
    log-normaliser only: a number of the prefix, not of π. Computed in fp32 from log-probabilities, so nothing under- or overflows.
    """
    return torch.log_softmax(reference_logp_MV + scale * (teacher_logp_MV - reference_logp_MV), -1)


def _log1mexp(logp: Tensor) -> Tensor:
    """log(1 − e^x) for x < 0, kept finite: mass below 1e-7 cannot be told from rounding in fp32."""
    return torch.log(-torch.expm1(logp.clamp(max=-1e-7)))


def sampled_token_loss(
    logp_M: Tensor, behaviour_logp_M: Tensor, advantage_M: Tensor, weight_low: float, weight_high: float
) -> Tensor:
    """−w·A·log π a token, [M]: w = sg[π/μ] where it lies in [weight_low, weight_high], else 0 (2601.02780)."""
    ratio = torch.exp(logp_M.detach() - behaviour_logp_M)
    weight = torch.where((ratio >= weight_low) & (ratio <= weight_high), ratio, 0.0)
    return -weight * advantage_M * logp_M


class MOPD:
    """Samples the student's answers, scores them under the routed teachers, learns from the student's own tokens only."""

    def __init__(
        self,
        stage: MOPDStage,
        tokenizer: Tokenizer,
        world: World,
        domains: Sequence[str],
        seed: int,
        teachers: Mapping[str, Decoder],
        reference: Decoder | None = None,
    ) -> None:
        self.stage, self.tokenizer, self.world, self.domains, self.seed = stage, tokenizer, world, domains, seed
        self.teachers = teachers
        """Models by name; `stage.teachers` says which teaches a domain."""
        if (reference is None) != (stage.extrapolation == 1):
            raise ValueError(
                f"extrapolation {stage.extrapolation} and a reference go together, and neither without the other"
            )
        self.reference = reference

    def batch(self, model: Decoder, step: int) -> StepBatch:
        s = self.stage
        items = self.world.draw_batch(self.domains, s.prompts, (self.seed, s.name, step))
        seed = seed_of(self.seed, s.name, step)
        answers = answer(model, self.tokenizer, self.world, items, seed=seed, n=s.group, temperature=s.temperature)
        rollouts, work = answers.rollouts, answers.work
        reward = torch.tensor(answers.scores)
        outcome_N = torch.zeros(len(rollouts))
        if s.alpha > 0:
            outcome_N = group_advantages(torch.tensor(answers.rewards).view(-1, s.group))[0].flatten()
        names = list(dict.fromkeys(i.domain for i in items))
        domain_N = torch.tensor([names.index(i.domain) for i in answers.items])
        wide = lambda column_N: column_N[:, None].expand(rollouts.own_NL.shape)  # noqa: E731
        fields = {"behaviour": rollouts.logp_NL, "outcome": wide(outcome_N), "domain": wide(domain_N)}
        route = [s.teachers[i.domain] for i in answers.items]
        parts = make_parts(
            rollouts.ids_NL, rollouts.length_N, rollouts.own_NL, self._weights(rollouts.own_NL), fields, route,
            tokens=microbatch_tokens(model), device=model.device,
        )  # fmt: skip
        for part in parts:
            self._score(part)
            n, length = part.ids_NL.shape
            for scorer in (self.teachers[part.teacher or ""], *([self.reference] if self.reference else [])):
                work.tokens_scored += len(part.targets_M)
                work.flops += scorer.config.forward_flops(n * length, length / 2, len(part.targets_M))
        metrics = {
            "reward": float(reward.mean()),
            "answer_tokens": rollouts.sampled_tokens / len(rollouts),
            "truncated": 1.0 - float(rollouts.finished_N.float().mean()),
        }
        if s.weighting != "none":
            metrics |= self._reweigh(parts, names)
        return StepBatch(parts, work, metrics)

    def _weights(self, own_NL: Tensor) -> Tensor:
        """Sampled form: tokens of an answer share its weight 1/N (the paper's 1/|y|). Otherwise: every token the same."""
        if self.stage.form != "sampled":
            return torch.full(own_NL.shape, 1.0 / max(1, int(own_NL.sum())))
        return (1.0 / own_NL.sum(1, keepdim=True).clamp(min=1) / len(own_NL)).expand(own_NL.shape)

    @torch.no_grad()
    def _score(self, part: Part) -> None:
        """Cache the last hidden states (never logits) of teacher and reference, and the target's log-probability of the sampled
        tokens. Parts come sorted by teacher, so one teacher's head is used after another's."""
        teacher = self.teachers[part.teacher or ""]
        with MODEL_TIME:
            part.fields["teacher_hidden"] = teacher.hidden_at(part.ids_NL, part.at_M)
            if self.reference is not None:
                part.fields["reference_hidden"] = self.reference.hidden_at(part.ids_NL, part.at_M)
            if self.stage.form == "sampled" or self.stage.weighting == "domain-normalized":
                logp = [
                    self._target_logp(part, c).gather(1, part.targets_M[c, None]).squeeze(1)
                    for c in chunks(len(part.targets_M), teacher.config.vocab_size, teacher.device)
                ]
                part.fields["teacher"] = torch.cat(logp)

    @torch.no_grad()
    def _target_logp(self, part: Part, where: slice) -> Tensor:
        """Log-probabilities that the student is pulled to, [M, V]: the routed teacher's, or those extrapolated from them."""
        head = lambda model, field: torch.log_softmax(  # noqa: E731
            linear(part.fields[field][where], model.head_VD), -1
        )
        teacher_MV = head(self.teachers[part.teacher or ""], "teacher_hidden")
        if self.reference is None:
            return teacher_MV
        return extrapolated(teacher_MV, head(self.reference, "reference_hidden"), self.stage.extrapolation)

    def _reweigh(self, parts: Sequence[Part], names: Sequence[str]) -> dict[str, float]:
        domain_M = torch.cat([p.fields["domain"] for p in parts])
        ratio_M = None
        if self.stage.weighting == "domain-normalized":
            ratio_M = torch.cat([p.fields["teacher"] - p.fields["behaviour"] for p in parts])
        weight_d = domain_weights(domain_M, len(names), self.stage.weighting, ratio_M)
        for part in parts:
            part.weight_M = part.weight_M * weight_d[part.fields["domain"]]
        return {f"weight_{name}": float(w) for name, w in zip(names, weight_d, strict=True)}

    def token_loss(self, logits_MV: Tensor, part: Part, where: slice) -> tuple[Tensor, dict[str, Tensor]]:
        s, fields, targets = self.stage, part.cut(where), part.targets_M[where]
        logp_MV = torch.log_softmax(logits_MV, -1)
        values = {"entropy": entropy(logp_MV.detach())}
        if s.form == "sampled" and s.baseline == "none":
            logp = logp_MV.gather(1, targets[:, None]).squeeze(1)
            log_ratio = fields["teacher"] - logp.detach()
            loss = self._sampled(logp, log_ratio + s.alpha * fields["outcome"], fields)
            return loss, values | {"kl": -log_ratio} | self._mismatch(logp, fields)
        teacher_MV = self._target_logp(part, where)
        if s.form == "topk":
            kl = topk_reverse_kl(logp_MV, teacher_MV, s.top_k)
            return kl, values | {"kl": kl.detach()}
        if s.form == "full":
            kl = reverse_kl(logp_MV, teacher_MV)
            return kl, values | {"kl": kl.detach()}
        kl = reverse_kl(logp_MV.detach(), teacher_MV)
        logp = logp_MV.gather(1, targets[:, None]).squeeze(1)
        # The expected log-ratio under the student is −KL, so adding KL centres the advantage without biasing it.
        return self._sampled(
            logp, fields["teacher"] - logp.detach() + kl + s.alpha * fields["outcome"], fields
        ), values | {"kl": kl} | self._mismatch(logp, fields)

    def _mismatch(self, logp_M: Tensor, fields: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """How far the sampler is from the trainer: w = π/μ of each token, and whether it lies outside the window and is dropped."""
        ratio_M = torch.exp(logp_M.detach() - fields["behaviour"])
        kept_M = (ratio_M >= self.stage.weight_low) & (ratio_M <= self.stage.weight_high)
        return {"importance_weight": ratio_M, "weight_dropped": 1.0 - kept_M.to(ratio_M.dtype)}

    def _sampled(self, logp_M: Tensor, advantage_M: Tensor, fields: Mapping[str, Tensor]) -> Tensor:
        return sampled_token_loss(
            logp_M, fields["behaviour"], advantage_M, self.stage.weight_low, self.stage.weight_high
        )
