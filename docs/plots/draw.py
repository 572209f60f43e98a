"""Draws the curves of the documentation from the numbers in measured.json, which says where each comes from.

    python docs/plots/draw.py [FOLDER]

Writes one SVG a picture, beside this file or into the folder given. Needs matplotlib, in the extra `docs`.
"""

from __future__ import annotations

import json
import pathlib
import sys

import matplotlib

matplotlib.use("svg")
from matplotlib import pyplot  # noqa: E402

HERE = pathlib.Path(__file__).resolve().parent

# Readable on white and on black alike; text stays text, in the reader's own font.
INK, OURS, OTHERS = "#7d8590", "#2f81f7", "#b8863b"
pyplot.rcParams.update(
    {
        "svg.fonttype": "none",
        "svg.hashsalt": "sqstaskmaster",
        "font.family": "sans-serif",
        "font.size": 11,
        "text.color": INK,
        "axes.edgecolor": INK,
        "axes.labelcolor": INK,
        "axes.spines.top": False,
        "axes.spines.right": False,
        "xtick.color": INK,
        "ytick.color": INK,
        "legend.frameon": False,
        "figure.constrained_layout.use": True,
    }
)


def torture(measured):
    """Hung tasks that were stopped, and long tasks that ran once, of each kind."""
    names = list(measured["stopped"])
    colours = [OURS if name == "sqstaskmaster" else OTHERS for name in names]
    figure, (left, right) = pyplot.subplots(1, 2, figsize=(7.2, 3.4), sharey=True)
    for axes, key, most, title in (
        (left, "stopped", measured["of"], "hung kinds stopped in time"),
        (right, "ran_once", measured["ran_once_of"], "long kinds run exactly once"),
    ):
        values = [measured[key][name] for name in names]
        bars = axes.barh(names, [value or 0 for value in values], color=colours, height=0.62)
        axes.bar_label(bars, ["no claims" if value is None else str(value) for value in values], padding=3)
        axes.set_title(f"{title}, of {most}", fontsize=11)
        axes.set_xlim(0, most * 1.18)
        axes.set_xticks([])
        axes.spines["bottom"].set_visible(False)
        axes.tick_params(length=0)
    return figure


def held(measured):
    """What the start of a task costs, as the worker comes to hold more memory."""
    figure, axes = pyplot.subplots(figsize=(7.2, 3.4))
    for name, colour in (
        ("a process of its own, forked for the task", INK),
        ("os.fork and wait, nothing else", OTHERS),
        ("in a slot, from the send to its start", OURS),
    ):
        axes.plot(measured["gibibytes"], measured[name], "o-", color=colour, label=name)
    axes.set_xlabel("memory that the worker holds, GiB")
    axes.set_ylabel("milliseconds")
    axes.set_ylim(0)
    axes.set_xlim(0)
    axes.legend()
    return figure


def speed(measured):
    """Short tasks a second, beside the shortest loop that does the same."""
    ratios = measured["of_its_loop"]
    figure, axes = pyplot.subplots(figsize=(7.2, 2.4))
    colours = [OTHERS if name.startswith("the original") else OURS for name in ratios]
    bars = axes.barh(list(ratios), list(ratios.values()), color=colours, height=0.62)
    axes.bar_label(bars, [f"{ratio:.2f}" for ratio in ratios.values()], padding=14)
    axes.axvline(1, color=INK, linestyle=":", zorder=0)
    axes.invert_yaxis()
    axes.set_xlim(0, 1.9)
    axes.set_xlabel("short tasks a second; 1 is the shortest such loop")
    axes.tick_params(axis="y", length=0)
    return figure


def memory(measured):
    """Idle memory of eight tasks at once, where one is 1."""
    ours = measured["eight_slots_beside_one"]
    bars = {
        "one slot": 1.0,
        "eight slots": ours,
        "eight interpreters": ours / measured["eight_slots_beside_eight_interpreters"],
    }
    figure, axes = pyplot.subplots(figsize=(7.2, 1.9))
    drawn = axes.barh(list(bars), list(bars.values()), color=[OURS, OURS, OTHERS], height=0.62)
    axes.bar_label(drawn, [f"{value:.2f}" for value in bars.values()], padding=3)
    axes.invert_yaxis()
    axes.set_xlim(0, 7.2)
    axes.set_xlabel("idle memory; 1 is one slot")
    axes.tick_params(axis="y", length=0)
    return figure


def cost(measured):
    """Dollars that SQS takes for a million tasks, by how long a task runs."""
    price, few = measured["dollars_a_million_requests"], measured["requests_of_a_short_task"]
    seconds = [10 ** (step / 20) for step in range(0, 94)]
    figure, axes = pyplot.subplots(figsize=(7.2, 3.4))
    for every, colour in zip(measured["alarm_seconds"], (OTHERS, OURS), strict=True):
        requests = [few["one at a time"] + long // every for long in seconds]
        axes.plot(seconds, [price * each for each in requests], color=colour, label=f"alarm_timeout={every}")
    short = price * few["eight slots, a full queue"]
    axes.axhline(short, color=INK, linestyle=":", label="short tasks, eight slots, a full queue")
    axes.set_xscale("log")
    axes.set_yscale("log")
    axes.set_xticks([1, 60, 3600, 43200], ["1 s", "1 min", "1 h", "12 h"])
    axes.minorticks_off()
    axes.set_yticks([0.1, 1, 10, 100, 1000], ["$0.10", "$1", "$10", "$100", "$1,000"])
    axes.set_xlabel("how long a task runs")
    axes.set_ylabel("for a million tasks")
    axes.legend()
    return figure


PICTURES = (torture, held, speed, memory, cost)


def main(folder=HERE):
    measured = json.loads((HERE / "measured.json").read_text(encoding="utf-8"))
    for draw in PICTURES:
        figure = draw(measured[draw.__name__])
        path = pathlib.Path(folder) / f"{draw.__name__}.svg"
        figure.savefig(path, transparent=True, metadata={"Date": None})
        pyplot.close(figure)
        print(path)


if __name__ == "__main__":
    main(*sys.argv[1:])
