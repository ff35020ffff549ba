"""What a scorer hands to the attribution method: a few numbers a token, never a vocabulary.

Axis letters: T tokens, M members, K teachers, D decoys, J = 1 + K + D + 1 vectors, A answers, V vocabulary.

For one context: p_m the next-token distribution of member m, p_s of the *subject* (the model whose answers are judged),
p_0 of the base; d_m = log p_m − log p_0 (V numbers, nats) is the *shift* of m; w = (p_s + p_0) / 2 weights the
vocabulary.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, replace
from typing import Any

import numpy as np
import numpy.typing as npt

from mopd_diag.errors import BadInput, nearest

Floats = npt.NDArray[np.floating[Any]]
Ints = npt.NDArray[np.integer[Any]]
Bools = npt.NDArray[np.bool_]
NUMBERS = ("logp_TM", "kl_TM", "gram_TJJ")
KINDS = {**dict.fromkeys(NUMBERS, float), "answer_T": int, "position_T": int, "own_T": bool}


@dataclass(frozen=True, slots=True, eq=False)
class Evidence:
    """Token-level evidence on given answers of one model, the subject, under a cast.

    - `members`: the subject first, then the base, the K teachers, and others (*decoys*: models that never taught). A
      subject that is the base itself is listed once. `teachers`: the K candidates, in the order of the Gram matrix.
    - `logp_TM`: log p_m(token), nats. `kl_TM`: KL(p_s ‖ p_m), nats, exact over the vocabulary; 0 for the subject.
      Rounding below 0 is set to 0.
    - `gram_TJJ`: centred inner products Σ_v w x_i x_j − (Σ_v w x_i)(Σ_v w x_j), nats², of the vectors x =
      [d_subject, d_teacher 1 … K, d_decoy 1 … D, log p_0].
    - `answer_T`: index of the answer, sorted. `position_T`: position of the token in its answer. `own_T`: False where
      the world wrote the token; such rows are carried along and never judged, and may hold anything.
    - `full_vocabulary`: False when divergences and Gram were made from the top k tokens and a tail bucket.

    Raises BadInput when shapes disagree or when a member's numbers are not finite; the message names the member.
    `Evidence.of_finite` leaves such members out instead.
    """

    members: tuple[str, ...]
    teachers: tuple[str, ...]
    logp_TM: Floats
    kl_TM: Floats
    gram_TJJ: Floats
    answer_T: Ints
    position_T: Ints
    own_T: Bools
    full_vocabulary: bool = True
    base: str = "base"

    def __post_init__(self) -> None:
        for name, kind in KINDS.items():
            array = np.asarray(getattr(self, name))
            object.__setattr__(self, name, array if array.dtype.kind == np.dtype(kind).kind else array.astype(kind))
        self._check_names()
        self._check_shapes()
        broken = _broken(self.fields())
        if broken:
            raise BadInput(f"{' and '.join(repr(m) for m in broken)} gave NaN or infinite numbers; leave out with "
                           "Evidence.of_finite(...), or repair the checkpoint")  # fmt: skip
        object.__setattr__(self, "kl_TM", np.maximum(self.kl_TM, 0))

    def _check_names(self) -> None:
        if len(set(self.members)) != len(self.members) or len(set(self.teachers)) != len(self.teachers):
            raise BadInput(f"members must be different, got {list(self.members)} with teachers {list(self.teachers)}")
        for name in (self.base, *self.teachers):
            if name not in self.members:
                raise BadInput(f"'{name}' is not among the members; {nearest(name, self.members)}")
        if not self.teachers or self.base in self.teachers:
            raise BadInput(f"expected at least one teacher, and the base not among them, got {list(self.teachers)}")

    def _check_shapes(self) -> None:
        tokens, n_members, n_vectors = len(self.answer_T), len(self.members), len(self.shifted) + 2
        expected = {
            "logp_TM": (tokens, n_members), "kl_TM": (tokens, n_members), "gram_TJJ": (tokens, n_vectors, n_vectors),
            "answer_T": (tokens,), "position_T": (tokens,), "own_T": (tokens,),
        }  # fmt: skip
        for name, shape in expected.items():
            if getattr(self, name).shape != shape:
                raise BadInput(f"evidence {name} has shape {getattr(self, name).shape}, expected {shape}")
        if tokens and (self.answer_T[0] < 0 or (np.diff(self.answer_T) < 0).any()):
            raise BadInput("evidence answer_T must be sorted and start at 0 or later: sort the rows by answer")

    # -- names ----------------------------------------------------------------------------------------------------------

    @property
    def subject(self) -> str:
        return self.members[0]

    @property
    def decoys(self) -> tuple[str, ...]:
        """Members that are neither subject, base nor candidate teacher."""
        return tuple(m for m in self.members[1:] if m != self.base and m not in self.teachers)

    @property
    def shifted(self) -> tuple[str, ...]:
        """Whose shifts stand in the Gram matrix, between the subject's and log p_0: the teachers', then the decoys'."""
        return self.teachers + self.decoys

    @property
    def n_answers(self) -> int:
        """One more than the last answer that has a token; answers without tokens at the end are not counted."""
        return int(self.answer_T[-1]) + 1 if len(self.answer_T) else 0

    def columns(self, names: Sequence[str]) -> list[int]:
        """Where members stand on the axis M."""
        return [self.members.index(n) for n in names]

    # -- broken members -------------------------------------------------------------------------------------------------

    def without(self, member: str) -> Evidence:
        """The same evidence with one teacher or decoy less. Raises BadInput for subject, base, unknown names, the last
        teacher."""
        return Evidence(**_without(self.fields(), member))

    def select(self, teachers: Sequence[str], decoys: Sequence[str] = ()) -> Evidence:
        """The same evidence with some of the teachers as candidates, others as decoys, and the rest left out.

        Raises BadInput for a name that is neither teacher nor decoy.
        """
        for name in (*teachers, *decoys):
            if name not in self.shifted:
                raise BadInput(f"'{name}' is not among teachers and decoys; {nearest(name, self.shifted)}")
        base = () if self.subject == self.base else (self.base,)
        members = (self.subject, *base, *teachers, *decoys)
        keep_M = self.columns(members)
        keep_J = [0, *(1 + self.shifted.index(t) for t in (*teachers, *decoys)), len(self.shifted) + 1]
        return replace(
            self, members=members, teachers=tuple(teachers), logp_TM=self.logp_TM[:, keep_M], kl_TM=self.kl_TM[:, keep_M],
            gram_TJJ=self.gram_TJJ[:, keep_J][:, :, keep_J],
        )  # fmt: skip

    @classmethod
    def of_finite(cls, **parts: Any) -> tuple[Evidence, tuple[str, ...]]:
        """As the constructor, but teachers and decoys with NaN or ±inf are left out; returns their names too.

        Raises BadInput when it is the subject or the base that is broken, or when no teacher is left.
        """
        checked = cls(**{**parts, **{name: np.nan_to_num(parts[name]) for name in NUMBERS}})
        left_out = _broken({**checked.fields(), **{name: np.asarray(parts[name]) for name in NUMBERS}})
        parts.setdefault("base", checked.base)
        for member in left_out:
            parts = _without(parts, member)
        return cls(**parts), tuple(left_out)

    def fields(self) -> dict[str, Any]:
        """The constructor's arguments by name."""
        return {f.name: getattr(self, f.name) for f in fields(self)}

    def masked(self, keep_T: Bools) -> Evidence:
        """The same evidence, only some of the subject's tokens counting as its own."""
        return replace(self, own_T=self.own_T & keep_T)

    def take(self, answers: Sequence[int] | Ints) -> Evidence:
        """Some answers, in the order given, renumbered from 0."""
        order = [np.flatnonzero(self.answer_T == a) for a in answers]
        rows = np.concatenate(order) if order else np.zeros(0, int)
        numbers = np.repeat(np.arange(len(order)), [len(o) for o in order])
        parts = {name: getattr(self, name)[rows] for name in ("logp_TM", "kl_TM", "gram_TJJ", "position_T", "own_T")}
        return replace(self, answer_T=numbers, **parts)


def _broken(parts: Mapping[str, Any]) -> list[str]:
    """Members with numbers that are not finite on a token that counts; only base or subject when they are: they spoil
    all."""
    members, own = parts["members"], parts["own_T"]
    finite_M = np.isfinite(parts["logp_TM"][own]).all(0) & np.isfinite(parts["kl_TM"][own]).all(0)
    finite_TJ = np.isfinite(np.diagonal(parts["gram_TJJ"][own], axis1=1, axis2=2))
    for j, name in enumerate((members[0], *_shifted(parts), parts["base"])):
        finite_M[members.index(name)] &= finite_TJ[:, j].all()
    found = [m for m, finite in zip(members, finite_M, strict=True) if not finite]
    if not found and not np.isfinite(parts["gram_TJJ"][own]).all():
        return [members[0]]
    # A divergence is broken by either of its two models; a log-probability only by its own.
    own_fault = [m for m in found if not np.isfinite(parts["logp_TM"][own][:, members.index(m)]).all()]
    spoilers = (parts["base"], members[0])
    return [m for m in spoilers if m in own_fault] or [m for m in spoilers if m in found] or found


def _shifted(parts: Mapping[str, Any]) -> list[str]:
    """`Evidence.shifted` of arguments that are not an Evidence yet."""
    teachers = list(parts["teachers"])
    return teachers + [m for m in parts["members"][1:] if m != parts["base"] and m not in teachers]


def _without(parts: dict[str, Any], member: str) -> dict[str, Any]:
    members, teachers = list(parts["members"]), list(parts["teachers"])
    if member not in members:
        raise BadInput(f"'{member}' is not among the members; {nearest(member, members)}")
    if member in (members[0], parts["base"]):
        raise BadInput(
            f"'{member}' cannot be left out: every shift is measured from the subject to the base; repair it"
        )
    if teachers == [member]:
        raise BadInput(f"'{member}' is the only teacher: without it there is nobody to attribute to")
    keep_M = [i for i, m in enumerate(members) if m != member]
    shifted = _shifted(parts)
    keep_J = [0, *(1 + i for i, t in enumerate(shifted) if t != member), len(shifted) + 1]
    return {
        **parts,
        "members": tuple(m for m in members if m != member),
        "teachers": tuple(t for t in teachers if t != member),
        "logp_TM": np.asarray(parts["logp_TM"])[:, keep_M],
        "kl_TM": np.asarray(parts["kl_TM"])[:, keep_M],
        "gram_TJJ": np.asarray(parts["gram_TJJ"])[:, keep_J][:, :, keep_J],
    }
