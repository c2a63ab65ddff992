import importlib.util
import json
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parents[2] / "example_configs" / "prepare_lima.py"


@pytest.fixture
def script():
    spec = importlib.util.spec_from_file_location("prepare_lima", SCRIPT)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_texts_become_messages_of_user_and_assistant_in_turn(script):
    (row,) = script.as_messages([{"conversations": ["Hi?", "Hello.", "Why?", "So."], "source": "web"}])
    assert row == {
        "messages": [
            {"role": "user", "content": "Hi?"},
            {"role": "assistant", "content": "Hello."},
            {"role": "user", "content": "Why?"},
            {"role": "assistant", "content": "So."},
        ],
        "source": "web",
    }


@pytest.mark.parametrize(("texts", "num_rows"), [([], 0), (["Hi?"], 0), (["Hi?", "Hello.", "Why?"], 1)])
def test_a_question_without_an_answer_is_left_out(script, texts, num_rows):
    rows = list(script.as_messages([{"conversations": texts}]))
    assert len(rows) == num_rows
    assert all(row["messages"][-1]["role"] == "assistant" for row in rows)


def test_the_file_is_written_where_the_configuration_reads_it(script, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    Path("train.jsonl").write_text(json.dumps({"conversations": ["Hi?", "Hello."], "source": "web"}) + "\n")
    script.main(["--source", "train.jsonl"])
    assert capsys.readouterr().out == "data/lima.jsonl: 1 rows\n"
    (line,) = Path("data/lima.jsonl").read_text().splitlines()
    assert json.loads(line)["messages"][1] == {"role": "assistant", "content": "Hello."}
