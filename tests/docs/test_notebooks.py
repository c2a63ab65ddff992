"""The notebooks run from the first cell to the last, with a tiny model in place of the one that they name."""

import json
import linecache
import re

import pytest

pytest.importorskip("peft")
pytest.importorskip("trl")

from transformers import AutoModelForCausalLM

from tests.docs.pages import REPOSITORY

FOLDER = REPOSITORY / "docs" / "notebooks"
NOTEBOOKS = sorted(path.stem for path in FOLDER.glob("*.ipynb"))


def cells_of_code(name):
    """Return a notebook's cells of code, the settings first."""
    cells = json.loads((FOLDER / f"{name}.ipynb").read_text(encoding="utf-8"))["cells"]
    return [cell for cell in cells if cell["cell_type"] == "code"]


def sources(name):
    """Return what stands in a notebook's cells of code."""
    return ["".join(cell["source"]) for cell in cells_of_code(name)]


def texts(output):
    """Yield what an output says in text."""
    yield from output.get("text", [])
    yield from output.get("data", {}).get("text/plain", [])


@pytest.fixture
def run_notebook(newcomer_folder, tiny_llama_dir, monkeypatch):
    """Run a notebook as Jupyter does, in its folder, with other settings laid over its own, and return its names."""
    here = newcomer_folder / "docs" / "notebooks"
    here.mkdir(parents=True)
    monkeypatch.chdir(here)

    def run_notebook(name, **settings):
        first, *cells = sources(name)
        names = {}
        exec(first, names)
        assert set(settings) <= set(names), "the notebook has no such setting"
        names |= {"MODEL": str(tiny_llama_dir)} | settings
        for number, cell in enumerate(cells, start=1):
            source = f"<{name}.ipynb, cell {number}>"
            # As a notebook does with its cells: functions can show their source.
            linecache.cache[source] = (len(cell), None, cell.splitlines(keepends=True), source)
            exec(compile(cell, source, "exec"), names)
        return names

    return run_notebook


@pytest.mark.parametrize("name", NOTEBOOKS)
def test_a_notebook_begins_with_its_settings(name):
    code = cells_of_code(name)
    assert code[0]["metadata"] == {"tags": ["parameters"]}
    assert 'MODEL = "../../models/SmolLM2-135M-Instruct"' in "".join(code[0]["source"])


@pytest.mark.parametrize("name", NOTEBOOKS)
def test_a_notebook_is_stored_with_what_one_run_showed_and_nothing_of_the_machine(name):
    code = cells_of_code(name)
    outputs = [output for cell in code for output in cell["outputs"]]
    assert [cell["execution_count"] for cell in code] == list(range(1, len(code) + 1))
    assert {output["output_type"] for output in outputs} <= {"stream", "display_data", "execute_result"}
    assert {output.get("name", "stdout") for output in outputs} == {"stdout"}
    shown = "".join(text for output in outputs for text in texts(output))
    assert re.findall(r"(?<![\w./:])/\w[\w.-]*/", shown) == []  # absolute paths


@pytest.mark.parametrize("name", NOTEBOOKS)
def test_each_notebook_is_named_on_its_page(name):
    assert f"(notebooks/{name}.ipynb)" in (REPOSITORY / "docs" / "notebooks.md").read_text(encoding="utf-8")


def test_layers_are_scored_patched_and_cut(run_notebook, capsys):
    pyplot = pytest.importorskip("matplotlib.pyplot")
    names = run_notebook("prune", NUM_LAYERS=2, NUM_ROWS=12, NUM_PROMPTS=1)
    pyplot.close("all")
    assert names["pruned"].config.num_hidden_layers == 4
    assert len(names["patch"].drop_layers) == 2
    assert names["patch"].divergence_patched is not None
    printed = capsys.readouterr().out
    assert ": 2 of 6 layers removed" in printed
    assert set(names["pictures"]) == {"heat_map", "least_cost"}
    assert "3.0M parameters" not in printed.partition("parameters before, ")[2]
    assert "\nseed: " in printed
    assert "\npruned: " in printed


def test_rows_are_rewritten_with_a_check_a_template_and_a_metric_of_ones_own(run_notebook, capsys):
    names = run_notebook("self_distil", NUM_ROWS=4, MAX_NEW_TOKENS=6)
    distilled = names["distilled"]
    assert len(distilled) == 4
    assert set(distilled["sdft_source"]) <= {"distilled", "original"}
    assert (names["folder"] / "report.html").is_file()
    assert names["scores"].removal_order == (3, 2, 4, 1, 5, 0)
    assert "of 4 answers accepted" in capsys.readouterr().out


def test_check_template_and_metric_of_ones_own_take_ten_lines():
    (cell,) = [cell for cell in sources("self_distil") if "def no_questions" in cell]
    assert len([line for line in cell.splitlines() if line]) <= 10


def test_a_pruned_model_is_trained_with_the_seed_model_as_teacher(run_notebook, capsys):
    names = run_notebook("teach", DROP_LAYERS=[2, 3], NUM_ROWS=8, NUM_PROMPTS=4, HELD_OUT=2, MAX_STEPS=2)
    merged = AutoModelForCausalLM.from_pretrained("../../outputs/notebook-teach/merged")
    assert merged.config.num_hidden_layers == 4
    printed = capsys.readouterr().out
    assert "step   1: KL to the teacher" in printed
    assert "step   2: KL to the teacher" in printed
    assert printed.count("\n  trained ") == len(names["questions"])
    assert "trained: KL " in printed
