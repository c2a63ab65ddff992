"""Rows that are asked about, and the answers that the server gives to them."""

from axolotl_sdft.inference.interfaces import Answer, Prompt
from tests.inference.openai.openai_server import CANARY_TEXT


def prompts(num_rows):
    return [Prompt((row, 0), ({"role": "user", "content": f"row {row}"},)) for row in range(num_rows)]


def answers_of(backend, asked):
    return {batch[0].key[0]: answer for batch, [answer] in backend.generate(backend.batches(asked))}


def right_answers(num_rows):
    return {row: Answer(f"re: row {row}", "stop", 3) for row in range(num_rows)}


def once_per_row(fault):
    """Answer each row the second time only."""
    seen = set()

    def decide(text, number):
        if text == CANARY_TEXT or text in seen:
            return None
        seen.add(text)
        return fault

    return decide
