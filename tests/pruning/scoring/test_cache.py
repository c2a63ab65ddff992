import json

import pytest

from axolotl_sdft.core.errors import ArtifactError
from axolotl_sdft.plugins.registry import Registry
from axolotl_sdft.pruning.scoring import measure
from axolotl_sdft.pruning.scoring.measure import ScoreCache
from axolotl_sdft.pruning.scoring.scores import LayerScores
from tests.pruning.conftest import snapshot
from tests.pruning.test_pipeline import batches, no_batches, read, run_of

BLOCKS = LayerScores("blocks", 2, ((0.0, 0.5, 0.7), (0.0, 0.0, 0.4), (0.0, 0.0, 0.0)), True, 9)


@pytest.fixture
def loads(monkeypatch):
    """The names of what was loaded, in order."""
    calls = []
    for name in ("load_for_scoring", "load_structure"):
        own = getattr(measure, name)
        monkeypatch.setattr(measure, name, lambda *args, own=own, name=name: calls.append(name) or own(*args))
    return calls


def ordered(count):
    return LayerScores("greedy", 9, (), False, 9, tuple(range(count)), tuple(float(place) for place in range(count)))


def test_another_number_of_layers_loads_no_model_again(checkpoint, tmp_path, loads):
    first = run_of(checkpoint(), tmp_path, {"num_layers": 2, "patch": "none"})
    first.run()
    for num_layers in (1, 3, 0.7):
        pruning = run_of(checkpoint(), tmp_path, {"num_layers": num_layers, "patch": "none"}, no_batches)
        assert pruning.spec.scores_dir == first.spec.scores_dir
        assert LayerScores.from_json(read(pruning.run(), "provenance/scores.json")) == first.scores()
    assert loads == ["load_for_scoring"]


def test_scores_that_serve_are_read_where_nothing_can_be_written(checkpoint, tmp_path, monkeypatch):
    pruning = run_of(checkpoint(), tmp_path, {"num_layers": 2})
    scores = pruning.scores()

    def refuse(*_args):
        raise ArtifactError("can't write")

    monkeypatch.setattr(measure, "ensure_writable", refuse)
    assert pruning.scores() == scores
    with pytest.raises(ArtifactError, match="can't write"):
        run_of(checkpoint(), tmp_path, {"num_layers": 2, "metric": "block_influence"}, no_batches).scores()


def test_the_scores_say_what_they_were_made_from(checkpoint, tmp_path):
    pruning = run_of(checkpoint(), tmp_path, {"num_layers": 2})
    assert pruning.scores() == LayerScores.from_json(read(pruning.spec.scores_dir, "scores.json"))
    provenance = read(pruning.spec.scores_dir, "scoring.json")
    assert pruning.spec.scores_dir.parent == tmp_path
    assert pruning.spec.scores_dir.name.startswith("org--seed-llama-scores-")
    assert provenance["seed_model"] == "org/seed-llama"
    assert (provenance["metric"], provenance["token_reduction"], provenance["dtype"]) == (
        "angular_distance",
        "all",
        "auto",
    )
    assert provenance["calibration_text"] == "text-1"
    assert "transformers" in provenance["package_versions"]


@pytest.mark.parametrize(
    "change",
    [
        {"metric": "block_influence"},
        {"token_reduction": "last"},
        {"calibration": {"sequence_len": 64}},
        {"dtype": "bfloat16"},
        {"load_in_4bit": True},
    ],
    ids=str,
)
def test_what_shapes_the_scores_gives_them_another_folder(checkpoint, tmp_path, change):
    before, after = (run_of(checkpoint(), tmp_path, {"num_layers": 2} | more).spec.scores_dir for more in ({}, change))
    assert before != after
    assert before != run_of(checkpoint(), tmp_path, {"num_layers": 2}, text="text-2").spec.scores_dir


def test_what_only_the_plan_looks_at_does_not(checkpoint, tmp_path):
    def folder(**settings):
        return run_of(checkpoint(), tmp_path, {"num_layers": 2} | settings).spec.scores_dir

    assert folder() == folder(num_layers=3, protect_first=1, protect_last=1, max_shard_size="4KB", output_dir="out")
    assert folder() == folder(calibration={"batch_size": 1}, device_map="auto")
    assert folder(metric="perplexity") == folder(metric="perplexity", num_layers=3)
    assert folder(metric="perplexity") != folder(metric="perplexity", protect_first=1)
    assert folder(metric="last") == folder(metric="last", calibration={"sequence_len": 64}, dtype="float32")


def test_a_greedy_order_serves_fewer_layers_and_is_gone_on_from_for_more(checkpoint, tmp_path, loads):
    def scores(num_layers, load_batches=batches):
        return run_of(checkpoint(), tmp_path, {"num_layers": num_layers, "metric": "perplexity"}, load_batches).scores()

    first = scores(2)
    assert scores(1, no_batches) == first
    longer = scores(3)
    assert longer.removal_order[:2] == first.removal_order
    assert scores(2, no_batches) == longer
    assert loads == ["load_for_scoring"] * 2


def test_a_metric_that_reads_no_text_loads_no_weights(checkpoint, tmp_path, loads):
    pruning = run_of(checkpoint(), tmp_path, {"num_layers": 2, "metric": "last", "patch": "none"}, no_batches)
    assert read(pruning.run(), "provenance/layer_pruning.json")["drop_layers"] == [3, 4]
    assert loads == ["load_structure"]


def test_a_plugin_s_metric_that_reads_no_text_gets_a_model_without_weights(checkpoint, tmp_path, monkeypatch):
    seen = []

    def structural(model, given, options):
        seen.append((model.model.layers[0].mlp.up_proj.weight.device.type, list(given), options.num_layers))
        return LayerScores("structural", 6, tuple((float(place),) * 7 for place in range(7)), True, 0)

    structural.needs_text = False
    registry = Registry({"metric": {"structural": structural}})
    monkeypatch.setattr("axolotl_sdft.pruning.scoring.scores.registry", lambda: registry)
    plan = run_of(checkpoint(), tmp_path, {"num_layers": 2, "metric": "structural"}, no_batches).plan()
    assert (plan.drop_layers, seen) == ((0, 1), [("meta", [], 2)])


def test_another_code_of_a_plugin_s_metric_gives_scores_and_checkpoint_other_names(checkpoint, tmp_path, monkeypatch):
    def first(model, batches, options):
        return BLOCKS

    def second(model, batches, options):
        return None

    def names(metric, **settings):
        registry = Registry({"metric": {"mine": metric}})
        monkeypatch.setattr("axolotl_sdft.pruning.scoring.scores.registry", lambda: registry)
        spec = run_of(checkpoint(), tmp_path, {"metric": "mine"} | settings).spec
        return spec.scores_dir.name, spec.output_dir.name

    assert names(first, num_layers=2) == names(first, num_layers=2)
    assert not set(names(first, num_layers=2)) & set(names(second, num_layers=2))
    named = names(first, drop_layers=(1, 2)), names(second, drop_layers=(1, 2))
    assert named[0][1] == named[1][1]  # no metric has a say


def test_scores_beside_a_pruned_checkpoint_are_used_when_the_others_are_gone(checkpoint, tmp_path):
    pruning = run_of(checkpoint(), tmp_path, {"num_layers": 2})
    plan = pruning.plan()
    pruning.run()
    (pruning.spec.scores_dir / "scores.json").unlink()
    (pruning.spec.scores_dir / "scoring.json").unlink()
    pruning.spec.scores_dir.rmdir()
    assert run_of(checkpoint(), tmp_path, {"num_layers": 2}, no_batches).plan() == plan


def test_named_layers_have_no_scores(checkpoint, tmp_path):
    assert run_of(checkpoint(), tmp_path, {"drop_layers": (1,)}, no_batches).scores() is None
    assert snapshot(tmp_path) == []


def test_scores_that_another_process_makes_meanwhile_are_used(tmp_path, monkeypatch):
    cache = ScoreCache(tmp_path / "scores", {})
    cache.find_or_make(1, lambda known: BLOCKS)
    found = iter([None, BLOCKS, BLOCKS])
    monkeypatch.setattr(ScoreCache, "read", lambda _cache: next(found))
    assert cache.find_or_make(1, lambda known: pytest.fail("made twice")) == BLOCKS


def test_a_longer_order_takes_the_place_of_a_shorter_one_and_other_files_stay(tmp_path):
    cache = ScoreCache(tmp_path / "scores", {"metric": "greedy"})
    cache.find_or_make(2, lambda known: ordered(2))
    (tmp_path / "scores" / "curve.png").write_text("")
    seen = []
    assert cache.find_or_make(4, lambda known: seen.append(known) or ordered(4)) == ordered(4)
    assert seen == [ordered(2)]
    assert snapshot(tmp_path / "scores") == ["curve.png", "scores.json", "scoring.json"]


def test_a_failure_while_scoring_leaves_the_previous_scores(tmp_path):
    cache = ScoreCache(tmp_path / "scores", {})
    cache.find_or_make(2, lambda known: ordered(2))
    with pytest.raises(ZeroDivisionError):
        cache.find_or_make(4, lambda known: 1 / 0)
    assert cache.read() == ordered(2)
    with pytest.raises(ZeroDivisionError):
        ScoreCache(tmp_path / "none", {}).find_or_make(4, lambda known: 1 / 0)
    assert not (tmp_path / "none").exists()


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("{", r"scores\.json can't be read"),
        (json.dumps({"metric": "x"}), r"holds no scores \(KeyError.*; delete .*sco"),
    ],
)
def test_broken_scores_are_refused_by_their_path(tmp_path, content, message):
    (tmp_path / "scores").mkdir()
    (tmp_path / "scores" / "scores.json").write_text(content)
    with pytest.raises(ArtifactError, match=message):
        ScoreCache(tmp_path / "scores", {}).find_or_make(1, lambda known: BLOCKS)


def test_a_folder_that_can_t_be_written_is_refused_before_scoring(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(ArtifactError, match=r"layer_pruning \(its scores\): can't write to .*file"):
        ScoreCache(tmp_path / "file" / "scores", {}).find_or_make(1, lambda known: pytest.fail("scored"))
