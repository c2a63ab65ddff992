"""Stands in for the vLLM package where it is not installed: the parts that the backend calls, and a log of the calls.

The engine works on two requests at a time and finishes the later one first. Its model says the ids 40, 41, 42 and then
ends its turn, where the answer may be that long.
"""

import dataclasses
import os
import sys
from types import ModuleType, SimpleNamespace

NUM_WORDS = 3


class EngineDeadError(Exception):
    pass


@dataclasses.dataclass
class EngineArgs:
    model: str = ""
    dtype: str = "auto"
    max_model_len: int = 64
    max_num_seqs: int = 8
    tensor_parallel_size: int = 1
    pipeline_parallel_size: int = 1
    disable_log_stats: bool = False


class Engine:
    def __init__(self, settings):
        self.model_config = SimpleNamespace(max_model_len=settings.max_model_len)
        self.engine_core = SimpleNamespace(shutdown=lambda: setattr(self, "is_shut_down", True))
        self.is_shut_down, self.dies, self.most_waiting = False, False, 0
        self.waiting, self.asked, self.given_up = {}, [], []
        self.finish_reason = None  # the true one

    def add_request(self, name, prompt, parameters):
        self.waiting[name] = (prompt["prompt_token_ids"], parameters)
        self.asked.append((prompt["prompt_token_ids"], parameters))
        self.most_waiting = max(self.most_waiting, len(self.waiting))

    def step(self):
        if self.dies:
            raise EngineDeadError
        done = list(self.waiting)[:2]
        return [self.finished(name, *self.waiting.pop(name)) for name in reversed(done)]

    def finished(self, name, prompt_ids, parameters):
        whole = [*range(40, 40 + NUM_WORDS), *getattr(parameters, "stop_token_ids", [])[:1]]
        ids = whole[: parameters.max_tokens]
        reason = self.finish_reason or ("stop" if ids == whole else "length")
        total = None if getattr(parameters, "logprobs", None) is None else -0.5 * len(ids)
        scored = [{token: SimpleNamespace(logprob=-0.25 * place)} for place, token in enumerate(prompt_ids)]
        return SimpleNamespace(
            request_id=name,
            finished=True,
            prompt_token_ids=prompt_ids,
            prompt_logprobs=[None, *scored[1:]],
            outputs=[SimpleNamespace(token_ids=ids, cumulative_logprob=total, finish_reason=reason)],
        )

    def abort_request(self, names):
        self.given_up += names


def package(gpu_variable=None):
    """Return the modules of the package, by name, and the list of the engines that it has started."""
    started = []

    class LLM:
        def __init__(self, **settings):
            if settings.get("max_model_len") == 1:
                raise RuntimeError("no room for a cache")
            self.llm_engine = Engine(EngineArgs(**settings))
            started.append(SimpleNamespace(llm=self, settings=settings, environment=dict(os.environ), main=_main()))

    platform = SimpleNamespace(
        is_cpu=lambda: gpu_variable is None, device_control_env_var=gpu_variable, supported_dtypes=["torch.float16"]
    )
    modules = {
        "vllm": {"__version__": "0.0", "LLM": LLM, "EngineArgs": EngineArgs, "SamplingParams": SimpleNamespace},
        "vllm.sampling_params": {"RequestOutputKind": SimpleNamespace(FINAL_ONLY="final only")},
        "vllm.platforms": {"current_platform": platform},
        "vllm.v1": {},
        "vllm.v1.engine": {},
        "vllm.v1.engine.exceptions": {"EngineDeadError": EngineDeadError},
    }
    return {name: _module(name, content) for name, content in modules.items()}, started


def _main():
    return sys.modules["__main__"]


def _module(name, content):
    module = ModuleType(name)
    vars(module).update(content)
    return module
