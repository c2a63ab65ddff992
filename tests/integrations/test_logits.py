"""What ``self-distill --logits`` writes is what Axolotl's own plugin for knowledge distillation reads and trains on."""

import dataclasses
import json
import time
from concurrent.futures import ThreadPoolExecutor

import pytest

pytest.importorskip("axolotl")

import pyarrow as pa
import torch
from axolotl.integrations.kd.collator import DataCollatorForKD
from axolotl.integrations.kd.kernels.liger import LigerFusedLinearKLTopKLogprobLoss
from axolotl.prompt_strategies import load as load_strategy
from axolotl.utils.dict import DictDefault
from datasets import Dataset, load_from_disk
from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaForCausalLM

from axolotl_sdft.config import SelfDistillationConfig
from axolotl_sdft.core.errors import ArtifactError, ConfigError, DatasetError
from axolotl_sdft.distillation.output.logits import TokenizedRow, logits_dir, top_log_probs, write_logits
from axolotl_sdft.distillation.rows.formats import KD_TYPE
from axolotl_sdft.integrations.axolotl.calibration_text import texts_of
from axolotl_sdft.integrations.axolotl.rewriting import (
    check_logits,
    kd_entry,
    logit_lines,
    tokenized_rows,
)

ENTRY = {"path": "rows", "type": "chat_template"}
ROWS = [
    [("user", "What is a glacier?"), ("assistant", "A river of ice.")],
    [("user", "And snow?"), ("assistant", "Frozen water."), ("user", "Rain?"), ("assistant", "Water that falls.")],
]
DATASET = Dataset.from_list([{"messages": [{"role": role, "content": text} for role, text in row]} for row in ROWS])


@pytest.fixture
def cfg(tiny_llama_dir):
    least = {"micro_batch_size": 1, "gradient_accumulation_steps": 1, "learning_rate": 0.001, "num_epochs": 1}
    return DictDefault({"base_model": str(tiny_llama_dir), "sequence_len": 128, "datasets": [ENTRY], **least})


@pytest.fixture
def seed(tiny_llama_dir):
    return AutoModelForCausalLM.from_pretrained(tiny_llama_dir, dtype=torch.float32).eval()


def test_predictions_are_the_most_likely_next_tokens(seed):
    row = TokenizedRow(0, (5, 6, 7, 8), (-100, -100, 7, 8))
    log_probs_PK, token_ids_PK = top_log_probs(seed, row, 3)
    with torch.no_grad():
        expected = seed(input_ids=torch.tensor([[5, 6, 7, 8]])).logits[0].log_softmax(-1)
    assert log_probs_PK.shape == (3, 3)  # at the positions of 6, 7 and 8
    torch.testing.assert_close(log_probs_PK, expected[1:].sort(descending=True).values[:, :3])
    assert token_ids_PK[:, 0].tolist() == expected[1:].argmax(-1).tolist()


def test_axolotls_plugin_computes_the_divergence_from_the_seed_model(cfg, seed, tiny_llama_dir, tmp_path):
    rows = list(tokenized_rows(cfg, ENTRY, DATASET))
    vocabulary = seed.config.vocab_size
    folder = write_logits(seed, DATASET, rows, vocabulary, logits_dir(tmp_path / "rows", rows, vocabulary, "seed"))
    tokenizer = AutoTokenizer.from_pretrained(tiny_llama_dir)
    entry = DictDefault(kd_entry(DictDefault(ENTRY), folder))
    assert entry.type == KD_TYPE
    strategy = load_strategy(entry.type, tokenizer, cfg, entry)
    samples = [strategy.tokenize_prompt(dict(row)) for row in load_from_disk(str(folder))]
    assert [tuple(sample["input_ids"]) for sample in samples] == [row.input_ids for row in rows]
    batch = DataCollatorForKD(tokenizer)([dict(sample) for sample in samples])
    student = torch.nn.Linear(64, vocabulary, bias=False)
    with torch.no_grad():
        hidden = seed.model(batch["input_ids"], attention_mask=batch["attention_mask"]).last_hidden_state
    loss = LigerFusedLinearKLTopKLogprobLoss(
        0.0, 1.0, 1.0, 0.0, compiled=False, compute_ce_loss=False, normalize_topk=False
    )
    targets = (batch["target_token_ids"], batch["target_logprobs"], batch["target_mask"])
    found = loss(student.weight, hidden, *targets, true_labels=batch["labels"])
    taught = loss(seed.lm_head.weight, hidden, *targets, true_labels=batch["labels"])
    # The plugin compares the predictions at the trained tokens themselves.
    at = batch["labels"] != -100
    with torch.no_grad():
        log_seed, log_student = (head(hidden)[at].log_softmax(-1) for head in (seed.lm_head, student))
    expected = (log_seed.exp() * (log_seed - log_student)).sum()
    assert float(found) == pytest.approx(float(expected), rel=1e-3)
    assert float(taught) == pytest.approx(0.0, abs=1e-2)


def test_a_row_that_is_too_long_is_left_out(cfg):
    lengths = [len(row.input_ids) for row in tokenized_rows(cfg, ENTRY, DATASET)]
    assert lengths[0] < lengths[1]
    short = DictDefault({**cfg, "sequence_len": lengths[1] - 1})
    assert [row.place for row in tokenized_rows(short, ENTRY, DATASET)] == [0]


def test_memory_does_not_grow_with_the_rows(seed, tmp_path, monkeypatch):
    def save(dataset, folder):
        in_memory.append(pa.total_allocated_bytes() - before)
        return save_to_disk(dataset, folder)

    in_memory, save_to_disk = [], Dataset.save_to_disk
    monkeypatch.setattr(Dataset, "save_to_disk", save)
    rows = [TokenizedRow(place % 2, tuple(range(50)), tuple(range(50))) for place in range(100)]
    before = pa.total_allocated_bytes()
    folder = write_logits(seed, DATASET, rows, 64, tmp_path / "out")
    num_bytes = sum(path.stat().st_size for path in folder.glob("*.arrow"))
    assert num_bytes > 100 * 49 * 64 * 8
    assert in_memory[0] < num_bytes / 10
    assert sorted(path.name for path in folder.iterdir()) == [
        *("data-00000-of-00001.arrow", "dataset_info.json", "logits.json", "state.json"),
    ]


def test_what_can_not_be_written_is_refused(seed, tmp_path):
    row = TokenizedRow(0, (5, 6), (-100, 6))
    with pytest.raises(DatasetError, match=r"has a column 'logprobs' already; rename it"):
        write_logits(seed, Dataset.from_list([{"logprobs": 1}]), [row], 2, tmp_path / "out")
    with pytest.raises(DatasetError, match=r"no row has a trained token within sequence_len"):
        write_logits(seed, DATASET, [TokenizedRow(0, (5, 6), (-100, -100))], 2, tmp_path / "out")
    unknown = TokenizedRow(0, (5, seed.config.vocab_size), (-100, 6))
    with pytest.raises(DatasetError, match=rf"token {seed.config.vocab_size} of the rows is unknown to the seed model"):
        write_logits(seed, DATASET, [unknown], 2, tmp_path / "out")
    assert not (tmp_path / "out").exists()


@pytest.fixture
def lines(cfg, seed, tiny_llama_dir, tmp_path, monkeypatch):
    """What the command prints, and how often the seed model was loaded for it."""

    class Spec:
        where, seed_dir, config = "datasets[0]", tiny_llama_dir, SelfDistillationConfig()

    def load(*_):
        loads.append(1)
        time.sleep(0.2)
        return seed

    loads = []
    monkeypatch.setattr("axolotl_sdft.inference.loading.load_seed_model", load)
    DATASET.save_to_disk(str(tmp_path / "rows"))
    return lambda *_: list(logit_lines(cfg, DictDefault(ENTRY), Spec(), tmp_path / "rows", 2)), loads


def test_of_two_commands_at_once_one_writes_and_the_other_waits_for_it(lines):
    run, loads = lines
    with ThreadPoolExecutor(2) as pool:
        first, second = pool.map(run, range(2))
    assert first == second
    assert "datasets[0]: 2 of 2 rows with the seed model's 2 most likely tokens: " in first[0]
    assert "to train on them, remove self_distillation, add axolotl.integrations.kd.KDPlugin" in first[1]
    assert len(loads) == 1


def test_predictions_of_which_a_file_is_gone_are_refused(lines, tmp_path):
    run, _ = lines
    run()
    (file,) = tmp_path.glob("rows-top2-*/*.arrow")
    file.unlink()
    with pytest.raises(ArtifactError, match=r"rows-top2-\w+ is damaged .*; delete the folder and start again"):
        run()


def test_layers_are_scored_on_rows_with_predictions_as_on_any_conversation(lines, tmp_path, tiny_llama_dir):
    run, _ = lines
    run()
    (folder,) = tmp_path.glob("rows-top2-*")
    tokenizer = AutoTokenizer.from_pretrained(tiny_llama_dir)
    as_chat, with_predictions = (
        texts_of(list(rows), {"type": kind}, "datasets[0]", tokenizer)
        for rows, kind in ((DATASET, "chat_template"), (load_from_disk(str(folder)), KD_TYPE))
    )
    assert with_predictions == as_chat


def test_other_rows_than_conversations_are_refused_first():
    class Spec:
        where = "datasets[0]"

    with pytest.raises(ConfigError, match=r"datasets\[0\].type is 'alpaca', but --logits writes for .*chat_template"):
        check_logits([(DictDefault({"type": "alpaca"}), Spec())])


def test_the_folder_is_named_by_what_shapes_it(tmp_path):
    row = TokenizedRow(0, (5, 6), (-100, 6))
    names = {
        logits_dir(tmp_path / "rows", rows, top_k, seed).name
        for rows, top_k, seed in (([row], 2, "a"), ([row], 3, "a"), ([row], 2, "b"), ([row, row], 2, "a"))
    }
    assert len(names) == 4
    assert json.dumps(sorted(names)).count("rows-top") == 4


@pytest.mark.filterwarnings("ignore:.*")
def test_axolotls_trainer_for_knowledge_distillation_learns_from_it(cfg, seed, tiny_llama_dir, tmp_path):
    from axolotl.core.training_args import AxolotlTrainingArguments
    from axolotl.integrations.kd import trainer as kd
    from axolotl.integrations.kd.args import KDTrainingArgsMixin

    @dataclasses.dataclass
    class Arguments(KDTrainingArgsMixin, AxolotlTrainingArguments):
        """What the plugin adds to Axolotl's own."""

    class KDTrainer(kd.AxolotlKDTrainer):
        def __init__(self, *args, **kwargs):
            super().__init__(*args, **kwargs)
            self._kd_loss_fn.compiled = False  # compiling takes a minute

        def get_train_dataloader(self):
            return [DataCollatorForKD(tokenizer)([dict(sample) for sample in samples])]

    rows = list(tokenized_rows(cfg, ENTRY, DATASET))
    folder = write_logits(seed, DATASET, rows, 8, tmp_path / "out")
    tokenizer = AutoTokenizer.from_pretrained(tiny_llama_dir)
    entry = DictDefault(kd_entry(DictDefault(ENTRY), folder))
    strategy = load_strategy(entry.type, tokenizer, cfg, entry)
    samples = [strategy.tokenize_prompt(dict(row)) for row in load_from_disk(str(folder))]
    torch.manual_seed(1)
    student = LlamaForCausalLM(seed.config)
    args = Arguments(
        output_dir=str(tmp_path / "trained"),
        **{"kd_alpha": 1.0, "kd_ce_alpha": 0.0, "kd_temperature": 1.0, "num_train_epochs": 8, "learning_rate": 0.02},
        **{"use_cpu": True, "report_to": "none", "save_strategy": "no", "logging_steps": 1, "disable_tqdm": True},
    )
    trainer = KDTrainer(model=student, args=args, train_dataset=samples)
    trainer.train()
    losses = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
    assert losses[-1] < 0.5 * losses[0]
