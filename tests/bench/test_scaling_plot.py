"""The picture of the scaling bench says which model, and which rank count, each mark is of."""

from __future__ import annotations

from matplotlib.figure import Figure

from minidist.bench import scaling_plot


def test_models_and_rank_counts_are_named_on_their_axes(tmp_path, monkeypatch):
    drawn = []
    save = Figure.savefig
    monkeypatch.setattr(
        Figure, "savefig", lambda self, path: [drawn.append(self), save(self, path)]
    )

    def rate(model, library, ranks, samples):
        row = {"model": model, "library": library, "ranks": ranks, "what": "weak, flat"}
        return row | {"samples_per_second": samples}

    def hidden(model, share):
        return {"model": model, "hidden": share, "hidden_on_link": 0.5, "hidden_by_formula": 0.6}

    scaling_plot.draw(
        {
            "real": [rate("mlp", "minidist", 1, 1234.0), rate("gpt", "torch", 2, 5.0)],
            "summary": [hidden("mlp", 0.25), hidden("gpt", 0.75)],
            "virtual": [
                {"machine": "m", "ranks": 1, "seconds": 1.0, "predicted_seconds": 1.0},
                {"machine": "m", "ranks": 2, "seconds": 2.0, "predicted_seconds": 1.25},
            ],
        },
        tmp_path / "scaling.png",
    )
    (figure,) = drawn
    mlp, gpt, share, virtual = figure.axes
    assert [axes.get_title(loc="left") for axes in (mlp, gpt)] == [
        "mlp: samples a second",
        "gpt: samples a second",
    ]
    assert "1,234" in [text.get_text() for text in mlp.texts]
    assert [text.get_text() for text in share.get_xticklabels()] == ["mlp", "gpt"]
    assert [text.get_text() for text in virtual.get_xticklabels()] == ["1", "2"]
    predicted, measured = (line.get_ydata().tolist() for line in virtual.lines)
    assert (predicted, measured) == ([1.0, 0.8], [1.0, 0.5])
