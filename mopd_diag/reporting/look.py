"""The look: who is in the cast, in which order, and the one colour, shape and text mark each member has everywhere.

Teachers have saturated hues (Okabe-Ito's, shifted until the first six stay apart for colour-blind eyes on either paper),
the student is ink, the base is grey, rivals are muted. A `Look` is a theme: LIGHT and DARK hold literal colours (for the
app), CSS holds variables of the stylesheet, so that one static SVG follows the reader's theme and the printer's.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, fields
from typing import Any

WORLD = "world"
LABELS = {
    "several": "several teachers alike",
    "pre-existing": "the base does it already",
    "own": "the student's own",
    "abstain": "cannot be told",
    WORLD: "the world's reply, not the model's",
}
LABEL_MARKS = {"several": "sev", "pre-existing": "pre", "own": "own", "abstain": "?", WORLD: "·"}
ROLE_ORDER = ("base", "teacher", "student", "rival", "control")
ROLE_SHAPES = {
    "base": "triangle-down",
    "teacher": "square",
    "student": "diamond",
    "rival": "circle",
    "control": "triangle-up",
}


@dataclass(frozen=True)
class Cast:
    """The models of a run in display order, with their roles, and who teaches which domain."""

    roles: Mapping[str, str]
    taught: Mapping[str, tuple[str, ...]]
    domains: tuple[str, ...]
    route: Mapping[str, str] = field(default_factory=dict)

    @classmethod
    def of(cls, manifest: Mapping[str, Any], models: Iterable[str] = (), domains: Iterable[str] = ()) -> Cast:
        """From the manifest; `models` and `domains` met in the records and not named there come last.

        Checkpoints on the way (role `checkpoint`, or a dot in the name) are no members of the cast.
        """
        named: Mapping[str, Any] = manifest.get("models") or {}
        found = dict.fromkeys([*named, *models])
        roles = {m: str((named.get(m) or {}).get("role") or m.partition("-")[0]) for m in found}
        roles = {m: r if r in ROLE_ORDER else "rival" for m, r in roles.items() if r != "checkpoint" and "." not in m}
        order = sorted(roles, key=lambda m: ROLE_ORDER.index(roles[m]))
        taught: dict[str, tuple[str, ...]] = {}
        for model in found:  # a path trained in phases was taught what its checkpoints were
            line = model.partition(".")[0]
            own = (named.get(model) or {}).get("domains") or ()
            taught[line] = tuple(dict.fromkeys([*taught.get(line, ()), *own]))
        world = (manifest.get("plan") or {}).get("world") or {}
        planned = world.get("domains") or [] if isinstance(world, Mapping) else []
        return cls(
            {m: roles[m] for m in order},
            {m: taught[m] for m in order},
            tuple(dict.fromkeys([*planned, *domains])),
            manifest.get("route") or {},
        )

    def with_role(self, *roles: str) -> list[str]:
        return [m for m, r in self.roles.items() if r in roles]

    @property
    def teachers(self) -> list[str]:
        return self.with_role("teacher")

    def routed(self, domain: str) -> str | None:
        """The teacher to which the prompts of a domain are routed."""
        return self.route.get(domain) or next((t for t in self.teachers if domain in self.taught[t]), None)

    def member(self, label: str) -> str:
        """The model a label names: `teacher:math`, `math` and `teacher-math` are one, and a checkpoint on the way is its model.

        Other labels stay (`several:…` is `several`).

        >>> Cast({"teacher-math": "teacher"}, {}, ()).member("teacher:math")
        'teacher-math'
        """
        head, _, tail = label.partition(":")
        if label not in self.roles and head in LABELS:
            return head
        return self.column(label, f"{head}-{tail}")

    def column(self, name: str, *others: str) -> str:
        """The model that a trace's column names, where `abstain` can only be a teacher of that name."""
        return next((c for c in (name, *others, f"teacher-{name}", name.partition(".")[0]) if c in self.roles), name)

    def mark(self, label: str) -> str:
        """The few letters that stand for a label beside its colour; no two teachers share them."""
        member = self.member(label)
        if member in LABEL_MARKS:
            return LABEL_MARKS[member]
        others = [_short(t) for t in self.teachers if t != member]
        name = _short(member)
        for length in range(2, len(name)):
            if not any(o.startswith(name[:length]) for o in others):
                return name[:length]
        return name


def _short(model: str) -> str:
    return model.removeprefix("teacher-")


@dataclass(frozen=True)
class Look:
    """A theme's colours; `teachers` and `rivals` are used in the order of the cast and then again from the start."""

    ink: str
    muted: str
    faint: str
    card: str
    base: str
    student: str
    control: str
    several: str
    existing: str
    own: str
    abstain: str
    gain: str
    loss: str
    teachers: tuple[str, ...]
    rivals: tuple[str, ...]

    def key(self, cast: Cast, label: str) -> str:
        """The name of a label's colour: `teacher-0`, `student`, `own` …"""
        member = cast.member(label)
        role = cast.roles.get(member)
        if role == "teacher":
            return f"teacher-{cast.teachers.index(member) % len(self.teachers)}"
        if role == "rival":
            return f"rival-{cast.with_role('rival').index(member) % len(self.rivals)}"
        if role is not None:
            return role
        return {"several": "several", "pre-existing": "existing", "own": "own"}.get(member, "abstain")

    def colour(self, cast: Cast, label: str) -> str:
        return self.table()[self.key(cast, label)]

    def table(self) -> dict[str, str]:
        """Every colour by its key."""
        flat: dict[str, str] = {}
        for each in fields(self):
            value = getattr(self, each.name)
            if isinstance(value, tuple):
                flat |= {f"{each.name.removesuffix('s')}-{i}": colour for i, colour in enumerate(value)}
            else:
                flat[each.name] = value
        return flat


LIGHT = Look(
    ink="#1a1d21", muted="#5c646e", faint="#e3e6ea", card="#ffffff", base="#8a929c", student="#1a1d21", control="#6b5b95",
    several="#9db4c8", existing="#c3c8ce", own="#a8323e", abstain="#e6e9ec", gain="#0072b2", loss="#c85200",
    teachers=("#1c77ba", "#ce7a0f", "#12875c", "#a63e7d", "#6c5a12", "#493f9e", "#1c8a99", "#8c4a2f", "#5f7f1f", "#882255"),
    rivals=("#7b6888", "#5b7f8c", "#98824c", "#a06a62", "#6f7f5c"),
)  # fmt: skip

DARK = Look(
    ink="#e8eaed", muted="#9ca5b0", faint="#2c323a", card="#1b1f25", base="#848d98", student="#f4f5f7", control="#b3a3da",
    several="#5f7d97", existing="#4b535d", own="#ef7f88", abstain="#343b44", gain="#4fa8e0", loss="#ee8d4a",
    teachers=("#0486c1", "#ef9f4b", "#37c491", "#ea96c8", "#edde79", "#aaa0f4", "#5fcbd8", "#d99a7c", "#b1cf6c", "#dd7fa8"),
    rivals=("#b39fc2", "#8fb3c1", "#cdb77f", "#d19f97", "#a5b691"),
)  # fmt: skip


def _as_variables(look: Look) -> Look:
    values: dict[str, Any] = {}
    for each in fields(look):
        value, name = getattr(look, each.name), each.name
        values[name] = (
            tuple(f"var(--{name.removesuffix('s')}-{i})" for i in range(len(value)))
            if isinstance(value, tuple)
            else f"var(--{name})"
        )
    return Look(**values)


CSS = _as_variables(LIGHT)


def stylesheet_variables(look: Look) -> str:
    """The declarations that give the CSS look this theme's colours."""
    return "".join(f"--{key}:{colour};" for key, colour in look.table().items())


def stylesheet_classes() -> str:
    """One class a colour, `.k-KEY`, which sets `--k`; whatever is coloured by member reads `--k`."""
    return "".join(f".k-{key}{{--k:{colour}}}" for key, colour in CSS.table().items())
