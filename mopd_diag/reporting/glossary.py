"""The words of the report and what they mean: the glossary of `design.md`, in a reader's order."""

from __future__ import annotations

GLOSSARY: list[tuple[str, str]] = [
    ("domain", "a family of prompts with an exact verifier: a sum, a look-up, a format"),
    ("world", "a set of domains"),
    ("cast", "the models of one study: base, teachers, student, rivals, controls"),
    ("base", "the shared cold start that every other model was trained from"),
    ("teacher", "a specialist, trained from the base by RL on its own domain"),
    ("student", "the model that MOPD distils from all teachers, on samples of its own"),
    (
        "rival",
        "another path to one model: mixed RL, sequential RL, distillation on the teachers' samples, averaged weights",
    ),
    (
        "teacher-free control",
        "a rival that never saw a teacher; what the method says of it too is no evidence of teaching",
    ),
    ("matched budget", "a rival may spend as much as the student and all its teachers together"),
    ("recovery", "(student − base) / (best teacher − base): 0 is the base, 1 the best teacher"),
    (
        "headroom",
        "best teacher − base; where its interval covers 0 there is nothing to recover and recovery is unknown",
    ),
    ("at · below · above the cap", "verdict of an equivalence test of the student against the best teacher"),
    ("transfer", "what training on one domain did to the accuracy on another, against the base"),
    (
        "conflict of gradients",
        "two domains pull the same modules apart, weighed by the energy that they put there; synergy: the same way",
    ),
    ("random directions", "of the same rank as a module's gradients: what they exceed in 5% of draws is chance"),
    ("task vector", "a specialist's weights minus the base's"),
    ("forgetting", "what a path had reached on a domain at some stage and lost by its end"),
    ("regret", "how far a path's worst domain stays behind the best model on that domain"),
    ("attribution", "which model best explains where the student's next-token probabilities moved away from the base"),
    (
        "inherited",
        "of an answer: the domain's teacher fails it the same way; of a domain: explained beyond likeness by the teachers",
    ),
    ("leaked", "a failure that another domain's teacher makes"),
    ("lost", "a failure on an item that the domain's teacher solves"),
    ("conflict", "two teachers pull the student to different answers, more than a model without teachers is pulled"),
    ("consistent", "surely rare: under one in ten, interval and all"),
    ("inconsistent", "the wording of a question decides the outcome, more than in the base"),
    ("mixed", "of wrong facts: no origin holds for most"),
    ("several", "teachers that move alike here and cannot be told apart"),
    ("pre-existing", "the base does it already"),
    ("own", "a move that no listed teacher explains"),
    ("abstain · undetermined · unknown", "the data do not decide; the reason stands beside it"),
    ("interval", "a 95% interval over items, printed in brackets: [low, high]"),
    ("critical path", "the longest chain of stages that wait for one another"),
    ("record", "one sampled answer to one item by one model, with its score"),
    ("trace", "token-level rows: log-probabilities under every member of the cast, divergences, attribution"),
    ("finding", "one diagnosis: verdict, estimate with interval, evidence that can be opened"),
]
