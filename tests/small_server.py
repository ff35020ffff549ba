"""An OpenAI-compatible server on loopback over a real small model, with prompt log-probabilities as vLLM gives them, and its failures."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import torch
from tiny import TOKENIZER

from mopd_diag.models.decoder import Decoder
from mopd_diag.models.tokenizer import Tokenizer


@dataclass
class SmallServer:
    """What it serves, what it was asked, and how it fails: `fails(n)` is (status, headers, body) of completion n, or None."""

    model: Decoder
    name: str = "math-rl"
    key: str = ""
    tokenizer: Tokenizer = TOKENIZER
    most: int = 20
    context: int = 128
    fails: Callable[[int], tuple[int, dict[str, str], bytes] | None] = lambda n: None
    change: Callable[[dict[str, Any]], Any] = lambda found: found
    port: int = 0
    prompts: list[list[int]] = field(default_factory=list)
    documents: list[dict[str, Any]] = field(default_factory=list)
    keys: list[str] = field(default_factory=list)
    at_once: int = 0
    most_at_once: int = 0
    lock: threading.Lock = field(default_factory=threading.Lock)

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}/v1"

    def complete(self, document: dict[str, Any]) -> dict[str, Any]:
        ids, k = document["prompt"], document["prompt_logprobs"]
        with torch.inference_mode():
            logp_LV = torch.log_softmax(self.model(torch.tensor([ids]))[0].float(), -1)
        given: list[Any] = [None]
        for token, logp_V in zip(ids[1:], logp_LV[:-1], strict=True):
            some = dict.fromkeys([token, *logp_V.topk(k).indices.tolist()])
            given.append(
                {str(i): {"logprob": float(logp_V[i]), "rank": 1, "decoded_token": self.text(i)} for i in some}
            )
        return {"model": document["model"], "choices": [{"text": "", "prompt_logprobs": given}]}

    def text(self, token: int) -> str:
        return self.tokenizer.token(token) if token < self.tokenizer.vocab_size else ""

    def models(self) -> dict[str, Any]:
        return {"data": [{"id": self.name, "root": "/models/math", "max_model_len": self.context}]}


@contextmanager
def running(server: SmallServer) -> Iterator[SmallServer]:
    """Serve until the block ends; a port that was given once is kept."""

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_GET(self) -> None:
            if self.allowed():
                self.give(200, server.models())

        def do_POST(self) -> None:
            document = json.loads(self.rfile.read(int(self.headers["content-length"])))
            if not self.allowed():
                return
            with server.lock:
                server.documents.append(document)
                number = len(server.documents)
                server.at_once += 1
                server.most_at_once = max(server.most_at_once, server.at_once)
            try:
                failure = server.fails(number)
                if failure is not None:
                    self.give_bytes(*failure)
                elif document["model"] != server.name:
                    self.give(404, {"error": {"message": f"The model `{document['model']}` does not exist."}})
                elif document.get("prompt_logprobs", 0) > server.most:
                    self.give(
                        400, {"error": {"message": f"prompt logprobs of {document['prompt_logprobs']} > {server.most}"}}
                    )
                else:
                    self.give(200, server.change(server.complete(document)))
                    server.prompts.append(document["prompt"])
            finally:
                with server.lock:
                    server.at_once -= 1

        def allowed(self) -> bool:
            key = self.headers.get("authorization", "")
            server.keys.append(key)
            if server.key and key != f"Bearer {server.key}":
                self.give(401, {"error": {"message": f"wrong key {key.removeprefix('Bearer ')}"}})
                return False
            return True

        def give(self, status: int, document: Any) -> None:
            self.give_bytes(status, {}, json.dumps(document).encode())

        def give_bytes(self, status: int, headers: dict[str, str], body: bytes) -> None:
            self.send_response(status)
            for name, value in ({"content-length": str(len(body))} | headers).items():
                self.send_header(name, value)
            self.end_headers()
            self.wfile.write(body)
            if headers:
                self.close_connection = True

        def log_message(self, format: str, *args: Any) -> None:
            pass

    http = ThreadingHTTPServer(("127.0.0.1", server.port), Handler)
    http.daemon_threads = True
    server.port = http.server_address[1]
    thread = threading.Thread(target=http.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    try:
        yield server
    finally:
        http.shutdown()
        http.server_close()
        thread.join()
