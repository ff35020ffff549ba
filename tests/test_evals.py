"""lm-eval on our engines: the tasks are the worlds', the numbers are those of lm-eval's own `hf`, the results are read as records."""

from __future__ import annotations

import json
import random
from pathlib import Path

import cast_models
import letters
import pandas as pd
import pytest
import tokenizers
import torch
from lm_eval import simple_evaluate
from lm_eval.api.instance import Instance
from lm_eval.loggers import EvaluationTracker
from lm_eval.models.huggingface import HFLM
from lm_eval.tasks import TaskManager
from lm_eval.tasks._yaml_loader import load_yaml
from test_lora import moved
from tiny import TOKENIZER, decoder
from tokenizers import decoders, models, pre_tokenizers, processors, trainers
from transformers import GPT2Config, GPT2LMHeadModel, LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from mopd_diag.engines.harness import TorchLM, Wish, load_words
from mopd_diag.errors import BadInput, CheckpointError, RunDirectoryError
from mopd_diag.models.checkpoint import save_checkpoint
from mopd_diag.models.loading import load
from mopd_diag.models.lora import save_adapter
from mopd_diag.records.read import read_records
from mopd_diag.runs.directory import RunDirectory
from mopd_diag.runs.ray_scheduler import RayScheduler
from mopd_diag.study.compare import compare
from mopd_diag.study.eval_asking import Settings
from mopd_diag.study.eval_tasks import Tasks, tasks_folder
from mopd_diag.study.evals import evaluate
from mopd_diag.study.jobs import content_hash
from mopd_diag.training.explore import answer
from mopd_diag.worlds import documents
from mopd_diag.worlds.domain import TURN
from mopd_diag.worlds.gym.suite import SUITE
from mopd_diag.worlds.world import BUILT_IN, load_world

SENTENCES = ["The stack is a list, and 12 + 34 is 46.", "A question?\nAn answer: yes", "<user> hello <assistant> world"]
TEMPLATE = "{% for m in messages %}<{{ m.role }}> {{ m.content }}\n{% endfor %}{% if add_generation_prompt %}<assistant> {% endif %}"
CAST = '[base]\npath = "base"\n[student]\npath = "control"\n[teachers.math]\npath = "math"\ndomains = ["stack"]\n'


def checkpoint(kind: str, folder: Path) -> Path:
    """A random model: the micro world's, or a Llama or GPT-2 with a byte-level tokenizer that puts a BOS in front and has a template."""
    if kind == "micro":
        save_checkpoint(decoder(max_position_embeddings=64), TOKENIZER, folder)
        return folder
    backend = tokenizers.Tokenizer(models.BPE())
    backend.pre_tokenizer, backend.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=320, special_tokens=["<s>", "</s>"], initial_alphabet=alphabet)
    backend.train_from_iterator(SENTENCES, trainer)
    backend.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 0)])
    words = PreTrainedTokenizerFast(tokenizer_object=backend, bos_token="<s>", eos_token="</s>", pad_token="</s>")
    words.chat_template = TEMPLATE
    words.save_pretrained(folder)
    torch.manual_seed(0)
    sizes = {"vocab_size": len(words), "bos_token_id": 0, "eos_token_id": 1, "initializer_range": 0.3}
    if kind == "llama":
        config = LlamaConfig(
            hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2,
            max_position_embeddings=64, **sizes,
        )  # fmt: skip
        LlamaForCausalLM(config).save_pretrained(folder)
    else:
        GPT2LMHeadModel(GPT2Config(n_embd=32, n_layer=2, n_head=4, n_positions=64, **sizes)).save_pretrained(folder)
    return folder


def requests(kind: str, arguments: list[tuple]) -> list[Instance]:
    return [Instance(kind, {}, a, 0, metadata=("task", i, 1)) for i, a in enumerate(arguments)]  # type: ignore[arg-type]


def ours(path: Path, **options) -> TorchLM:
    return TorchLM(load(path), load_words(path), **options)


@pytest.fixture(scope="module")
def cast(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A cast file over four small random models."""
    folder = cast_models.save_models(tmp_path_factory.mktemp("cast"))
    (folder / "cast.toml").write_text(CAST)
    return folder / "cast.toml"


# -- the tasks are the worlds' --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("world", ["micro", "planted", "gym"])
def test_every_domain_of_a_world_is_a_task_of_its_group(world: str):
    folder = tasks_folder() / world
    domains = SUITE if world == "gym" else BUILT_IN[world]
    limits = {name: each.max_new_tokens for name, each in domains.items()}
    group = load_yaml(folder / "_group.yaml")
    assert group["group"] == f"mopd_{world}" and group["task"] == [f"mopd_{world}_{n}" for n in limits]
    files = {p.stem: load_yaml(p) for p in folder.glob("[!_]*.yaml")}
    assert files.keys() == limits.keys()
    for name, task in files.items():
        assert task["task"] == f"mopd_{world}_{name}" and task["dataset_kwargs"] == {"world": world, "domain": name}
        assert task["generation_kwargs"]["max_gen_toks"] == limits[name], name
        turns = any(d["opening"] for d in documents.held_out(world, name, 4)) if world != "gym" else False
        assert turns == ("class" in task), name


def test_items_and_hashes_are_those_of_a_run():
    items = load_world("micro").evaluation_items("stack", 16, ("evaluation",))
    found = documents.held_out("micro", "stack", 16)
    assert [d["item_id"] for d in found] == [i.item_id for i in items]
    assert [d["prompt_hash"] for d in found] == [content_hash(i.prompt) for i in items]
    assert [d["target_hash"] for d in found] == [content_hash(i.target) for i in items]
    assert not {d["prompt"] for d in documents.examples("micro", "stack")} & {i.prompt for i in items}


def test_two_requests_score_as_the_world_does():
    """Players that answer as text decides: right ones, and ones that err in the call, in the invented reply or after it."""
    domain = documents.domain_of("micro", "two-turn")
    rng = random.Random(0)
    for doc in documents.held_out("micro", "two-turn", 40):
        target, opening = doc["target"], doc["opening"]
        call, last = target[: target.index(TURN) + 1], target[len(opening) :]
        for first in (call, "{zz}" + TURN, call[:-1], last, target):
            after = rng.choice([last, "x", ""])
            said = first + "0;0" if first == call else first  # a text goes on behind a call that nobody answers
            heard = domain.reply(doc["prompt"], target, first)
            played = first + heard + after if heard else first
            assert documents.transcript(doc, said, after) == (played if first != target else opening + after)
            assert documents.score(doc, documents.transcript(doc, said, after)) == domain.score(
                doc["prompt"], target, documents.transcript(doc, said, after)
            )


# -- agreement with lm-eval's own model -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["micro", "llama", "gpt2"])
def test_likelihoods_and_texts_agree_with_lm_evals_hf(kind: str, tmp_path: Path):
    path = checkpoint(kind, tmp_path)
    hf, mine = HFLM(pretrained=str(path), device="cpu", batch_size=8, dtype="float32"), ours(path)
    pairs = [
        (c, a)
        for c in ("The stack", "12 + 34 is ", "A question?\n", "", "<s>x")
        for a in (" A", " B", " a list, and", "46")
    ]
    pairs.append(("list " * 60, "A question"))  # too long: it loses its beginning
    theirs, found = (m.loglikelihood(requests("loglikelihood", pairs), disable_tqdm=True) for m in (hf, mine))
    assert [f[0] for f in found] == pytest.approx([t[0] for t in theirs], abs=1e-4)
    assert [f[1] for f in found] == [t[1] for t in theirs]
    texts = [("A question?",), ("hello world " * 12,)]  # the second does not fit at once
    rolled = [m.loglikelihood_rolling(requests("loglikelihood_rolling", texts), disable_tqdm=True) for m in (hf, mine)]
    assert rolled[1] == pytest.approx(rolled[0], rel=1e-5, abs=1e-4)
    until = [{"until": ["\n", "is"], "max_gen_toks": 40}, {"until": [], "max_gen_toks": 7}]
    asked = [(c, u) for u in until for c in ("The stack", "12 + 34 is", "A question?\n", "hello " * 30)]
    texts = [m.generate_until(requests("generate_until", asked), disable_tqdm=True) for m in (hf, mine)]
    assert texts[1] == texts[0] and len(set(texts[1])) > 2


def test_a_chat_template_is_applied_as_lm_evals_hf_applies_it(tmp_path: Path):
    path = checkpoint("llama", tmp_path)
    hf, mine = HFLM(pretrained=str(path), device="cpu"), ours(path)
    turns = [{"role": "user", "content": "hello"}]
    assert mine.apply_chat_template(turns) == hf.apply_chat_template(turns) == "<user> hello\n<assistant> "
    assert mine.chat_template(True) == hf.chat_template(True) == TEMPLATE


def test_neither_batches_nor_neighbours_change_an_answer(tmp_path: Path):
    path = checkpoint("micro", tmp_path)
    pairs = [("M12+3", "x" * n) for n in range(1, 9)]
    whole = ours(path).loglikelihood(requests("loglikelihood", pairs))
    single = [ours(path, rows=1).loglikelihood(requests("loglikelihood", [p]))[0] for p in pairs]
    assert [w[0] for w in whole] == pytest.approx([s[0] for s in single], abs=1e-5)


def test_sampled_texts_follow_the_seed(tmp_path: Path):
    path = checkpoint("micro", tmp_path)
    asked = requests(
        "generate_until", [("M1:", {"until": [], "max_gen_toks": 9, "do_sample": True, "temperature": 1.0})] * 4
    )
    one, again, other = (ours(path, seed=s).generate_until(asked) for s in (1, 1, 2))
    assert one == again != other and len(set(one)) > 1


@pytest.mark.parametrize(
    "setting", [{"do_sample": True, "temperature": 1.0, "top_p": 0.9}, {"repetition_penalty": 1.2}, {"num_beams": 4}]
)
def test_a_way_of_sampling_that_is_not_offered_is_refused(setting: dict):
    with pytest.raises(BadInput, match=next(k for k in setting if k in ("top_p", "repetition_penalty", "num_beams"))):
        Wish.of({"until": [], **setting}, "</s>")


def test_more_new_tokens_than_positions_are_refused(tmp_path: Path):
    mine = ours(checkpoint("micro", tmp_path))
    with pytest.raises(BadInput, match="up to 256 new tokens"):
        mine.generate_until(requests("generate_until", [("M1:", {"until": []})]))


# -- results become records -----------------------------------------------------------------------------------------------------


def test_what_plain_lm_eval_writes_joins_with_a_run(cast: Path, tmp_path: Path):
    """lm-eval's own model, tracker and files; our tasks."""
    model = HFLM(pretrained=str(cast.parent / "base"), device="cpu", batch_size=8)
    manager = TaskManager(include_path=str(tasks_folder()), include_defaults=False)
    tracker = EvaluationTracker(output_path=str(tmp_path))
    tasks = ["mopd_micro_two-turn", "mopd_micro_stack"]
    results = simple_evaluate(
        model=model, model_args={"model": "base"}, tasks=tasks, task_manager=manager, limit=6, evaluation_tracker=tracker, bootstrap_iters=0
    )  # fmt: skip
    samples = results.pop("samples")
    tracker.save_results_aggregated(results=results, samples=samples)
    for name in tasks:
        tracker.save_results_samples(name, samples[name])
    found = read_records(tmp_path / "base")
    assert found.groups == ["stack", "two-turn"]
    rows = found.frame[found.frame["group"] == "two-turn"]
    items = {d["item_id"]: d for d in documents.held_out("micro", "two-turn", 6)}
    assert set(rows["item_id"]) == items.keys()
    assert all(row.prompt_hash == items[row.item_id]["prompt_hash"] for row in rows.itertuples())
    assert all(row.score == documents.score(items[row.item_id], row.response) for row in rows.itertuples())


CHOICE = """
task: colours
custom_dataset: !function colours.dataset
test_split: test
output_type: multiple_choice
doc_to_text: "The sky is"
doc_to_choice: ["blue", "green"]
doc_to_target: "{{gold}}"
"""
DATASET = "import datasets\ndef dataset(**_):\n    return {'test': datasets.Dataset.from_list([{'gold': i % 2} for i in range(9)])}\n"


@pytest.fixture(scope="module")
def mine(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two tasks of a user: one with its data, one that wants a hub."""
    folder = tmp_path_factory.mktemp("tasks")
    (folder / "colours.yaml").write_text(CHOICE)
    (folder / "colours.py").write_text(DATASET)
    hub = "task: far\ndataset_path: nobody/nothing\ntest_split: test\noutput_type: multiple_choice\n"
    (folder / "far.yaml").write_text(hub)
    return folder


def test_a_cast_is_evaluated_resumed_and_compared(cast: Path, mine: Path, tmp_path: Path):
    out, told = tmp_path / "out", []
    found = evaluate(cast, ["mopd_micro_stack", "colours"], out, Settings(limit=8), include=[mine], told=told.append)
    assert sum("loading" in t for t in told) == 3
    assert {"colours", "stack"} <= found.accuracy["student"].keys()
    assert found.metrics["base"]["colours"]["acc,none"] == pytest.approx(0.5)
    assert [len(list((out / "base").glob(f"{kind}*"))) for kind in ("samples_colours_", "samples_", "results_")] == [
        1,
        2,
        2,
    ]
    json.dumps(found.to_dict(), allow_nan=False)
    frame = pd.read_parquet(out / "records" / "student.parquet")
    stack = frame[frame["domain"] == "stack"]
    assert stack["prompt_hash"].tolist() == [content_hash(p) for p in stack["prompt"]] and len(stack) == 8
    assert stack["truncated"].tolist() == [len(r) >= 12 for r in stack["response"]]  # a token is a character
    compared = compare(f"{out}:base", f"{out}:student")
    assert compared.to_dict()["joined"] == 16
    capped = {f.subject for f in RunDirectory(out).findings() if f.kind == "cap"}
    assert capped >= {"student/colours", "student/stack"}

    told.clear()
    evaluate(cast, ["mopd_micro_stack"], out, Settings(limit=8), include=[mine], told=told.append)
    assert not any("loading" in t for t in told)
    assert len(pd.read_parquet(out / "records" / "student.parquet")) == 16  # what was asked before is kept
    warned: list[str] = []
    evaluate(cast, ["mopd_micro_stack"], out, Settings(limit=4), told=told.append, warn=warned.append)
    assert len(pd.read_parquet(out / "records" / "student.parquet")) == 4
    assert any("colours: asked before under other settings" in w for w in warned)


def test_greedy_answers_and_scores_are_those_of_a_run(tmp_path: Path):
    """Of models that end some answers and are cut in others: as a run's own evaluation samples and judges them."""
    for name in ("base", "math", "control"):
        save_checkpoint(letters.ending(decoder()), TOKENIZER, tmp_path / name)
    (tmp_path / "cast.toml").write_text(CAST)
    out, world = tmp_path / "out", load_world("micro", ["brackets", "no-call"])
    evaluate(tmp_path / "cast.toml", ["mopd_micro_brackets", "mopd_micro_no-call"], out, Settings(limit=12))
    frame = pd.read_parquet(out / "records" / "base.parquet").set_index("item_id")
    for domain in world.domains:
        items = world.evaluation_items(domain, 12, ("evaluation",))
        answers = answer(letters.ending(decoder()), TOKENIZER, world, items, seed=0, temperature=0.0)
        found = frame.loc[[i.item_id for i in items]]
        assert found["response"].tolist() == [t.partition("\n")[0] for t in answers.texts]
        assert found["score"].tolist() == answers.scores


def test_several_answers_are_judged_one_by_one(cast: Path, tmp_path: Path):
    out = tmp_path / "out"
    evaluate(cast, ["mopd_micro_two-turn"], out, Settings(limit=5, samples=3, temperature=1.0))
    for path in (out / "records" / "base.parquet", out / "base"):
        frame = read_records(path).frame
        assert frame.groupby("item_id")["sample"].apply(list).tolist() == [[0, 1, 2]] * 5
        assert frame["response"].nunique() > 5


def test_another_checkpoint_under_the_same_name_is_asked_anew(cast: Path, tmp_path: Path):
    folder = tmp_path / "models"
    for name in ("base", "math", "control"):
        save_checkpoint(decoder(seed=1), TOKENIZER, folder / name)
    (folder / "cast.toml").write_text(cast.read_text())
    evaluate(folder / "cast.toml", ["mopd_micro_stack"], tmp_path / "out", Settings(limit=4))
    before = pd.read_parquet(tmp_path / "out" / "records" / "base.parquet")["response"].tolist()
    save_checkpoint(decoder(seed=2), TOKENIZER, folder / "base")
    told: list[str] = []
    evaluate(folder / "cast.toml", ["mopd_micro_stack"], tmp_path / "out", Settings(limit=4), told=told.append)
    assert [t for t in told if "loading" in t] == ["base: loading"]
    assert pd.read_parquet(tmp_path / "out" / "records" / "base.parquet")["response"].tolist() != before


# -- bad input ------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("scheduler", ["local", "ray"])
def test_members_asked_side_by_side_answer_alike(scheduler: str, cast: Path, mine: Path, tmp_path: Path, capfd):
    tasks, how = ["mopd_micro_stack", "colours"], Settings(limit=4)
    evaluate(cast, tasks, tmp_path / "one", how, include=[mine])
    out, told = tmp_path / "beside", list[str]()
    ray = RayScheduler(out) if scheduler == "ray" else None
    evaluate(cast, tasks, out, how, include=[mine], workers=2, ray=ray, told=told.append)
    assert {f"eval-{m}: done" for m in ("base", "student", "teacher-math")} <= set(told)
    for model in ("base", "student", "teacher-math"):
        pd.testing.assert_frame_equal(RunDirectory(tmp_path / "one").records(model), RunDirectory(out).records(model))
    told.clear()
    evaluate(cast, tasks, out, how, include=[mine], workers=2, ray=ray, told=told.append)
    assert told == ["opening tasks"], "what is done is not done again"
    assert capfd.readouterr().out == "", "standard output belongs to --json"


def test_a_task_that_nobody_has_is_named_with_its_neighbours():
    with pytest.raises(BadInput, match="'mopd_micro_adition'; did you mean 'mopd_micro_addition'"):
        Tasks(["mopd_micro_adition"])


def test_a_task_that_wants_the_network_is_named(mine: Path):
    with pytest.raises(BadInput, match="task 'far' cannot be opened without the network.*--allow-network"):
        Tasks(["far"], [mine])


def test_two_tasks_about_one_domain_are_refused(tmp_path: Path):
    twin = f"include: {tasks_folder() / '_default'}\ntask: again\ndataset_kwargs:\n  world: micro\n  domain: stack\n"
    (tmp_path / "again.yaml").write_text(twin)
    with pytest.raises(BadInput, match="'again' and 'mopd_micro_stack' are both about a domain 'stack'"):
        Tasks(["again", "mopd_micro_stack"], [tmp_path])


def test_what_cannot_be_evaluated_is_refused_in_one_line(cast: Path, tmp_path: Path):
    served = tmp_path / "served.toml"
    served.write_text(cast.read_text().replace('path = "control"', 'url = "http://127.0.0.1:9/v1"\nmodel = "m"'))
    stack = ["mopd_micro_stack"]
    with pytest.raises(BadInput, match="student: got a served model"):
        evaluate(served, stack, tmp_path / "out")
    gone = tmp_path / "gone.toml"
    gone.write_text(cast.read_text())
    with pytest.raises(CheckpointError, match="base: no checkpoint at"):
        evaluate(gone, stack, tmp_path / "out")
    with pytest.raises(BadInput, match="base has no chat template"):
        evaluate(cast, stack, tmp_path / "out", Settings(chat=True))
    with pytest.raises(BadInput, match="3 greedy answers"):
        Settings(samples=3)
    with pytest.raises(RunDirectoryError, match="holds no evaluation"):
        evaluate(cast, stack, cast.parent)


def test_without_lm_eval_the_extra_is_named(cast: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("mopd_diag.study.eval_tasks.find_spec", lambda name: None)
    with pytest.raises(BadInput, match=r"pip install 'mopd-diag\[eval\]'"):
        evaluate(cast, ["mopd_micro_stack"], tmp_path / "out")


def test_an_adapter_is_evaluated_on_its_base_or_refused_by_name(cast: Path, tmp_path: Path):
    """It brought no tokenizer of its own, and names a folder that is not here, so the cast's base stands in."""
    for name in ("base", "control"):
        save_checkpoint(decoder(), TOKENIZER, tmp_path / name)
    save_adapter(moved(decoder(), 0), tmp_path / "math", "somewhere/else")
    (tmp_path / "cast.toml").write_text(CAST)
    found = evaluate(tmp_path / "cast.toml", ["mopd_micro_stack"], tmp_path / "out", Settings(limit=4))
    assert set(found.accuracy) == {"base", "student", "teacher-math"}
    save_adapter(moved(decoder(hidden_size=32), 0), tmp_path / "math", "somewhere/else")
    with pytest.raises(CheckpointError, match="teacher-math: the adapter belongs to another base"):
        evaluate(tmp_path / "cast.toml", ["mopd_micro_stack"], tmp_path / "out", Settings(limit=4))


def test_outside_a_repository_nobody_hears_of_git(cast: Path, tmp_path: Path, capfd, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)
    evaluate(cast, ["mopd_micro_stack"], tmp_path / "out", Settings(limit=2))
    assert "fatal" not in capfd.readouterr().err
