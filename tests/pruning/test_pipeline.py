import dataclasses
import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from axolotl_sdft import LayerPruningConfig
from axolotl_sdft.core import shared_folders
from axolotl_sdft.core.errors import ArtifactError, CheckpointError, ConfigError, UnknownNameError
from axolotl_sdft.pruning import pipeline
from axolotl_sdft.pruning.pipeline import PruningRun, run_pruning
from axolotl_sdft.pruning.scoring.scores import LayerScores
from axolotl_sdft.pruning.spec import PruningSpec
from tests.pruning.conftest import edit_config, load, snapshot, token_ids


def batches():
    return [{"input_ids": ids, "attention_mask": torch.ones_like(ids)} for ids in token_ids(rows=4).split(2)]


def no_batches():
    raise AssertionError("the layers must not be scored")


def run_of(seed_dir, root, settings, load_batches=batches, text="text-1", seed_name="org/seed-llama"):
    config = LayerPruningConfig(**settings)
    return PruningRun(
        PruningSpec(
            seed_dir=seed_dir,
            seed_name=seed_name,
            config=config,
            calibration_fingerprint=text,
            load_batches=load_batches,
            root=root,
        )
    )


def read(folder, name):
    return json.loads((folder / name).read_text())


def test_the_pruned_checkpoint_holds_the_plan_and_the_scores(checkpoint, tmp_path, caplog):
    caplog.set_level("INFO")
    pruning = run_of(checkpoint(), tmp_path, {"num_layers": 2})
    folder = pruning.run()
    provenance, scores = (
        read(folder, "provenance/layer_pruning.json"),
        LayerScores.from_json(read(folder, "provenance/scores.json")),
    )
    dropped = provenance["drop_layers"]
    assert folder == pruning.spec.output_dir
    assert folder.name.startswith("org--seed-llama-drop2-")
    assert provenance["seed_model"] == "org/seed-llama"
    assert provenance["metric"] == "angular_distance"
    assert dropped == [dropped[0], dropped[0] + 1]
    assert provenance["cost"] == scores.block_costs[dropped[0]][dropped[0] + 2]
    assert provenance["cost"] == min(scores.block_costs[start][start + 2] for start in range(5))
    assert provenance["scores"] == read(folder, "provenance/scores.json")
    assert load(folder).config.num_hidden_layers == 4
    assert f"dropped {dropped[0]}, {dropped[1]} of 6 layers (angular_distance" in caplog.text


def test_run_again_finds_it_without_scoring(checkpoint, tmp_path):
    folder = run_of(checkpoint(), tmp_path, {"num_layers": 2}).run()
    stamp = (folder / "model.safetensors").stat().st_mtime_ns
    again = run_of(checkpoint(), tmp_path, {"num_layers": 2}, load_batches=no_batches)
    assert again.spec.is_done
    assert again.run() == folder
    assert (folder / "model.safetensors").stat().st_mtime_ns == stamp


def cut_off(folder):
    content = (folder / "model.safetensors").read_bytes()
    (folder / "model.safetensors").write_bytes(content[:-1])


@pytest.mark.parametrize(
    ("damage", "told"),
    [
        (lambda folder: (folder / "model.safetensors").unlink(), "it holds no weights"),
        (cut_off, r"model.safetensors is truncated: it has \d+ bytes of"),
        (lambda folder: (folder / "config.json").unlink(), "has no config.json"),
    ],
    ids=["weights gone", "weights cut off", "config gone"],
)
def test_a_pruned_checkpoint_of_which_a_file_is_damaged_or_gone_is_refused_before_anything_is_made(
    checkpoint, tmp_path, damage, told
):
    folder = run_of(checkpoint(), tmp_path, {"drop_layers": [1]}).run()
    damage(folder)
    with pytest.raises(CheckpointError, match=rf"{folder.name} is damaged: .*{told}.*or delete the folder and run axo"):
        run_of(checkpoint(), tmp_path, {"drop_layers": [1]}).run()


def test_an_adapter_beside_whole_weights_is_refused_before_anything_is_scored(own_checkpoint, tmp_path):
    (own_checkpoint / "adapter_config.json").write_text("{}")
    with pytest.raises(
        CheckpointError, match=r"seed holds an adapter \(adapter_config\.json\), which was trained on all"
    ):
        run_of(own_checkpoint, tmp_path, {"num_layers": 2}, load_batches=no_batches)


def test_named_layers_are_cut_without_scoring(checkpoint, tmp_path):
    folder = run_of(checkpoint(), tmp_path, {"drop_layers": (4, 1), "patch": "none"}, load_batches=no_batches).run()
    provenance = read(folder, "provenance/layer_pruning.json")
    assert (provenance["drop_layers"], provenance["metric"], provenance["scores"]) == ([1, 4], None, None)
    assert not (folder / "provenance/scores.json").exists()


CHANGES = [
    {"num_layers": 3},
    {"metric": "block_influence"},
    {"token_reduction": "last"},
    {"protect_first": 1},
    {"protect_last": 1},
    {"dtype": "float32"},
    {"load_in_4bit": True},
    {"max_shard_size": "4KB"},
    {"patch": "none"},
    {"calibration": {"sequence_len": 64}},
    {"calibration": {"num_samples": 3}},
    {"calibration": {"path": "other.txt"}},
]


@pytest.mark.parametrize("change", CHANGES, ids=str)
def test_each_setting_that_shapes_the_result_gives_another_folder(checkpoint, tmp_path, change):
    before, after = (run_of(checkpoint(), tmp_path, {"num_layers": 2} | more).spec.output_dir for more in ({}, change))
    assert before != after


def test_batch_size_and_calibration_text_count_only_as_far_as_they_matter(checkpoint, tmp_path):
    def folder(settings, **more):
        return run_of(checkpoint(), tmp_path, settings, **more).spec.output_dir

    assert folder({"num_layers": 2}) == folder({"num_layers": 2, "calibration": {"batch_size": 1}})
    assert folder({"num_layers": 2}) == folder({"num_layers": 2, "device_map": "auto"})
    assert folder({"num_layers": 2}) != folder({"num_layers": 2}, text="text-2")
    bare = {"drop_layers": (1, 3), "patch": "none"}
    assert folder(bare) == folder(bare | {"drop_layers": (3, 1), "metric": "any"}, text="text-2")


def test_named_layers_with_a_patch_depend_on_the_text_and_not_on_the_metric(checkpoint, tmp_path):
    def folder(settings, **more):
        return run_of(checkpoint(), tmp_path, {"drop_layers": (1, 3)} | settings, **more).spec.output_dir

    assert folder({}) == folder({"drop_layers": (3, 1), "metric": "any", "token_reduction": "last"})
    assert len({folder({}), folder({}, text="text-2"), folder({"dtype": "float32"}), folder({"patch": "none"})}) == 4


def test_a_fraction_of_the_layers_is_counted_in_the_folder_s_name(checkpoint, tmp_path):
    assert "-drop2-" in run_of(checkpoint(), tmp_path, {"num_layers": 0.3}).spec.output_dir.name  # 1.8 of 6


def test_another_seed_gives_another_folder(own_checkpoint, checkpoint, tmp_path):
    own = run_of(own_checkpoint, tmp_path, {"num_layers": 2}).spec.output_dir
    assert own == run_of(checkpoint(), tmp_path, {"num_layers": 2}).spec.output_dir  # the same files elsewhere
    weights = (own_checkpoint / "model.safetensors").read_bytes()
    (own_checkpoint / "model.safetensors").write_bytes(weights[:-4] + b"\0\0\0\1")
    assert own != run_of(own_checkpoint, tmp_path, {"num_layers": 2}).spec.output_dir


def test_a_folder_named_by_the_user_is_absolute_and_used(checkpoint, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    folder = run_of(checkpoint(), tmp_path / "root", {"drop_layers": (1,), "output_dir": "deep/down"}).run()
    assert folder == tmp_path / "deep" / "down"
    assert (folder / "model.safetensors").is_file()


def test_a_folder_with_other_settings_is_refused_with_what_differs(checkpoint, tmp_path):
    settings = {"num_layers": 2, "output_dir": str(tmp_path / "out")}
    run_of(checkpoint(), tmp_path, settings).run()
    changed = run_of(checkpoint(), tmp_path, settings | {"token_reduction": "last"}, no_batches, text="text-2")
    assert not changed.spec.is_done
    message = (
        r"output_dir: .*out is there, but .*differs in settings\.token_reduction, calibration_text; delete the folder"
    )
    with pytest.raises(ArtifactError, match=message):
        changed.run()


def test_a_folder_that_no_pruning_made_is_refused(checkpoint, tmp_path):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "thesis.tex").write_text("")
    named = run_of(checkpoint(), tmp_path, {"drop_layers": (1,), "output_dir": str(tmp_path / "out")})
    with pytest.raises(
        ArtifactError, match=r"out is there, but .*its provenance/layer_pruning\.json is missing; delete the folder"
    ):
        named.run()
    assert snapshot(tmp_path / "out") == ["thesis.tex"]


def test_a_link_to_what_is_gone_is_refused_before_scoring(checkpoint, tmp_path):
    (tmp_path / "out").symlink_to(tmp_path / "gone")
    with pytest.raises(
        ArtifactError, match=r"out is there, but .*its provenance/layer_pruning\.json is missing; delete"
    ):
        run_of(checkpoint(), tmp_path, {"num_layers": 2, "output_dir": str(tmp_path / "out")}, no_batches).run()


def test_a_checkpoint_that_another_process_makes_meanwhile_is_used(checkpoint, tmp_path, monkeypatch):
    folder = run_of(checkpoint(), tmp_path, {"num_layers": 2}).run()
    answers = iter([False, True])
    monkeypatch.setattr(PruningSpec, "is_done", property(lambda _spec: next(answers)))
    assert run_of(checkpoint(), tmp_path, {"num_layers": 2}, no_batches).run() == folder


def test_a_folder_that_others_filled_while_one_waited_for_it_is_refused_before_scoring(
    checkpoint, tmp_path, monkeypatch
):
    output = {"output_dir": str(tmp_path / "out")}
    waiting = run_of(checkpoint(), tmp_path, output | {"num_layers": 2}, no_batches)
    wait = pipeline.find_or_make

    def after_others(*args):
        monkeypatch.setattr(pipeline, "find_or_make", wait)
        run_of(checkpoint(), tmp_path, output | {"drop_layers": (1,), "patch": "none"}, no_batches).run()
        return wait(*args)

    monkeypatch.setattr(pipeline, "find_or_make", after_others)
    with pytest.raises(ArtifactError, match=r"layer_pruning\.output_dir: .*out is there, but .*differs in settings"):
        waiting.run()


def test_the_plan_alone_writes_no_checkpoint_and_agrees_with_the_run(checkpoint, tmp_path):
    pruning = run_of(checkpoint(), tmp_path / "root", {"num_layers": 3, "metric": "block_influence", "patch": "none"})
    plan = pruning.plan()
    name = pruning.spec.scores_dir.name
    assert snapshot(tmp_path / "root") == [name, f"{name}/scores.json", f"{name}/scoring.json"]
    folder = run_pruning(dataclasses.replace(pruning.spec, load_batches=no_batches))
    assert list(plan.drop_layers) == read(folder, "provenance/layer_pruning.json")["drop_layers"]


def test_the_plan_of_named_layers_needs_no_model(checkpoint, tmp_path):
    plan = run_of(checkpoint(), tmp_path, {"drop_layers": (5, 2)}, no_batches).plan()
    assert (plan.drop_layers, plan.num_layers, plan.cost) == ((2, 5), 6, None)


def test_a_pruned_model_is_known_as_such_also_after_training_elsewhere(checkpoint, tmp_path):
    settings = {"drop_layers": (4, 5)}
    pruned = run_of(checkpoint(), tmp_path, settings).run()
    trained = load(pruned)
    with torch.no_grad():
        trained.lm_head.weight.add_(1.0)
    trained.save_pretrained(tmp_path / "trained")

    assert not run_of(checkpoint(), tmp_path, settings).spec.is_input_pruned
    assert run_of(pruned, tmp_path, settings).spec.is_input_pruned
    assert run_of(tmp_path / "trained", tmp_path, settings).spec.is_input_pruned
    other = run_of(tmp_path / "trained", tmp_path, {"drop_layers": (0,)})
    assert not other.spec.is_input_pruned
    assert "axolotl_sdft_pruning" in read(other.run(), "config.json")


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"num_layers": 6}, r"layer_pruning\.num_layers is 6, but the model has 6 layers; lower it"),
        ({"drop_layers": (6,)}, r"layer_pruning\.drop_layers holds 6, but the model has 6 layers, 0 to 5"),
        ({"num_layers": 3, "protect_last": 4}, r"protect_last \(4\) leave 2 of them to choose from"),
        ({"num_layers": 0.95}, r"num_layers is 0\.95 \(6 layers\), but the model has 6 layers; lower it"),
    ],
)
def test_settings_that_do_not_fit_the_model_are_refused_when_the_spec_is_made(checkpoint, tmp_path, settings, message):
    with pytest.raises(ConfigError, match=message):
        run_of(checkpoint(), tmp_path, settings, no_batches)


@pytest.mark.parametrize(
    ("fault", "message"),
    [
        (lambda seed: (seed / "model.safetensors").rename(seed / "pytorch_model.bin"), r"save_pretrained"),
        (lambda seed: (seed / "model.safetensors").write_bytes(b"123"), r"model\.safetensors is truncated"),
        (lambda seed: edit_config(seed, num_kv_shared_layers=2), r"can't be cut soundly: .*num_kv_shared_layers"),
    ],
)
def test_a_seed_that_can_t_be_cut_is_refused_before_it_is_scored(own_checkpoint, tmp_path, fault, message):
    fault(own_checkpoint)
    pruning = run_of(own_checkpoint, tmp_path / "root", {"num_layers": 2}, no_batches)
    for act in (pruning.plan, pruning.run):
        with pytest.raises(CheckpointError, match=message):
            act()
    assert not (tmp_path / "root").exists()


def test_a_folder_that_can_t_be_written_is_refused_before_the_model_is_scored(checkpoint, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(ArtifactError, match=r"layer_pruning\.output_dir: can't write to .*file"):
        run_of(checkpoint(), tmp_path / "file", {"num_layers": 2}, no_batches).run()


def test_an_unknown_metric_leaves_nothing_behind(checkpoint, tmp_path):
    with pytest.raises(UnknownNameError, match=r"layer_pruning\.metric is 'magic'"):
        run_of(checkpoint(), tmp_path / "root", {"num_layers": 2, "metric": "magic"}, no_batches).run()
    assert not list((tmp_path / "root").glob("*seed*"))


def test_a_seed_of_which_only_some_blocks_can_be_cut_is_not_refused_at_once(checkpoint, tmp_path, monkeypatch):
    own = pipeline.plan_checkpoint

    def plan_checkpoint(seed_dir, drop_layers):
        if 3 in drop_layers:
            raise CheckpointError("layer 3 is needed")
        return own(seed_dir, drop_layers)

    monkeypatch.setattr(pipeline, "plan_checkpoint", plan_checkpoint)
    assert run_of(checkpoint(), tmp_path, {"num_layers": 2}).plan().num_layers == 6
    with pytest.raises(CheckpointError, match="layer 3 is needed"):
        run_of(checkpoint(), tmp_path, {"num_layers": 2, "protect_first": 2, "protect_last": 1}).plan()


def test_a_cut_that_would_give_another_model_is_refused_before_scoring_and_before_writing(
    checkpoint, tmp_path, monkeypatch
):
    checked = []

    def verify_cut(seed_config, pruned_config, kept):
        checked.append((seed_config["num_hidden_layers"], pruned_config["num_hidden_layers"], tuple(kept)))
        if len(checked) >= 2:
            raise CheckpointError("layer 3 differs")

    monkeypatch.setattr("axolotl_sdft.pruning.checkpoint.verify.verify_cut", verify_cut)
    pruning = run_of(checkpoint(), tmp_path, {"num_layers": 2})
    with pytest.raises(CheckpointError, match="no block of removable layers can be removed: layer 3 differs"):
        pruning.run()
    tried = [(6, 4, tuple(layer for layer in range(6) if layer not in (start, start + 1))) for start in range(5)]
    assert checked[0] == (6, 4, (0, 1, 2, 5))  # before scoring
    assert sorted(checked[1:]) == sorted(tried)  # before writing, each block in the order of its cost
    assert not pruning.spec.output_dir.exists()


def test_a_cut_that_would_give_another_model_gives_way_to_the_next_best(checkpoint, tmp_path, monkeypatch, caplog):
    wanted = run_of(checkpoint(), tmp_path / "first", {"num_layers": 2}).plan().drop_layers

    def verify_cut(_seed_config, _pruned_config, kept):
        if not set(kept) & set(wanted) and set(range(6)) - set(kept) == set(wanted):
            raise CheckpointError("they differ")

    monkeypatch.setattr("axolotl_sdft.pruning.checkpoint.verify.verify_cut", verify_cut)
    monkeypatch.setattr(pipeline.PruningRun, "_trial_sets", lambda _self: [(0, 1)])
    chosen = run_of(checkpoint(), tmp_path / "second", {"num_layers": 2}).plan().drop_layers
    assert chosen != wanted
    shown = "+".join(map(str, wanted))
    assert f"layers {shown} would be chosen by angular_distance, but can't be removed: they differ" in caplog.messages


def test_a_failure_while_writing_leaves_nothing_behind(checkpoint, tmp_path, monkeypatch):
    def fail(*_args):
        raise KeyboardInterrupt

    monkeypatch.setattr(pipeline, "write_cut", fail)
    with pytest.raises(KeyboardInterrupt):
        run_of(checkpoint(), tmp_path, {"drop_layers": (1,)}).run()
    assert snapshot(tmp_path) == []


def test_the_stage_is_imported_without_torch():
    modules = (
        "axolotl_sdft.pruning.pipeline",
        "axolotl_sdft.pruning.checkpoint.cut",
        "axolotl_sdft.pruning.planning.plan",
    )
    code = f"import sys, {', '.join(modules)}; sys.exit('torch' in sys.modules or 'transformers' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], cwd=Path(__file__).parents[2], check=False).returncode == 0


def stopped(*_args, **_kwargs):
    raise KeyboardInterrupt


def test_ctrl_c_while_layers_are_scored_says_that_nothing_is_kept_yet(checkpoint, tmp_path, caplog, monkeypatch):
    monkeypatch.setattr(pipeline, "measured_scores", stopped)
    with pytest.raises(KeyboardInterrupt):
        run_of(checkpoint(), tmp_path, {"num_layers": 2}).run()
    assert "stopped: no scores were finished, and no checkpoint was made; to go on, start the same" in caplog.text


def test_ctrl_c_while_the_patch_is_fitted_says_that_the_scores_are_kept(checkpoint, tmp_path, caplog, monkeypatch):
    pruning = run_of(checkpoint(), tmp_path, {"num_layers": 2})
    monkeypatch.setattr(PruningRun, "_fitted_patch", stopped)
    with pytest.raises(KeyboardInterrupt):
        pruning.run()
    assert f"stopped: the scores are kept in {pruning.spec.scores_dir}" in caplog.text
    assert not pruning.spec.output_dir.exists()


def test_ctrl_c_while_the_layers_are_cut_says_that_the_scores_are_kept(checkpoint, tmp_path, caplog, monkeypatch):
    pruning = run_of(checkpoint(), tmp_path, {"num_layers": 2, "patch": "none"})
    monkeypatch.setattr(pipeline, "write_cut", stopped)
    with pytest.raises(KeyboardInterrupt):
        pruning.run()
    assert f"stopped: the scores are kept in {pruning.spec.scores_dir}" in caplog.text
    assert not pruning.spec.output_dir.exists()


def test_ranks_that_share_no_folder_score_nothing(checkpoint, tmp_path, monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setenv("TORCHELASTIC_USE_AGENT_STORE", "True")
    monkeypatch.setattr(shared_folders, "_VISIBLE_S", 0)
    elsewhere = {"rank": 1, "host": "node-b", "folder": "/scratch/b", "token": ".rank-1-there", "is_finished": False}
    said = iter([lambda own: [own, elsewhere], lambda own: [own, [0]]])
    monkeypatch.setattr(shared_folders, "_exchange", lambda value, key: next(said)(value))

    with pytest.raises(
        ArtifactError,
        match=r"layer_pruning\.output_dir: rank 0 on .* does not see the files of rank 1 on 'node-b' \(/scratch/b\) .*"
        "run axolotl prune-layers on one machine and copy",
    ):
        run_of(checkpoint(), tmp_path, {"num_layers": 2}, load_batches=no_batches).run()
