"""lm-eval samples whose documents are items of our worlds: they carry the item's own name, domain and hashes, so that they join with a run.

Also where plain `lm_eval` ran the tasks, with any of its models.
"""

from __future__ import annotations

from typing import Any

from mopd_diag.records.recordset import text_of
from mopd_diag.worlds.documents import is_document, transcript


def answers(table: dict[str, Any], item: dict[str, Any]) -> list[dict[str, Any]]:
    """What one line of a samples file says, once for each of its answers; `item` is what any line says.

    A prompt that is not the document's own (with examples in front, or in a chat template) keeps lm-eval's hash: it is another question.
    """
    doc = table.get("doc")
    if not is_document(doc):
        return [item]
    own = {k: doc[k] for k in ("item_id", "target_hash")} | {"group": doc["domain"]}
    if item["prompt"] == doc["prompt"]:
        own["prompt_hash"] = doc["prompt_hash"]
    parts = [r if isinstance(r, list) else [r] for r in table.get("resps") or []]
    texts = [transcript(doc, *map(text_of, each)) for each in zip(*parts, strict=False)]
    scores = table.get("scores")
    if isinstance(scores, list) and len(scores) == len(texts):
        each = [item["scores"] | {"acc": s} for s in scores]
    else:
        each, texts = [item["scores"]], texts[:1]
    told = texts or [item["response"]]
    return [
        item | own | {"sample": k, "response": t, "scores": s} for k, (t, s) in enumerate(zip(told, each, strict=True))
    ]
