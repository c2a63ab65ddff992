"""A stand-in for the vLLM package in a child process: a real HTTP server that speaks the protocol as vLLM does.

:func:`install` writes a package ``vllm`` that runs this file. Its model says the ids 40, 41, 42 and the first stop
token; a token has the log-probability of its place times -0.25 in a prompt, and -0.5 in an answer. By its arguments:

- ``--max-model-len 1``: it ends before it answers, as where memory is short.
- ``--exit-after N``: it ends at request N.
- ``--hold N``: request N is not answered.
"""

import argparse
import json
import os
import subprocess
import sys
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

WORDS = [40, 41, 42]


def install(folder, module="cli.main"):
    """Write the package into a folder, which then belongs on the path of Python, and return the folder.

    Args:
        folder: Where.
        module: ``cli.main`` as vLLM has it, or ``openai.api_server`` for a build without its own distribution's name.
    """
    path = folder / "vllm" / "entrypoints" / Path(*module.split(".")).with_suffix(".py")
    path.parent.mkdir(parents=True)
    (folder / "vllm" / "__init__.py").touch()
    path.write_text(f"import runpy\nrunpy.run_path({__file__!r}, run_name='__main__')\n")
    if module == "cli.main":
        (folder / "vllm-0.11.dist-info").mkdir()
        (folder / "vllm-0.11.dist-info" / "METADATA").write_text("Name: vllm\nVersion: 0.11\n")
    return folder


def main():
    parser = argparse.ArgumentParser()
    if sys.argv[-1] == "--help=all":  # the one argument that vLLM's own parser reads apart
        print("usage: vllm serve [--port PORT] [--max-model-len N]\n  --max-num-seqs N\n  --no-enforce-eager")
        return
    if sys.argv[1:2] == ["serve"]:
        parser.add_argument("command")
        parser.add_argument("model")
    else:
        parser.add_argument("--model", required=True)
    for name in ("host", "served-model-name", "dtype", "generation-config"):
        parser.add_argument(f"--{name}")
    for name, default in (("port", 0), ("max-model-len", 64), ("exit-after", 0), ("hold", 0), ("max-num-seqs", 8)):
        parser.add_argument(f"--{name}", type=int, default=default)
    parser.add_argument("--data-parallel-size", type=int, default=1)
    arguments = parser.parse_args()
    print("INFO: loading")
    if arguments.max_model_len == 1:
        raise ValueError("no memory for the cache blocks")
    helper = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])  # as an engine core is one
    server = ThreadingHTTPServer((arguments.host, arguments.port), Handler)
    server.arguments, server.asked, server.lock, server.pids = (
        arguments,
        [],
        threading.Lock(),
        [os.getpid(), helper.pid],
    )
    server.serve_forever()


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def log_message(self, *arguments):
        pass

    def do_GET(self):
        if self.path == "/told":
            environment = {name: os.environ.get(name) for name in ("RANK", "MASTER_ADDR", "VLLM_API_KEY", "OTHER")}
            told = {"asked": self.server.asked, "argv": sys.argv[1:], "pids": self.server.pids, **environment}
            self.say(told)
        elif self.path == "/v1/models":
            name, most = self.server.arguments.served_model_name, self.server.arguments.max_model_len
            self.say({"data": [{"id": name, "max_model_len": most}]})
        else:
            self.say({})

    def do_POST(self):
        request = json.loads(self.rfile.read(int(self.headers["content-length"])))
        with self.server.lock:
            self.server.asked.append(request)
            number = len(self.server.asked)
        if number == self.server.arguments.exit_after:
            print("RuntimeError: the engine ran out of memory", flush=True)
            os._exit(1)
        if number == self.server.arguments.hold:
            time.sleep(600)
        self.say({"choices": [scored(request) if request.get("echo") else written(request)]})

    def say(self, value):
        body = json.dumps(value).encode()
        self.send_response(200)
        self.send_header("content-type", "application/json")
        self.send_header("content-length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)


def written(request):
    whole = [*WORDS, *request["stop_token_ids"][:1]]
    ids = whole[: request["max_tokens"]]
    logprobs = {"token_logprobs": [-0.5] * len(ids)} if "logprobs" in request else None
    return {"token_ids": ids, "finish_reason": "stop" if ids == whole else "length", "logprobs": logprobs}


def scored(request):
    told = [None, *(-0.25 * place for place in range(1, len(request["prompt"]))), -1.0]
    return {"logprobs": {"token_logprobs": told}, "finish_reason": "length"}


if __name__ == "__main__":
    main()
