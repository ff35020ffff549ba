"""Attribution on synthetic distributions whose truth is known by construction, and fast code against slow definitions."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from scipy.optimize import lsq_linear, nnls

from mopd_diag.diagnostics.attribution import Attribution, attribute, findings
from mopd_diag.diagnostics.provenance import excess_over
from mopd_diag.errors import BadInput
from mopd_diag.estimators import attribution as method
from mopd_diag.estimators.divergences import centred_gram, evidence_from_logp, kl, log_softmax
from mopd_diag.estimators.evidence import Evidence
from mopd_diag.estimators.judgement import Rules, judge
from mopd_diag.estimators.nnls import nnls_gram
from mopd_diag.runs.directory import write_table

LENGTH, VOCABULARY = 6, 24
DOMAINS = ("a", "b")


@dataclass
class Cast:
    """Logits (T, V) of a base and the shifts of its teachers; answers of LENGTH tokens."""

    base: np.ndarray
    shifts: dict[str, np.ndarray]
    seed: int

    @classmethod
    def draw(cls, answers: int = 40, teachers: int = 4, seed: int = 0, scale: float = 1.5) -> Cast:
        rng = np.random.default_rng(seed)
        shape = (answers * LENGTH, VOCABULARY)
        moving = rng.random((shape[0], 1)) < 0.7  # teachers agree with the base elsewhere
        shifts = {f"teacher-{'abcdefghij'[k]}": scale * moving * rng.normal(size=shape) for k in range(teachers)}
        return cls(2 * rng.normal(size=shape), shifts, seed)

    def noise(self, amount: float, salt: int = 0) -> np.ndarray:
        return amount * np.random.default_rng((self.seed, 99, salt)).normal(size=self.base.shape)

    def evidence(
        self, shift: np.ndarray, name: str = "student", drop: tuple[str, ...] = (), **extra: np.ndarray
    ) -> Evidence:
        """Evidence on tokens that the subject, base + shift, samples."""
        logits = {name: self.base + shift, "base": self.base}
        logits |= {t: self.base + s for t, s in self.shifts.items() if t not in drop}
        logp = {m: log_softmax(x) for m, x in (logits | {m: self.base + s for m, s in extra.items()}).items()}
        gumbel = np.random.default_rng((self.seed, 7)).gumbel(size=self.base.shape)
        token = (logp[name] + gumbel).argmax(1)
        answer = np.arange(len(token)) // LENGTH
        return evidence_from_logp(logp, token, [t for t in self.shifts if t not in drop], answer)


def attributed(evidence: Evidence, routed: dict[str, str] | None = None, **how) -> Attribution:
    answers = pd.DataFrame({"item_id": [f"item-{i}" for i in range(evidence.n_answers)]})
    answers["domain"] = [DOMAINS[i % 2] for i in range(len(answers))]
    tokens = pd.DataFrame({"token_id": np.arange(len(evidence.answer_T)) % 10, "token": "x"})
    return attribute(evidence, answers, tokens, routed=routed, **how)


def labels(evidence: Evidence, **how) -> pd.Series:
    return attributed(evidence, **how).answers["label"].value_counts(normalize=True)


# -- truth by construction ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("amount", [0.7, 1.0, 1.3])
@pytest.mark.parametrize("taught_by", ["teacher-a", "teacher-d"])
def test_a_student_of_one_teacher_is_given_to_it(taught_by: str, amount: float) -> None:
    cast = Cast.draw()
    found = attributed(cast.evidence(amount * cast.shifts[taught_by] + cast.noise(0.2))).answers
    right = f"teacher:{taught_by[8:]}"
    assert (found["label"] == right).mean() >= 0.9
    assert not found["label"].isin({f"teacher:{t[8:]}" for t in cast.shifts} - {right}).any()


@pytest.mark.parametrize("seed", range(4))
def test_a_copy_of_a_teacher_is_never_given_to_another(seed: int) -> None:
    cast = Cast.draw(seed=seed, scale=0.6)
    found = attributed(cast.evidence(cast.shifts["teacher-b"])).answers
    assert set(found["label"]) <= {"teacher:b", "several", "pre-existing", "abstain"}
    assert found.loc[found["label"] == "several", "set"].map(lambda s: "b" in s.split("+")).all()
    assert (found["label"] == "teacher:b").mean() > 0.8


def test_a_copy_of_the_base_is_pre_existing() -> None:
    cast = Cast.draw()
    found = attributed(cast.evidence(np.zeros_like(cast.base)))
    assert set(found.answers["label"]) == {"pre-existing"}
    assert found.answers["confidence"].min() > 0.999
    assert set(found.tokens["label"]) == {"pre-existing"}
    assert found.answers["share_own"].isna().all(), "nothing moved, so nothing can be shared"


def test_a_shift_that_no_teacher_made_is_its_own() -> None:
    cast = Cast.draw()
    counts = labels(cast.evidence(cast.noise(1.5)))
    assert counts["own"] >= 0.9
    assert not any(label.startswith("teacher:") for label in counts.index)


def test_a_teacher_that_is_not_listed_is_not_replaced_by_another() -> None:
    cast = Cast.draw()
    counts = labels(cast.evidence(cast.shifts["teacher-a"], drop=("teacher-a",)))
    assert sum(v for k, v in counts.items() if k.startswith("teacher:") or k == "several") <= 0.05
    assert counts["own"] >= 0.8


def test_a_short_way_in_the_right_direction_is_no_explanation() -> None:
    cast = Cast.draw(teachers=2)
    cast.shifts["teacher-b"] = 0.05 * cast.shifts["teacher-a"]
    student = cast.shifts["teacher-a"]
    assert labels(cast.evidence(student)).get("teacher:a", 0) >= 0.9, "the timid twin is not as good"
    assert labels(cast.evidence(student, drop=("teacher-a",)))["own"] >= 0.9, "and does not stand in for it"


def test_two_equal_teachers_are_several() -> None:
    cast = Cast.draw(teachers=3)
    cast.shifts["teacher-b"] = cast.shifts["teacher-a"]
    found = attributed(cast.evidence(cast.shifts["teacher-a"] + cast.noise(0.1))).answers
    assert set(found["label"]) == {"several"}
    assert set(found["set"]) == {"a+b"}
    np.testing.assert_allclose(found["share_teacher-a"], found["share_teacher-b"], atol=1e-4)


def test_two_teachers_at_once_are_several() -> None:
    cast = Cast.draw()
    found = attributed(cast.evidence(0.7 * cast.shifts["teacher-a"] + 0.7 * cast.shifts["teacher-c"])).answers
    assert (found["set"] == "a+c").mean() >= 0.8


def test_one_teacher_is_enough() -> None:
    cast = Cast.draw(teachers=1)
    assert labels(cast.evidence(cast.shifts["teacher-a"]))["teacher:a"] >= 0.95
    assert labels(cast.evidence(cast.noise(1.5)))["own"] >= 0.9


def test_sharpening_is_nobodys_work() -> None:
    """All models sharpen by the same factor; who else moved still shows, and sharpening alone has no direction."""
    cast = Cast.draw()
    sharp = 0.5 * cast.base
    cast.shifts = {t: s + sharp for t, s in cast.shifts.items()}
    assert labels(cast.evidence(cast.shifts["teacher-c"] + cast.noise(0.2)))["teacher:c"] >= 0.8
    counts = labels(cast.evidence(sharp))
    assert not any(label.startswith("teacher:") for label in counts.index)


def test_a_planted_token_is_a_span_of_its_own() -> None:
    cast = Cast.draw(answers=20)
    shift = cast.shifts["teacher-a"].copy()
    marked = np.arange(20) * LENGTH + 3
    shift[marked, 5] += 25  # the student's quirk: a token that base and teachers never write there
    spans = attributed(cast.evidence(shift)).spans
    hit = spans[(spans["start"] <= 3) & (spans["end"] > 3)]
    assert (hit["label"] == "own").mean() >= 0.9


# -- invariances ----------------------------------------------------------------------------------------------------------


def test_names_and_order_do_not_matter() -> None:
    cast = Cast.draw()
    one = attributed(cast.evidence(cast.shifts["teacher-b"] + cast.noise(0.6))).answers
    names = dict(zip(cast.shifts, ["teacher-w", "teacher-x", "teacher-y", "teacher-z"], strict=True))
    order = ["teacher-c", "teacher-a", "teacher-d", "teacher-b"]
    other_cast = Cast(cast.base, {names[t]: cast.shifts[t] for t in order}, cast.seed)
    two = attributed(other_cast.evidence(cast.shifts["teacher-b"] + cast.noise(0.6))).answers
    assert list(one["label"].replace({f"teacher:{t[8:]}": f"teacher:{names[t][8:]}" for t in cast.shifts})) == list(
        two["label"]
    )
    for t in cast.shifts:
        np.testing.assert_allclose(one[f"share_{t}"], two[f"share_{names[t]}"], atol=1e-9)
    np.testing.assert_allclose(one["confidence"], two["confidence"], atol=1e-9)


def test_order_of_the_vocabulary_does_not_matter() -> None:
    cast = Cast.draw(answers=5)
    order = np.random.default_rng(3).permutation(VOCABULARY)
    shuffled = Cast(cast.base[:, order], {t: s[:, order] for t, s in cast.shifts.items()}, cast.seed)
    shift = cast.shifts["teacher-b"] + cast.noise(0.4)
    one, two = cast.evidence(shift), shuffled.evidence(shift[:, order])
    np.testing.assert_allclose(one.gram_TJJ, two.gram_TJJ, atol=1e-10)
    np.testing.assert_allclose(one.kl_TM, two.kl_TM, atol=1e-10)


def test_an_answer_is_judged_by_its_own_tokens() -> None:
    cast = Cast.draw(answers=12)
    evidence = cast.evidence(cast.shifts["teacher-b"] + cast.noise(0.6))
    whole, part = attributed(evidence).answers, attributed(evidence.take([7, 2])).answers
    for column in ("label", "confidence", "share_own", "kl_base"):
        assert list(whole[column].iloc[[7, 2]]) == pytest.approx(list(part[column]))


def test_world_tokens_and_masks_are_slices() -> None:
    cast = Cast.draw(answers=8)
    evidence = cast.evidence(cast.shifts["teacher-b"])
    own = evidence.position_T != 2
    parts = evidence.fields()
    spoiled = {
        n: np.where(own.reshape(-1, *[1] * (parts[n].ndim - 1)), parts[n], np.nan)
        for n in ("logp_TM", "kl_TM", "gram_TJJ")
    }
    heard = Evidence(**{**parts, **spoiled, "own_T": own})
    cut = Evidence(**{n: v[own] if isinstance(v, np.ndarray) else v for n, v in parts.items()})
    masked = method.pool(evidence, evidence.answer_T, 8, mask=own)
    sliced = method.pool(cut, cut.answer_T, 8)
    np.testing.assert_allclose(masked.gram_NSS, sliced.gram_NSS)
    np.testing.assert_allclose(masked.kl_NK, sliced.kl_NK)
    found, expected = attributed(heard), attributed(cut)
    assert list(found.answers["label"]) == list(expected.answers["label"])
    assert not found.tokens.loc[~own, "contested"].any()
    assert set(found.tokens.loc[~own, "label"]) == {"abstain"}


def test_single_precision_is_enough() -> None:
    cast = Cast.draw()
    evidence = cast.evidence(cast.shifts["teacher-a"] + cast.noise(0.4))
    single = Evidence(
        **{
            n: v.astype(np.float32) if n in ("logp_TM", "kl_TM", "gram_TJJ") else v
            for n, v in evidence.fields().items()
        }
    )
    one, two = attributed(evidence).answers, attributed(single).answers
    assert (one["label"] == two["label"]).mean() >= 0.95
    np.testing.assert_allclose(one["share_own"], two["share_own"], atol=1e-3)


# -- estimators against their definitions -----------------------------------------------------------------------------------


def test_kl_has_its_direction() -> None:
    p, q = np.log([0.5, 0.5]), np.log([0.9, 0.1])
    assert kl(p, q) == pytest.approx(0.5 * np.log(0.5 / 0.9) + 0.5 * np.log(0.5 / 0.1))
    assert kl(p, q) != pytest.approx(kl(q, p))
    assert kl(np.log([1.0, 1e-300]), q) >= 0
    with np.errstate(divide="ignore"):
        assert kl(np.log([1.0, 0.0]), q) == pytest.approx(-np.log(0.9))


def test_gram_geometry_is_that_of_the_whole_vectors() -> None:
    cast = Cast.draw(answers=2, teachers=3)
    shift = cast.shifts["teacher-b"] + cast.noise(0.5)
    evidence = cast.evidence(shift)
    log0 = log_softmax(cast.base)
    logp = [log_softmax(cast.base + s) for s in (shift, *cast.shifts.values())]
    w = (np.exp(logp[0]) + np.exp(log0)) / 2
    for t in range(len(w)):
        centre = lambda x, w=w[t]: x - w @ x  # noqa: E731
        b = centre(log0[t])
        rest = [centre(p[t] - log0[t]) for p in logp]
        rest = np.stack([d - b * ((w[t] * d) @ b) / ((w[t] * b) @ b) for d in rest])
        np.testing.assert_allclose(method.project_out_base(evidence.gram_TJJ)[t], (rest * w[t]) @ rest.T, atol=1e-9)
    # pooled over an answer: the geometry of the stacked vectors
    pooled = method.pool(evidence, evidence.answer_T, 2)
    np.testing.assert_allclose(pooled.gram_NSS[0], method.project_out_base(evidence.gram_TJJ)[:LENGTH].sum(0))
    direct = -np.stack([(np.exp(logp[0]) * (p - logp[0])).sum(1) for p in logp[1:]], 1)
    np.testing.assert_allclose(pooled.kl_NK[1], direct[LENGTH:].sum(0))


def test_centring_forgets_constants() -> None:
    rng = np.random.default_rng(0)
    x, w = rng.normal(size=(3, 4, 9)), rng.dirichlet(np.ones(9), 3)
    np.testing.assert_allclose(centred_gram(x, w), centred_gram(x + rng.normal(size=(3, 4, 1)), w), atol=1e-12)


@pytest.mark.parametrize("n_columns", [1, 2, 4, 9, 14])
def test_nnls_equals_scipy(n_columns: int) -> None:
    rng = np.random.default_rng(n_columns)
    common = rng.normal(size=(80, 20, 1)) * rng.choice([0, 1, 3], size=(80, 1, 1))  # some nearly collinear
    x = (rng.normal(size=(80, 20, n_columns)) + common) * 10.0 ** rng.integers(-3, 3, (80, 1, n_columns))
    y = rng.normal(size=(80, 20)) + common[:, :, 0]
    found = nnls_gram(np.swapaxes(x, 1, 2) @ x, np.einsum("nvk,nv->nk", x, y), ridge=0)
    expected = np.stack([nnls(a, b)[0] for a, b in zip(x, y, strict=True)])
    np.testing.assert_allclose(found * np.linalg.norm(x, axis=1), expected * np.linalg.norm(x, axis=1), atol=1e-7)


@pytest.mark.parametrize("n_columns", [1, 3, 6])
def test_bounded_nnls_equals_scipy(n_columns: int) -> None:
    rng = np.random.default_rng(n_columns)
    x = rng.normal(size=(40, 20, n_columns)) + rng.normal(size=(40, 20, 1))
    y = 2 * rng.normal(size=(40, 20)) + x.sum(2)
    found = nnls_gram(np.swapaxes(x, 1, 2) @ x, np.einsum("nvk,nv->nk", x, y), upper=0.9, ridge=0)
    expected = np.stack(
        [lsq_linear(a, b, bounds=(0, 0.9), method="bvls", tol=1e-12).x for a, b in zip(x, y, strict=True)]
    )
    np.testing.assert_allclose(found, expected, atol=1e-7)
    assert (found == 0.9).any()


def test_nnls_shares_equal_columns_and_skips_empty_ones() -> None:
    x = np.random.default_rng(0).normal(size=(5, 12, 2))
    x = np.concatenate([x, x[:, :, :1], np.zeros((5, 12, 1))], axis=2)
    found = nnls_gram(np.swapaxes(x, 1, 2) @ x, np.einsum("nvk,nv->nk", x, 2 * x[:, :, 0]))
    np.testing.assert_allclose(found[:, 0], found[:, 2], rtol=1e-6)
    np.testing.assert_allclose(found[:, 0] + found[:, 2], 2, rtol=1e-4)
    np.testing.assert_allclose(found[:, 3], 0)


def test_shares_sum_to_one_and_follow_nnls() -> None:
    cast = Cast.draw(answers=30)
    evidence = cast.evidence(cast.shifts["teacher-a"] + 0.5 * cast.shifts["teacher-b"] + cast.noise(0.7))
    gram = method.project_out_base(evidence.gram_TJJ)
    share, own = method.shares(gram)
    known = ~np.isnan(own)
    assert known.mean() > 0.9
    np.testing.assert_allclose((share.sum(1) + own)[known], 1)
    assert share[known].min() >= 0
    assert own[known].min() >= 0
    # R² of scipy's solution on vectors with this Gram
    for g, rest in zip(gram[:40], own[:40], strict=True):
        values, vectors = np.linalg.eigh(g)
        points = np.sqrt(np.maximum(values, 0))[:, None] * vectors.T
        cost = lsq_linear(points[:, 1:], points[:, 0], bounds=(0, method.OVERSHOOT), method="bvls").cost
        assert rest == pytest.approx(2 * cost / g[0, 0], abs=1e-5)


def test_closeness_has_its_anchors() -> None:
    assert method.closeness([2.0, 2.0, 0.0], [[0.0], [2.0], [1.0]])[:2, 0] == pytest.approx([1, 0])
    assert np.isnan(method.closeness([0.0], [[1.0]])).all()


def test_em_finds_the_mixture() -> None:
    rng = np.random.default_rng(0)
    truth = rng.choice(3, size=4000, p=[0.6, 0.3, 0.1])
    p = rng.dirichlet(np.ones(8), 3)
    tokens = (np.log(p)[truth][:, None] + rng.gumbel(size=(4000, 5, 8))).argmax(2)
    logp = np.log(p)[:, tokens].sum(2).T
    posterior, prior = method.responsibilities(logp)
    np.testing.assert_allclose(posterior.sum(1), 1)
    np.testing.assert_allclose(prior, [0.6, 0.3, 0.1], atol=0.04)
    doubled, priors = method.responsibilities(logp[:, [0, 0, 1]])
    assert priors[0] == pytest.approx(priors[1])
    assert np.allclose(doubled[:, 0], doubled[:, 1])
    assert method.responsibilities(np.zeros((0, 2)))[1] == pytest.approx([0.5, 0.5])


def test_top_k_is_said_and_never_adds_divergence() -> None:
    cast = Cast.draw(answers=10)
    logp = {
        m: log_softmax(cast.base + s)
        for m, s in (("student", cast.shifts["teacher-a"] * 1.1), ("base", 0 * cast.base), *cast.shifts.items())
    }
    token, answer = logp["student"].argmax(1), np.arange(60) // LENGTH
    full, top = (evidence_from_logp(logp, token, list(cast.shifts), answer, top_k=k) for k in (None, 6))
    assert full.full_vocabulary
    assert not top.full_vocabulary
    assert (top.kl_TM <= full.kl_TM + 1e-9).all()
    found = attributed(top)
    assert found.to_dict()["vocabulary"] == "top-k"
    assert (found.answers["label"] == "teacher:a").mean() > 0.8


# -- decoys -----------------------------------------------------------------------------------------------------------------


def test_decoys_are_the_null() -> None:
    cast = Cast.draw(answers=80)
    taught = cast.shifts["teacher-a"] + cast.noise(0.3, 1)
    far, near = (
        cast.shifts["teacher-a"] + cast.noise(1.0, 2),
        cast.shifts["teacher-a"] + cast.noise(0.3, 1) + cast.noise(0.1, 3),
    )
    sure = attributed(cast.evidence(taught, **{"control-sibling": far}))
    assert sure.calibration == "calibrated"
    assert sure.summary()["teacher:a"] > 0.8
    doubt = attributed(cast.evidence(taught, **{"control-sibling": near}))
    assert doubt.summary()["teacher:a"] == 0
    assert doubt.answers["label"].isin(["own", "abstain"]).mean() > 0.95, (
        "a decoy explains it as well: nobody is accused"
    )
    assert attributed(cast.evidence(taught)).calibration == "uncalibrated"


# -- frames -----------------------------------------------------------------------------------------------------------------


def test_the_trace_has_the_contracts_columns() -> None:
    cast = Cast.draw(answers=6, teachers=2)
    found = attributed(cast.evidence(cast.shifts["teacher-a"]), routed={"a": "teacher-a", "b": "teacher-b"})
    contract = [
        "item_id",
        "sample",
        "position",
        "token_id",
        "token",
        "logp_student",
        "logp_base",
        "logp_teacher-a",
        "logp_teacher-b",
    ]
    contract += [
        "kl_teacher-a",
        "kl_teacher-b",
        "share_teacher-a",
        "share_teacher-b",
        "share_own",
        "label",
        "confidence",
    ]
    assert set(contract) <= set(found.tokens.columns)
    assert {"domain", "answer_label", "answer_confidence", "contested"} <= set(found.tokens.columns)
    assert found.tokens["confidence"].between(0, 1).all()
    assert len(found.tokens) == 6 * LENGTH
    assert list(found.answers["baseline_routed"]) == ["teacher-a", "teacher-b"] * 3
    assert (found.answers["baseline_closest"] == "teacher-a").mean() > 0.8
    assert (
        found.answers["likelihood_base"] + found.answers["likelihood_teacher-a"] + found.answers["likelihood_teacher-b"]
    ).to_numpy() == pytest.approx(1)
    document = json.loads(json.dumps(found.to_dict(), allow_nan=False))
    assert sum(document["summary"].values()) == pytest.approx(1)
    assert {"id", "label", "confidence", "shares", "spans"} <= set(document["items"][0])
    assert set(document["items"][0]["shares"]) == {"a", "b", "own"}


def test_frames_survive_parquet_and_still_give_the_findings(tmp_path: Path) -> None:
    cast = Cast.draw(answers=24)
    found = attributed(cast.evidence(cast.shifts["teacher-a"] + cast.noise(0.3)), ROUTES)
    for name, frame in (("tokens", found.tokens), ("spans", found.spans), ("answers", found.answers)):
        write_table(tmp_path / f"{name}.parquet", frame)
    back = pd.read_parquet(tmp_path / "answers.parquet")
    assert [f.to_dict() for f in findings(back, [back])] == [f.to_dict() for f in findings(found, [found])]
    assert len(pd.read_parquet(tmp_path / "tokens.parquet")) == len(found.tokens)


def test_spans_tile_the_answers() -> None:
    cast = Cast.draw(answers=15)
    spans = attributed(cast.evidence(cast.shifts["teacher-a"] + cast.noise(0.5))).spans
    for _, of_answer in spans.groupby("answer"):
        assert of_answer["start"].iloc[0] == 0
        assert of_answer["end"].iloc[-1] == LENGTH
        assert (of_answer["start"].iloc[1:].to_numpy() == of_answer["end"].iloc[:-1].to_numpy()).all()
        keys = (of_answer["label"] + of_answer["set"]).to_numpy()
        assert (keys[1:] != keys[:-1]).all(), "neighbours of one class are one span"


def test_empty_answers_and_no_answers() -> None:
    cast = Cast.draw(answers=3)
    evidence = cast.evidence(cast.shifts["teacher-a"])
    parts = evidence.fields() | {"answer_T": np.where(evidence.answer_T == 2, 3, evidence.answer_T)}
    answers = pd.DataFrame({"item_id": list("uvwxy")})
    found = attribute(Evidence(**parts), answers, (range(3 * LENGTH), ["x"] * 3 * LENGTH))
    assert list(found.answers["label"].iloc[[2, 4]]) == ["abstain", "abstain"]
    assert found.answers["reason"].iloc[2] == "no token of its own"
    nothing = attribute(evidence.take([]), answers.iloc[:0], ([], []))
    assert nothing.summary() == {}
    assert len(nothing.spans) == len(nothing.tokens) == 0


def test_broken_members_are_named_and_can_be_left_out() -> None:
    cast = Cast.draw(answers=3, teachers=3)
    parts = cast.evidence(cast.shifts["teacher-a"]).fields()
    gram, kls = parts["gram_TJJ"].copy(), parts["kl_TM"].copy()
    kls[4, parts["members"].index("teacher-b")] = np.inf
    gram[4, 2, :] = gram[4, :, 2] = np.nan
    with pytest.raises(BadInput, match="'teacher-b' gave NaN or infinite"):
        Evidence(**{**parts, "gram_TJJ": gram, "kl_TM": kls})
    left, names = Evidence.of_finite(**{**parts, "gram_TJJ": gram, "kl_TM": kls})
    assert names == ("teacher-b",)
    np.testing.assert_allclose(left.gram_TJJ, Evidence(**parts).without("teacher-b").gram_TJJ)
    base = parts["logp_TM"].copy()
    base[0, 1] = np.nan
    with pytest.raises(BadInput, match="'base' cannot be left out"):
        Evidence.of_finite(**{**parts, "logp_TM": base})
    with pytest.raises(BadInput, match="only teacher"):
        Evidence(**parts).without("teacher-a").without("teacher-b").without("teacher-c")
    with pytest.raises(BadInput, match="did you mean 'teacher-a'"):
        Evidence(**parts).without("teacher-aa")


def test_what_does_not_fit_together_is_refused() -> None:
    cast = Cast.draw(answers=3)
    evidence = cast.evidence(cast.shifts["teacher-a"])
    with pytest.raises(BadInput, match="shape"):
        Evidence(**{**evidence.fields(), "kl_TM": evidence.kl_TM[:, :2]})
    with pytest.raises(BadInput, match="sorted"):
        Evidence(**{**evidence.fields(), "answer_T": evidence.answer_T[::-1]})
    with pytest.raises(BadInput, match="one row with item_id"):
        attribute(evidence, pd.DataFrame({"item_id": ["x"]}), (range(18), ["x"] * 18))
    with pytest.raises(BadInput, match="routed teachers"):
        attributed(evidence, routed={"a": "teacher-nobody"})


def test_the_base_itself_can_be_the_subject() -> None:
    cast = Cast.draw(answers=3, teachers=2)
    logp = {"base": log_softmax(cast.base)} | {t: log_softmax(cast.base + s) for t, s in cast.shifts.items()}
    evidence = evidence_from_logp(logp, logp["base"].argmax(1), list(cast.shifts), np.arange(18) // LENGTH)
    assert evidence.members == ("base", "teacher-a", "teacher-b")
    assert set(attributed(evidence).answers["label"]) == {"pre-existing"}


# -- findings ---------------------------------------------------------------------------------------------------------------

ROUTES = {"a": "teacher-a", "b": "teacher-a"}


def test_inherited_needs_a_control_that_is_clearly_worse() -> None:
    cast = Cast.draw(answers=60)
    student = attributed(cast.evidence(cast.shifts["teacher-a"] + cast.noise(0.1, 1)), ROUTES)
    control = attributed(cast.evidence(cast.shifts["teacher-a"] + cast.noise(0.8, 2), name="rival-mixed-rl"), ROUTES)
    twin = attributed(cast.evidence(cast.shifts["teacher-a"] + cast.noise(0.1, 3), name="rival-mixed-rl"), ROUTES)
    found = {f.subject: f for f in findings(student, [control])}
    assert set(found) == {f"{m}/{d}" for m in ("student", "rival-mixed-rl") for d in ("a", "b", "overall")}
    assert found["student/a"].verdict == found["student/overall"].verdict == "inherited"
    assert found["rival-mixed-rl/a"].verdict == "control"
    evidence = found["student/a"].evidence
    assert evidence["shares"]["teacher:a"] == pytest.approx(found["student/a"].estimate.value)
    assert {"baseline_closest", "baseline_routed", "baseline_likelihood", "n_contested", "note", "control"} <= set(
        evidence
    )
    assert evidence["control"]["shares"] == found["rival-mixed-rl/a"].evidence["shares"]
    json.dumps([f.to_dict() for f in found.values()], allow_nan=False)

    same = {f.subject: f for f in findings(student, [twin])}
    assert same["student/overall"].verdict == "undetermined"
    assert "accused just the same" in same["student/overall"].evidence["note"]
    both = {f.subject: f for f in findings(student, [control, twin])}
    assert both["student/overall"].verdict == "undetermined", "every control must be worse"
    alone = findings(student.answers)
    assert {f.verdict for f in alone} == {"undetermined"}
    assert "no teacher-free control" in alone[0].evidence["note"]


def test_excess_is_a_ratio_over_items_that_moved() -> None:
    def answers(subject: str, left: list[float], label: str = "abstain") -> pd.DataFrame:
        frame = pd.DataFrame(
            {"item_id": [str(i) for i in range(len(left))], "domain": "a", "label": label, "subject": subject}
        )
        return frame.assign(share_own=left, baseline_routed="")

    rng = np.random.default_rng(0)
    mine = rng.uniform(0.1, 0.2, 40)
    doubled = excess_over(answers("student", list(mine)), answers("control", list(mine * rng.uniform(1.9, 2.1, 40))))
    assert doubled.value == pytest.approx(2, abs=0.05)
    assert doubled.high - doubled.low < 0.1, "paired: the items' own differences drop out"
    assert doubled.unit == "ratio"
    noisy = excess_over(answers("student", list(mine)), answers("control", list(rng.permutation(mine))))
    assert noisy.low < 1 < noisy.high
    assert not excess_over(answers("student", [0.1] * 4), answers("control", [0.1] * 4)).defined
    assert not excess_over(answers("student", list(mine), "pre-existing"), answers("control", list(mine))).defined


def test_verdicts_without_teachers() -> None:
    cast = Cast.draw(answers=40)
    stays = attributed(cast.evidence(np.zeros_like(cast.base)), ROUTES)
    assert {f.verdict for f in findings(stays) if f.subject.startswith("student")} == {"pre-existing"}
    strays = attributed(cast.evidence(cast.noise(1.5)), ROUTES)
    assert {f.verdict for f in findings(strays)} == {"own"}


def test_thresholds_can_be_changed() -> None:
    cast = Cast.draw(answers=10)
    evidence = cast.evidence(cast.shifts["teacher-a"])
    pooled = method.pool(evidence, evidence.answer_T, 10)
    assert set(judge(pooled, Rules(moved=1e9)).kind_N) == {"pre-existing"}
    assert set(judge(pooled, Rules(thin=1.01)).kind_N) == {"abstain"}
