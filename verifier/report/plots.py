"""Pictures of a report as SVG and PNG, from the report's data alone.

Drawn by matplotlib without a display. Colours that must follow the page's theme are drawn as sentinels and become CSS variables; the
others are Okabe and Ito's, which people of all colour vision tell apart, and the maps are cividis. Text stays text.
"""

from __future__ import annotations

import base64
import io
import re
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from verifier.core.records import JsonObject
from verifier.report.as_json import Report

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

INK, GRID, BAND, BAD = "#0a0a01", "#0a0a02", "#0a0a03", "#0a0a04"
_THEME = {INK: "var(--ink)", GRID: "var(--line)", BAND: "var(--band)", BAD: "var(--bad)"}
SERIES = {
    "local": ("#0072b2", "o", "-", "kernel, this block alone"),
    "propagated": ("#56b4e9", "s", "--", "kernel, from the first block on"),
    "graph": ("#009e73", "^", "-", "lowering, block against the quantized model"),
    "profile": ("#d55e00", "D", "-", "quantization, stream against fp32"),
}
FLOOR_DB = 150.0
"""Errors below the floor are drawn on it."""
_STYLE: Any = {
    "svg.fonttype": "none",
    "svg.hashsalt": "verifier",
    "font.family": "sans-serif",
    "font.size": 10,
    "text.color": INK,
    "axes.edgecolor": GRID,
    "axes.labelcolor": INK,
    "axes.titlecolor": INK,
    "xtick.labelsize": 8,
    "ytick.labelsize": 8,
    "axes.labelsize": 9,
    "xtick.color": INK,
    "ytick.color": INK,
    "grid.color": GRID,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "legend.frameon": False,
    "legend.labelcolor": INK,
}


def _figure(width: float, height: float) -> tuple[Figure, Axes]:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), layout="constrained")
    figure.patch.set_alpha(0.0)
    axes = figure.subplots()
    axes.patch.set_alpha(0.0)
    return figure, axes


def _svg(figure: Figure, name: str, title: str, said: str) -> str:
    """Inline SVG with a name and a description for those who hear the page, ids of its own, and the page's colours."""
    import matplotlib as mpl

    held = io.StringIO()
    with mpl.rc_context(_STYLE):
        figure.savefig(held, format="svg", transparent=True, metadata={"Date": None, "Creator": None})
    text = held.getvalue()
    text = text[text.index("<svg") :]
    text = re.sub(r"<metadata>.*?</metadata>", "", text, flags=re.DOTALL)
    for sentinel, variable in _THEME.items():
        text = text.replace(sentinel, variable)
    text = re.sub(r'(\bid=")', rf"\g<1>{name}-", text)
    text = re.sub(r'(url\(#|href="#)', rf"\g<1>{name}-", text)
    text = re.sub(r"font: [^;\"]*'?sans-serif'?", lambda found: found[0].replace("'sans-serif'", "inherit"), text)
    text = re.sub(r'width="[\d.]+pt" height="[\d.]+pt"', "", text, count=1)
    opening = f'<svg role="img" aria-labelledby="{name}-t {name}-d"'
    named = f'<title id="{name}-t">{_escaped(title)}</title><desc id="{name}-d">{_escaped(said)}</desc>'
    text = text.replace("<svg", opening, 1)
    end = text.index(">") + 1
    return text[:end] + named + text[end:]


def _escaped(text: str) -> str:
    return text.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")


def _drawn(function: Any, *given: Any) -> str:
    import matplotlib as mpl

    with mpl.rc_context(_STYLE):
        made: str = function(*given)
        return made


def _layer_of(block: str) -> str:
    return block.removeprefix("text_decoder.").removeprefix("vision_encoder.").removeprefix("layers.")


def depth_series(data: Report, method: str) -> JsonObject:
    """Blocks of a method in program order, and for each series SQNR in dB by block; `limits` likewise, `bad` names failing blocks."""
    found: dict[str, dict[str, float]] = {name: {} for name in SERIES}
    limits: dict[str, dict[str, float]] = {"graph": {}, "profile": {}}
    blocks: dict[str, None] = {}
    bad: dict[str, list[str]] = {}
    for check in data["checks"]:
        case, measured, allowed = check["case"], check["measured"], check["allowed"]
        if not check["id"].startswith("layers.") or not case.startswith(method):
            continue
        kind = {"layers.kernel": "local", "layers.graph": "graph", "layers.profile": "profile"}.get(check["id"])
        if kind is None:
            continue
        if kind == "local":
            blocks[case] = None
            _note(found["propagated"], case, measured.get("propagated_db"))
        _note(found[kind], case, measured.get("sqnr_db", measured.get("layers.profile_db")))
        if kind in limits:
            _note(limits[kind], case, allowed.get("sqnr_db", allowed.get("layers.profile_db")))
        if check["verdict"] == "fail":
            bad.setdefault(kind, []).append(case)
    blocks |= {case: None for series in found.values() for case in series}
    # failing checks stand before others in a report: the order of the program is in the names
    found, limits = ({name: _in_order(each) for name, each in group.items()} for group in (found, limits))
    return {"blocks": list(_in_order(blocks)), "series": found, "limits": limits, "bad": bad}


def _in_order(of_blocks: JsonObject) -> JsonObject:
    return dict(sorted(of_blocks.items(), key=lambda pair: _rank(pair[0])))


def _rank(block: str) -> tuple[int, int, str]:
    """Input, layers by number and their parts, output."""
    layer = re.search(r"\.layers\.(\d+)(.*)$", block)
    if layer is not None:
        return 1, int(layer[1]), layer[2]
    return (0 if block.endswith("input") else 2), 0, block


def _note(into: dict[str, float], case: str, value: object) -> None:
    if isinstance(value, (int, float)) and not isinstance(value, bool):
        into[case] = float(value)


def depth(data: Report, method: str) -> str:
    """Error against depth: power of the error over the signal's, log scale, a curve for each step, with what is allowed. Empty if nothing
    was measured."""
    known = depth_series(data, method)
    return _drawn(_depth, known, method) if any(known["series"].values()) else ""


def _depth(known: JsonObject, method: str) -> str:
    blocks: list[str] = known["blocks"]
    place = {block: at for at, block in enumerate(blocks)}
    figure, axes = _figure(9.0, 3.9)
    for name, values in known["series"].items():
        if not values:
            continue
        color, marker, line, label = SERIES[name]
        x = [place[block] for block in values]
        y = [_power(value) for value in values.values()]
        axes.plot(x, y, color=color, marker=marker, markersize=4, linestyle=line, linewidth=1.3, label=label)
        limits = known["limits"].get(name, {})
        if limits:
            spots = [place[block] for block in limits]
            tops = [_power(value) for value in limits.values()]
            axes.plot(spots, tops, color=color, linestyle=":", linewidth=1.2, label=f"allowed: {name}")
            axes.fill_between(spots, tops, _power(FLOOR_DB), color=color, alpha=0.07, linewidth=0)
        wrong = [block for block in known["bad"].get(name, []) if block in values]
        if wrong:
            spots, tops = [place[b] for b in wrong], [_power(values[b]) for b in wrong]
            axes.scatter(spots, tops, marker="x", s=90, linewidth=2.4, color=BAD, zorder=5, label="over its limit")
            axes.annotate(
                wrong[0].removeprefix(f"{method}."),
                (spots[0], tops[0]),
                xytext=(6, 8),
                textcoords="offset points",
                color=BAD,
                weight="bold",
            )
    axes.set_yscale("log")
    axes.set_ylim(_power(FLOOR_DB) / 3, 30)
    axes.set_ylabel("error power / signal power")
    every = max(1, len(blocks) // 16)
    axes.set_xticks(
        range(0, len(blocks), every), [_short(b) for b in blocks[::every]], rotation=40, ha="right", fontsize=8
    )
    axes.grid(visible=True, axis="y", linewidth=0.5)
    handles, labels = axes.get_legend_handles_labels()
    once = dict(zip(labels, handles, strict=True))
    axes.legend(once.values(), once.keys(), loc="upper left", bbox_to_anchor=(1.0, 1.0), fontsize=8)
    worst = [
        f"{SERIES[name][3]}: worst {min(v.values()):.0f} dB in {min(v, key=lambda b: v[b])}"
        for name, v in known["series"].items()
        if v
    ]
    wrong = [block for each in known["bad"].values() for block in each]
    said = "; ".join(worst) + (f". Over the limit: {', '.join(wrong[:8])}" if wrong else ". All within their limits")
    return _svg(figure, f"depth-{method}", f"Error against depth in {method}", said)


def _short(block: str) -> str:
    return _layer_of(block).replace("attention", "att").replace("feed_forward", "ff")


def _power(value_db: float) -> float:
    return float(10.0 ** (-min(value_db, FLOOR_DB) / 10.0))


def streams(figures: JsonObject) -> str:
    """Heat map of token position against decoder layer: SQNR of the residual stream. Empty if it was not traced."""
    known = figures.get("streams")
    return _drawn(_streams, known) if known and known["positions"] and known["layers"] else ""


def _streams(known: JsonObject) -> str:
    table = np.array([[np.nan if v is None else v for v in row] for row in known["sqnr_db"]], float)
    figure, axes = _figure(9.0, 1.6 + 0.16 * min(len(table), 24))
    drawn = axes.imshow(np.ma.masked_invalid(table), aspect="auto", cmap="cividis", interpolation="nearest")
    every = max(1, len(known["positions"]) // 12)
    axes.set_xticks(range(0, len(known["positions"]), every), [str(p) for p in known["positions"][::every]])
    rows = max(1, len(table) // 12)
    axes.set_yticks(range(0, len(table), rows), [_short(layer).split(".")[0] for layer in known["layers"][::rows]])
    axes.set_xlabel("token position")
    axes.set_ylabel("decoder layer")
    bar = figure.colorbar(drawn, ax=axes, pad=0.01)
    bar.set_label("SQNR against fp32, dB")
    bar.outline.set_visible(False)
    low = np.unravel_index(int(np.nanargmin(table)), table.shape)
    said = f"Least {np.nanmin(table):.1f} dB at position {known['positions'][low[1]]} after {known['layers'][low[0]]}; median {np.nanmedian(table):.1f} dB"
    return _svg(figure, "streams", "Error by token position and decoder layer", said)


def cache(figures: JsonObject) -> str:
    """Matrix of split against position: SQNR of the logits with those of the same tokens one by one. Empty if it was not asked."""
    known = figures.get("cache")
    return _drawn(_cache, known) if known and known["cells"] else ""


def _cache(known: JsonObject) -> str:
    splits = list(dict.fromkeys(cell["split"] for cell in known["cells"]))
    positions = sorted({cell["position"] for cell in known["cells"]})
    table = np.full((len(splits), len(positions)), np.nan)
    lost = []
    for cell in known["cells"]:
        at = splits.index(cell["split"]), positions.index(cell["position"])
        if cell["sqnr_db"] is None:
            lost.append(at)
        else:
            table[at] = min(cell["sqnr_db"], FLOOR_DB)
    figure, axes = _figure(9.0, 1.4 + 0.24 * len(splits))
    drawn = axes.imshow(
        np.ma.masked_invalid(table), aspect="auto", cmap="cividis", vmin=0, vmax=FLOOR_DB, interpolation="nearest"
    )
    wrong = [tuple(at) for at in np.argwhere(table < known["allowed_db"])] + lost
    if wrong:
        axes.scatter([x for _, x in wrong], [y for y, _ in wrong], marker="x", s=60, linewidth=2.2, color=BAD)
    every = max(1, len(positions) // 16)
    axes.set_xticks(range(0, len(positions), every), [str(p) for p in positions[::every]])
    axes.set_yticks(range(len(splits)), splits)
    axes.set_xlabel("position of the last token of a chunk")
    bar = figure.colorbar(drawn, ax=axes, pad=0.01)
    bar.set_label("SQNR, dB")
    bar.outline.set_visible(False)
    bar.ax.axhline(known["allowed_db"], color=BAD, linewidth=1.5)
    said = f"{len(known['cells'])} chunk ends in {len(splits)} splits, at least {known['allowed_db']:.1f} dB are allowed, {len(wrong)} are below"
    return _svg(figure, "cache", "KV-cache: split against position", said)


def vision_map(table: Sequence[Sequence[float | None]], *, low_db: float, high_db: float) -> str:
    """A PNG in base64, one pixel for each image token: cividis from `high_db` (dark) to `low_db` (bright), red where there is no number."""
    from matplotlib import colormaps
    from PIL import Image

    values = np.array([[np.nan if v is None else v for v in row] for row in table], float)
    share = np.clip((high_db - values) / max(high_db - low_db, 1e-6), 0, 1)
    rgba = colormaps["cividis"](np.where(np.isnan(share), 0.0, share))
    rgba[np.isnan(values)] = (0.85, 0.0, 0.1, 1.0)
    held = io.BytesIO()
    Image.fromarray((255 * rgba).astype(np.uint8)).save(held, "PNG", optimize=True)
    return base64.b64encode(held.getvalue()).decode()
