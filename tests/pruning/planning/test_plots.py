import sys

import pytest

pytest.importorskip("matplotlib")

from matplotlib import pyplot, rcParams
from matplotlib.figure import Figure
from matplotlib.image import imread
from matplotlib.patches import Rectangle

from axolotl_sdft import LayerPruningConfig, LayerScores, plan_pruning
from axolotl_sdft.core.errors import MissingExtraError
from axolotl_sdft.pruning.planning.plots import write_plots

SIZE = 6


def scores(contiguous=True):
    """Scores of six layers; the cheapest block of each length starts at layer 2, or ends with the last."""
    table = tuple(
        tuple(0.1 * (j - i) + 0.01 * abs(i - 2) if j > i else 0.0 for j in range(SIZE + 1)) for i in range(SIZE + 1)
    )
    return LayerScores("angular_distance", SIZE, table, contiguous, num_tokens=10)


GREEDY = LayerScores("perplexity", SIZE, (), False, 10, removal_order=(4, 1, 3), removal_costs=(9.0, 9.5, 3000.0))


def draw(scores, folder, **settings):
    config = LayerPruningConfig(**{"num_layers": 2} | settings)
    return write_plots("org/seed-llama", plan_pruning(scores, config), scores, config, folder)


@pytest.fixture
def figures(monkeypatch):
    """The figures that were saved, by file name."""
    saved = {}
    save = Figure.savefig
    monkeypatch.setattr(
        Figure, "savefig", lambda self, path, **style: (saved.update({path.name: self}), save(self, path, **style))
    )
    return saved


@pytest.mark.parametrize(
    ("scores", "kinds"),
    [
        (scores(), ["heat_map", "least_cost"]),
        (scores(contiguous=False), ["layers", "least_cost"]),
        (GREEDY, ["least_cost"]),
        (LayerScores("last", SIZE, (), False, 0, removal_order=(4, 3, 2)), []),
    ],
    ids=["blocks", "single layers", "greedy", "nothing measured"],
)
def test_each_kind_of_scores_has_its_pictures(scores, kinds, tmp_path):
    paths = draw(scores, tmp_path)
    assert [path.name for path in paths] == [f"{kind}-drop2.png" for kind in kinds]
    assert all(imread(path).shape[1] > 800 for path in paths)


def test_pictures_of_another_choice_stay(tmp_path):
    paths = [*draw(scores(), tmp_path), *draw(scores(), tmp_path, num_layers=3)]
    paths += draw(scores(), tmp_path, protect_last=1)
    assert len(set(paths)) == 6
    assert all(path.is_file() for path in paths)


def test_the_heat_map_outlines_the_chosen_block_and_holds_its_cost(figures, tmp_path):
    draw(scores(), tmp_path, num_layers=3)
    axes = figures["heat_map-drop3.png"].axes[0]
    (outline,) = [patch for patch in axes.patches if isinstance(patch, Rectangle)]
    assert (outline.get_x() + 0.5, outline.get_y() + 0.5) == (2, 3)  # starts at layer 2, has 3 layers
    costs = axes.images[0].get_array()
    assert costs[3 - 1][2] == pytest.approx(0.3)
    assert costs.mask[3 - 1].tolist() == [False] * 4 + [True] * 2  # no block of 3 starts at layer 4 or 5
    assert "seed-llama" in axes.get_title()
    assert "angular distance" in axes.get_title()


def test_the_curve_holds_the_least_cost_of_each_number_of_layers(figures, tmp_path):
    draw(scores(), tmp_path)
    curve, chosen = figures["least_cost-drop2.png"].axes[0].lines
    assert curve.get_xdata().tolist() == [1, 2, 3, 4, 5]
    assert curve.get_ydata().tolist() == pytest.approx([0.1, 0.2, 0.3, 0.4, 0.51])  # five can't start at layer 2
    assert (chosen.get_xdata().tolist(), chosen.get_ydata().tolist()) == ([2], [pytest.approx(0.2)])


def test_a_greedy_curve_names_each_layer_and_is_logarithmic_where_costs_explode(figures, tmp_path):
    draw(GREEDY, tmp_path)
    axes = figures["least_cost-drop2.png"].axes[0]
    assert [text.get_text() for text in axes.texts][:3] == ["4", "1", "3"]
    assert axes.get_yscale() == "log"


def test_the_bars_of_the_layers_that_go_have_another_colour(figures, tmp_path):
    plan = plan_pruning(scores(contiguous=False), LayerPruningConfig(num_layers=2))
    draw(scores(contiguous=False), tmp_path)
    _, gone = figures["layers-drop2.png"].axes[0].containers
    assert sorted(round(bar.get_x() + bar.get_width() / 2) for bar in gone) == list(plan.drop_layers)


def test_drawing_leaves_the_global_state_of_matplotlib_alone(tmp_path):
    before = dict(rcParams)
    draw(scores(), tmp_path)
    assert pyplot.get_fignums() == []
    assert dict(rcParams) == before


def test_a_missing_matplotlib_names_the_extra(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    with pytest.raises(MissingExtraError, match=r"need matplotlib; install 'axolotl-sdft\[plots\]'"):
        draw(scores(), tmp_path)
    assert list(tmp_path.iterdir()) == []
