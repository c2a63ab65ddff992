import pytest

from axolotl_sdft.core.artifacts import write_json
from axolotl_sdft.core.errors import CheckpointError
from axolotl_sdft.core.model_folder import holds_model, indexed_files, own_path, read_json_file, shaping_files


@pytest.fixture
def model(tmp_path):
    folder = tmp_path / "model"
    folder.mkdir()
    (folder / "config.json").write_text("{}")
    return folder


@pytest.mark.parametrize(
    ("names", "is_model"),
    [
        (["config.json", "model-00001-of-00002.safetensors"], True),
        (["config.json", "model.safetensors.index.json"], True),
        (["config.json", "pytorch_model.bin"], True),
        (["adapter_config.json", "adapter_model.safetensors"], True),
        (["config.json", "adapter_config.json", "adapter_model.bin"], True),
        # What Axolotl writes before it trains
        (["config.json", "tokenizer.json", "sdft_trained_on.json"], False),
        (["config.json", "adapter_config.json", "tokenizer.json"], False),
        (["config.json", "training_args.bin"], False),
        (["model.safetensors"], False),
    ],
)
def test_a_model_is_settings_with_weights(tmp_path, names, is_model):
    for name in names:
        (tmp_path / name).write_text("{}")
    assert holds_model(tmp_path) == is_model


def test_pickled_weights_count_only_where_no_safetensors_are_read_instead(model):
    for name in ("pytorch_model.bin", "adapter_model.bin", "projector.bin", "adapter_model.safetensors"):
        (model / name).touch()
    names = ["adapter_model.safetensors", "config.json", "projector.bin", "pytorch_model.bin"]
    assert [path.name for path in shaping_files(model)] == names
    (model / "model.safetensors").touch()
    assert "pytorch_model.bin" not in [path.name for path in shaping_files(model)]


def test_weights_in_a_folder_inside_count_when_the_index_names_them(model):
    write_json(model / "model.safetensors.index.json", {"weight_map": {"embedding": "parts/one.safetensors"}})
    (model / "parts").mkdir()
    for name in ("one.safetensors", "two.safetensors"):
        (model / "parts" / name).touch()
    found = [path.relative_to(model).as_posix() for path in shaping_files(model)]
    assert found == ["config.json", "model.safetensors.index.json", "parts/one.safetensors"]


@pytest.mark.parametrize("name", ["../secret", "parts/../../secret", "/etc/passwd", "C:\\secret", "..\\secret"])
def test_an_index_that_names_a_file_outside_is_refused(model, name):
    write_json(model / "model.safetensors.index.json", {"weight_map": {"embedding": name}})
    with pytest.raises(CheckpointError, match=r"index\.json: weight_map names a file outside: .* leads out"):
        indexed_files(model, "model.safetensors.index.json")
    with pytest.raises(CheckpointError, match="weight_map names a file outside"):
        shaping_files(model)


@pytest.mark.parametrize("content", [[], {}, {"weight_map": []}, {"weight_map": {"a": 1}}, {"weight_map": {"a": ""}}])
def test_an_index_of_another_form_is_refused(model, content):
    write_json(model / "model.safetensors.index.json", content)
    with pytest.raises(CheckpointError, match="is not an index of weight files"):
        indexed_files(model, "model.safetensors.index.json")


@pytest.mark.parametrize("name", ["tokenizer.json", "model.safetensors", "additional_chat_templates/tools.jinja"])
def test_a_symlink_out_of_the_folder_is_refused(model, tmp_path, name):
    (tmp_path / "secret").write_text("secret")
    (model / name).parent.mkdir(exist_ok=True)
    (model / name).symlink_to(tmp_path / "secret")
    with pytest.raises(CheckpointError, match=r"is a symlink to .*secret, outside the model's folder"):
        shaping_files(model)


def test_a_folder_that_is_a_symlink_out_of_the_folder_is_refused(model, tmp_path):
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "elsewhere" / "tools.jinja").touch()
    (model / "additional_chat_templates").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(CheckpointError, match="outside the model's folder"):
        shaping_files(model)


def test_a_link_within_the_folder_and_a_link_to_the_folder_are_followed(model, tmp_path):
    (model / "tokenizer.json").symlink_to("config.json")
    (tmp_path / "link").symlink_to(model)
    assert [path.name for path in shaping_files(tmp_path / "link")] == ["config.json", "tokenizer.json"]


def test_a_snapshot_of_the_hub_cache_may_link_to_the_blobs_beside_it_only(tmp_path):
    snapshot = tmp_path / "models--org--seed" / "snapshots" / "1f"
    snapshot.mkdir(parents=True)
    for place in ("models--org--seed/blobs", "models--org--other/blobs"):
        (tmp_path / place).mkdir(parents=True)
        (tmp_path / place / "ab").touch()
    (snapshot / "config.json").symlink_to("../../blobs/ab")
    assert shaping_files(snapshot) == [snapshot / "config.json"]
    (snapshot / "tokenizer.json").symlink_to("../../../models--org--other/blobs/ab")
    with pytest.raises(CheckpointError, match="outside the model's folder"):
        shaping_files(snapshot)


def test_a_link_to_itself_and_an_impossible_name_are_refused(model):
    (model / "tokenizer.json").symlink_to("tokenizer.json")
    assert [path.name for path in shaping_files(model)] == ["config.json"]  # there is no file behind it
    with pytest.raises(CheckpointError, match="can't be followed"):
        own_path(model, "a\0b")


def test_json_that_is_nested_too_deeply_is_refused_in_one_line(model):
    (model / "tokenizer.json").write_text("[" * 200_000)
    with pytest.raises(CheckpointError, match=r"tokenizer\.json can't be read: its JSON is nested too deeply"):
        read_json_file(model / "tokenizer.json")
