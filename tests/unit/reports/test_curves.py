"""The picture of a sweep: what is read, mean and range, and that it is drawn."""

import pytest

from lit_posttrain.reports.comparison import Job
from lit_posttrain.reports.curves import SECONDS, TOKENS, band, draw_curves, read_curve

METRIC = "val/optimal_sampled"


@pytest.fixture
def job(tmp_path):
    """A job with a table of metrics: a training row without a score, and two validations."""

    def make(number: int, algo: str, last: float, *, error: str | None = None) -> Job:
        folder = tmp_path / str(number)
        folder.mkdir()
        rows = [
            f"step,{METRIC},{TOKENS},{SECONDS},train/loss",
            "0,0.5,0.0,0.0,1",
            "1,,,,1",
            f"2,{last},{number + 1}00,7,",
        ]
        (folder / "metrics.csv").write_text("\n".join(rows) + "\n")
        return Job(number, str(folder), {"algo": algo, "seed": str(number)}, error=error)

    return make


def test_a_curve_has_the_validations(job, tmp_path):
    job(0, "grpo", 0.8)
    assert read_curve(tmp_path / "0", METRIC, TOKENS) == [(0.0, 0.5), (100.0, 0.8)]
    assert read_curve(tmp_path / "0", METRIC, SECONDS) == [(0.0, 0.5), (7.0, 0.8)]
    assert read_curve(tmp_path / "0", "val/success", TOKENS) == []
    assert read_curve(tmp_path / "nowhere", METRIC, TOKENS) == []


def test_mean_and_range_over_runs_validation_for_validation():
    got = band([[(0, 0.5), (10, 0.6)], [(0, 0.5), (20, 0.9)], [(0, 0.5), (30, 0.9), (40, 1.0)]])
    assert (got.x, got.low, got.high, got.runs) == ([0, 20], [0.5, 0.6], [0.5, 0.9], 3)
    assert got.mean == pytest.approx([0.5, 0.8])


def test_a_line_for_each_kind_in_every_panel(job, tmp_path, monkeypatch):
    from matplotlib.backends.backend_agg import FigureCanvasAgg

    figures = []
    draw = FigureCanvasAgg.print_figure
    monkeypatch.setattr(
        FigureCanvasAgg, "print_figure", lambda self, *a, **k: (figures.append(self.figure), draw(self, *a, **k))
    )
    jobs = [job(0, "grpo", 0.8), job(1, "grpo", 0.6), job(2, "dpo", 0.7), job(3, "rloo", 0.9, error="ValueError: no")]
    assert draw_curves(jobs, tmp_path / "comparison.png", metrics=[METRIC], by="algo")
    assert (tmp_path / "comparison.png").read_bytes()[:4] == b"\x89PNG"
    assert [path.name for path in tmp_path.glob("*.tmp*")] == []
    (figure,) = figures
    for panel, last in zip(figure.axes, ((150.0, 300.0), (7.0, 7.0)), strict=True):
        grpo, dpo = panel.get_lines()
        assert (grpo.get_label(), dpo.get_label()) == ("grpo (2 runs: mean, range)", "dpo")
        assert list(grpo.get_ydata()) == pytest.approx([0.5, 0.7])
        assert (grpo.get_xdata()[-1], dpo.get_xdata()[-1]) == last
        (shade,) = panel.collections
        assert shade.get_paths()[0].get_extents().y1 == pytest.approx(0.8)


def test_nothing_to_draw_leaves_no_picture(tmp_path):
    assert not draw_curves([Job(0, str(tmp_path))], tmp_path / "comparison.png", metrics=[METRIC], by="algo")
    assert list(tmp_path.iterdir()) == []
