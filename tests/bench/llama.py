"""A program that answers like llama.cpp's server: the last token of a prompt, again and again."""

from __future__ import annotations

import sys
from pathlib import Path

__all__ = ["VOCAB", "fake_llama"]

VOCAB = 64

_SERVER = """#!{python}
import json, sys
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

class Handler(BaseHTTPRequestHandler):
    def do_GET(self):
        self.send_response(200); self.end_headers()
    def do_POST(self):
        asked = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        last = asked["prompt"][-1]
        logprobs = [{{"id": i, "logprob": -1.0 - (i != last)}} for i in range({vocab})]
        answer = {{"tokens": [last] * asked["n_predict"]}}
        answer["completion_probabilities"] = [{{"top_logprobs": logprobs}}]
        self.send_response(200); self.end_headers()
        self.wfile.write(json.dumps(answer).encode())
    def log_message(self, *_):
        pass

port = int(sys.argv[sys.argv.index("--port") + 1])
ThreadingHTTPServer(("127.0.0.1", port), Handler).serve_forever()
"""


def fake_llama(folder: Path) -> Path:
    """The program's path."""
    path = folder / "llama-server"
    path.write_text(_SERVER.format(python=sys.executable, vocab=VOCAB), encoding="utf-8")
    path.chmod(0o755)
    return path.resolve()
