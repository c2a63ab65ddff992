"""A generation backend that answers at once with the prompt's own words, for tests of everything around it.

It logs every answer it gives, and stands in as a third-party plugin: ``registry().add_plugin(echo_backend, "echo")``.
"""

import os
import time
from pathlib import Path

from axolotl_sdft.inference.interfaces import Answer, Prompt, Sampling, question_digest
from axolotl_sdft.plugins.specifications import hookimpl

ROWS_PER_BATCH = 2


def key_of(config, prompt):
    """Return the key under which the journal stores the answer to a prompt."""
    return Sampling(config.seed, config.temperature).key(question_digest(prompt.messages), prompt.attempt)


class EchoBackend:
    def __init__(self, model_dir, config):
        self.config = config
        self.num_batches = 0

    def check(self):
        pass

    def batches(self, prompts):
        return [list(prompts[start : start + ROWS_PER_BATCH]) for start in range(0, len(prompts), ROWS_PER_BATCH)]

    def generate(self, batches):
        for batch in batches:
            self._pause()
            log = os.environ.get("ECHO_LOG")
            if log:
                with Path(log).open("a") as file:
                    file.writelines(f"{key_of(self.config, prompt).hex()}\n" for prompt in batch)
            yield batch, [self.answer(prompt) for prompt in batch]

    def _pause(self):
        """Wait, after as many batches as the environment says, until a file is there."""
        if self.num_batches == int(os.environ.get("ECHO_PAUSE_AFTER", "-1")):
            while not Path(os.environ["ECHO_RESUME"]).exists():
                time.sleep(0.01)
        self.num_batches += 1

    def answer(self, prompt):
        last = prompt.messages[-1]["content"].split()
        again = f"{prompt.attempt} times more " if prompt.attempt else ""
        return Answer(f"{again}{len(prompt.messages)} messages, the last ends in {last[-1]}", "stop", 7)

    def answer_nll(self, targets):
        return [float(len(text)) for _, text in targets]

    def close(self):
        pass


class ScriptedBackend(EchoBackend):
    """Gives the answers that a test has put into ``SCRIPT``, and remembers the prompts it was asked."""

    def answer(self, prompt):
        ASKED.append(prompt)
        return SCRIPT[(*prompt.key, prompt.attempt)]


class AskedBackend(EchoBackend):
    """Answers by what it is asked: ``SAYS`` holds the answers to a last message, by attempt."""

    def answer(self, prompt):
        ASKED.append(prompt)
        said = SAYS[prompt.messages[-1]["content"]][prompt.attempt]
        return said if isinstance(said, Answer) else Answer(said, "stop", 1)


SAYS: dict[str, list[str | Answer]] = {}
SCRIPT: dict[tuple[int, int, int], Answer] = {}
ASKED: list[Prompt] = []


def plain_template(target):
    return [*target.context[:-1], {"role": "user", "content": f"Rewrite: {target.reference}"}]


@hookimpl
def sdft_register_backends(register):
    register("echo", EchoBackend)
    register("scripted", ScriptedBackend)
    register("asked", AskedBackend)


@hookimpl
def sdft_register_templates(register):
    register("plain", lambda target: plain_template(target))


@hookimpl
def sdft_register_checks(register):
    register("no_seven", lambda answer, target: "holds 7" if answer.text.endswith("7") else None)
    register("good", lambda answer, target: None if answer.text.startswith("good") else f"is {answer.text}")
