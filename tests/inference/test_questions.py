import hashlib

from hypothesis import given
from hypothesis import strategies as st

from axolotl_sdft.inference.interfaces import Sampling, attempt_temperature, question_digest, sampling_seed

numbers = st.integers(0, 2**40)


def chat(text):
    return ({"role": "user", "content": text},)


def test_the_random_seed_of_an_answer_is_the_same_in_every_process():
    question = hashlib.sha256(b'[{"content": "Hi", "role": "user"}]').hexdigest()
    expected = int(hashlib.sha256(f"42 {question} 0".encode()).hexdigest()[:16], 16) // 2

    assert sampling_seed(42, chat("Hi")) == expected


@given(st.tuples(numbers, st.text(), numbers), st.tuples(numbers, st.text(), numbers))
def test_random_seeds_differ_where_setting_chat_or_attempt_do(one, other):
    seeds = [sampling_seed(seed, chat(text), attempt) for seed, text, attempt in (one, other)]
    assert (seeds[0] == seeds[1]) == (one == other)
    assert all(0 <= seed < 2**63 for seed in seeds)


def test_attempts_after_the_first_are_sampled_even_where_the_first_is_not():
    assert [attempt_temperature(0.0, attempt) for attempt in range(3)] == [0.0, 0.7, 0.7]
    assert [attempt_temperature(0.3, attempt) for attempt in range(3)] == [0.3, 0.3, 0.3]


def test_another_random_seed_asks_sampled_answers_again_and_greedy_ones_not():
    digest = question_digest(chat("Hi"))

    def keys(temperature, attempt):
        return {Sampling(seed, temperature).key(digest, attempt) for seed in (1, 2)}

    assert [len(keys(0.0, 0)), len(keys(0.0, 1)), len(keys(0.7, 0))] == [1, 2, 2]


def test_a_question_is_another_one_when_a_role_or_a_text_is():
    chats = [chat("Hi"), chat("Hi "), ({"role": "system", "content": "Hi"},), (*chat("Hi"), *chat("Hi"))]
    assert len({question_digest(one) for one in chats}) == 4
    assert len({Sampling(1, 0.0).key(question_digest(one), attempt) for one in chats for attempt in (0, 1)}) == 8
