"""How alike models see images: bars by condition beside a matrix of models."""

from pathlib import Path

from vfmtok.errors import ConfigError


def draw_alignment(
    bars: dict[str, dict[str, float]], reference: str, matrix: list[list[float | None]], names: list[str], about: str
) -> object:
    """A matplotlib figure.

    Args:
        bars: model -> condition -> CKNNA with the ``reference``.
        matrix: SE-CKNNA of models (rows and columns as ``names``), None of a model with itself.
        about: n, k and the images, for the title.

    Raises ConfigError without matplotlib.
    """
    try:
        from matplotlib.figure import Figure
    except ImportError:
        raise ConfigError("the picture needs matplotlib: pip install 'vfmtok[train]'") from None
    side = max(3.6, 0.62 * len(names) + 1.8)
    figure = Figure(figsize=(max(6.0, 1.4 * len(bars) + 2.5) + side + 1, max(4.2, side)), layout="constrained")
    left, right = figure.subplots(1, 2, width_ratios=(max(6.0, 1.4 * len(bars) + 2.5), side + 1))
    conditions = list(next(iter(bars.values())))
    width = 0.84 / len(conditions)
    for number, condition in enumerate(conditions):
        places = [model + (number - (len(conditions) - 1) / 2) * width for model in range(len(bars))]
        colour = "0.35" if number == 0 else f"C{number - 1}"
        left.bar(places, [values[condition] for values in bars.values()], width, label=condition, color=colour)
    left.set_xticks(range(len(bars)), list(bars), rotation=25, ha="right", fontsize=8)
    left.axhline(0, color="0.6", linewidth=0.8)
    left.set(title=f"with {reference}, by condition", ylabel="CKNNA")
    left.legend(fontsize=7)
    values = [[float("nan") if value is None else value for value in row] for row in matrix]
    top = max(0.01, *(value for row in matrix for value in row if value is not None))
    right.imshow(values, vmin=0, vmax=top, cmap="viridis")
    for row, line in enumerate(matrix):
        for column, value in enumerate(line):
            if value is not None:
                colour = "white" if value < 0.6 * top else "black"
                right.text(column, row, f"{value:.3f}", ha="center", va="center", fontsize=7, color=colour)
    right.set_xticks(range(len(names)), names, rotation=40, ha="right", fontsize=7)
    right.set_yticks(range(len(names)), names, fontsize=7)
    right.set(title="SE-CKNNA: the mean over disturbed images")
    figure.suptitle(about, fontsize=9)
    return figure


def save_figure(figure, out: Path) -> None:
    """As a PNG. Raises ConfigError if it can't be written."""
    try:
        figure.savefig(out, dpi=110)
    except OSError as error:
        raise ConfigError(f"cannot write {out}: {error.strerror}") from None
