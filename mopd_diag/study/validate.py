"""What a list of stages must satisfy before anything is trained: names, parents, domains, teachers, judges, sizes, an order."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from mopd_diag.config import (
    CheckpointStage,
    MergeStage,
    ModelConfig,
    MOPDStage,
    PlantStage,
    RejectionStage,
    RewardModelStage,
    SeqKDStage,
    SFTStage,
    Stage,
)
from mopd_diag.errors import BadInput, nearest
from mopd_diag.worlds.micro.quirks import quirk
from mopd_diag.worlds.world import World

ROLES = ("base", "teacher", "student", "rival", "control")
BITS = 7
"""Hidden dimensions that the micro world's vocabulary of 99 tokens needs at least: fewer cannot name them all apart."""


def check_stage(stage: Stage, stages: Iterable[Stage], world: World, model: ModelConfig) -> None:
    """Raise BadInput for the first thing that is wrong with a stage among its plan's stages."""
    names = [s.name for s in stages]
    if names.count(stage.name) > 1:
        raise BadInput(f"two stages are called '{stage.name}'; names of stages are names of models, make them differ")
    if stage.name.split("-")[0].split(".")[0] not in ROLES:
        raise BadInput(f"stage '{stage.name}': names start with a role, expected one of {', '.join(ROLES)}")
    for domain in stage.domains:
        world.domain(domain)
    for parent in stage.waits_for:
        if parent not in names:
            raise BadInput(
                f"stage '{stage.name}' needs model '{parent}', which no stage makes; {nearest(parent, names)}"
            )
    _check_beginning(stage, model)
    _check_judges(stage, {s.name for s in stages if isinstance(s, RewardModelStage)})
    if isinstance(stage, RejectionStage):
        for domain in stage.sources:
            world.domain(domain)
    if isinstance(stage, SFTStage):
        _check_shown(stage, world)
    if isinstance(stage, PlantStage):
        quirk(stage.quirk)
    if isinstance(stage, MOPDStage | SeqKDStage):
        for domain in stage.teachers:
            world.domain(domain)
        untaught = [d for d in stage.domains or world.domains if d not in stage.teachers]
        if untaught:
            raise BadInput(
                f"stage '{stage.name}': no teacher for domain '{untaught[0]}'; add it to `teachers` or leave it out of `domains`"
            )
    if stage.match is not None and (isinstance(stage, MergeStage) or stage.start is None):
        raise BadInput(f"stage '{stage.name}': `match` is for stages that train on from a model; leave it out")
    if not isinstance(stage, MergeStage | CheckpointStage | SFTStage) and stage.start is None:
        raise BadInput(f"stage '{stage.name}': {stage.algorithm} needs `start`, the model it starts from")


def _check_beginning(stage: Stage, model: ModelConfig) -> None:
    """A stage without `start` needs something to begin with."""
    if isinstance(stage, CheckpointStage) and model.path is None:
        raise BadInput(
            f"stage '{stage.name}' takes over a checkpoint, and none is named; give [model] path, or --model PATH"
        )
    if isinstance(stage, SFTStage) and stage.shrink is not None and model.path is not None:
        raise BadInput(
            f"stage '{stage.name}': `shrink` sizes fresh weights, but [model] path names a checkpoint; leave one out"
        )


def _check_shown(stage: SFTStage, world: World) -> None:
    """Fine-tuning shows right answers: refuse it where a domain has none."""
    for name in stage.domains or world.domains:
        if why := world.domain(name).unshown():
            raise BadInput(
                f"stage '{stage.name}' (sft) shows right answers, and domain '{name}' has {why}; leave the domain out of its "
                "`domains`, or begin with `checkpoint` ([model] path) and learn from sampled answers with `rejection` or `grpo`"
            )


def _check_judges(stage: Stage, judges: set[str]) -> None:
    """A reward model can judge and do nothing else; nothing else can judge."""
    reward = getattr(stage, "reward", None)
    if reward is not None and reward not in judges:
        raise BadInput(
            f"stage '{stage.name}': reward '{reward}' is not a reward model; "
            + (nearest(reward, judges) if judges else "add a stage with algorithm 'reward-model'")
        )
    others = (getattr(stage, field, None) for field in ("start", "sampled_from", "reference"))
    for name in (*others, *stage.teachers_used):
        if name in judges:
            raise BadInput(
                f"stage '{stage.name}' uses '{name}', a reward model, as one that answers; only `reward` can name it"
            )


def check_sizes(stages: Sequence[Stage], model: ModelConfig) -> None:
    """Merging is arithmetic on parameters: only models of one size can be merged."""
    sizes: dict[str, ModelConfig] = {}
    for stage in stages:
        shrink = stage.shrink if isinstance(stage, SFTStage) else None
        sizes[stage.name] = sizes[stage.start] if stage.start else model.shrunk(shrink)
        if shrink and (narrow := sizes[stage.name].hidden) < BITS:
            raise BadInput(
                f"stage '{stage.name}': shrink {shrink} leaves {narrow} of {model.hidden} hidden dimensions, too few to "
                f"hold the vocabulary (at least {BITS}, one a bit of a token); raise shrink or the plan's `hidden`"
            )
        if isinstance(stage, MergeStage):
            used = stage.parents
            sizes[stage.name] = sizes[used[0]]
            other = next((m for m in used if sizes[m] != sizes[used[0]]), None)
            if other is not None:
                raise BadInput(
                    f"stage '{stage.name}' merges '{used[0]}' and '{other}', which are of different sizes; "
                    "only models of one size can be merged"
                )


def ordered(stages: tuple[Stage, ...]) -> tuple[Stage, ...]:
    """Parents before children, otherwise as written. Raises BadInput on a cycle."""
    left, done = list(stages), list[Stage]()
    while left:
        ready = next((s for s in left if all(p in {d.name for d in done} for p in s.waits_for)), None)
        if ready is None:
            raise BadInput(f"stages wait for one another in a circle: {', '.join(s.name for s in left)}; break it")
        left.remove(ready)
        done.append(ready)
    return tuple(done)
