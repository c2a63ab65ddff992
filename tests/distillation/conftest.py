import pytest

from axolotl_sdft.plugins import registry
from tests.distillation import echo_backend


@pytest.fixture
def echo_plugin(monkeypatch):
    """Register the echo backend, the template `plain` and the check `no_seven`, for one test."""
    extended = registry.load_registry(registry.entry_points(group="axolotl_sdft"))
    extended.add_plugin(echo_backend, "echo")
    monkeypatch.setattr(registry, "load_registry", lambda points: extended)
    registry.registry.cache_clear()
    yield
    registry.registry.cache_clear()


@pytest.fixture
def seed_dir(tmp_path):
    """A folder that stands for a seed model where no model is loaded."""
    folder = tmp_path / "seed"
    folder.mkdir()
    (folder / "config.json").write_text("{}")
    return folder
