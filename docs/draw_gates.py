"""Draw how far adapters of the catalogue let their components in, asked of a running server.

    python docs/draw_gates.py docs/images/gates.svg --server 127.0.0.1:8001

The server's store has to hold the adapters. Each panel is one adapter: layers from below, gates
from left to right, each the mean over the texts below.
"""

import argparse
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import fmean

from matplotlib.figure import Figure

from upt_server.client import Client
from upt_server.inputs import Options
from upt_training.drawing import save

TEXTS: dict[str, tuple[tuple[str, ...], ...]] = {
    "sst2": (
        ("a gripping, funny film with a heart",),
        ("two hours that nobody will give you back",),
        ("the actors try hard, and it shows",),
        ("warm, clever and far too short",),
    ),
    "cola": (
        ("The children sings often loud the song.",),
        ("She gave the letter to her brother.",),
        ("What did you wonder who bought?",),
        ("The book that I read was long.",),
    ),
    "stsb": (
        ("A man is playing a guitar.", "Someone plays an instrument."),
        ("Two dogs run along a beach.", "The parliament met on Tuesday."),
        ("A woman cuts an onion.", "An onion is being cut."),
        ("The train left late.", "The train was not on time."),
    ),
    "mnli": (
        ("The museum is closed on Mondays.", "You can visit it every day."),
        ("He bought bread and milk.", "He bought something to drink."),
        ("Snow fell all night.", "The schools stayed open."),
        ("Nobody answered the phone.", "The phone was answered."),
    ),
    "acl_arc": (
        ("We use the parser of the earlier work as our baseline.",),
        ("Others have studied this question for German.",),
        ("Our method extends theirs to longer documents.",),
        ("In future work we will try richer features.",),
    ),
    "squad": (
        ("Who designed it?", "The lighthouse was designed by Maria Lindqvist in 1868."),
        ("Where is the river?", "The river rises in the hills near Orne and is short."),
        ("When did it open?", "The line opened in 1904 and was closed in 1968."),
        ("What do they eat?", "The birds live on the cliffs and eat small fish."),
    ),
}
_GATES = ("lora.q", "lora.v", "prefix", "bottleneck")
_PANELS_A_ROW = 3


def main() -> None:
    """Ask, and draw."""
    parser = argparse.ArgumentParser(description="Draw the gates of adapters of the catalogue.")
    parser.add_argument("file", type=Path, help="the picture, SVG")
    parser.add_argument("--server", default="127.0.0.1:8001", metavar="HOST:PORT")
    arguments = parser.parse_args()
    with Client(arguments.server) as client:
        gates = {name: mean_gates(client, name, texts) for name, texts in TEXTS.items()}
    save(draw(gates), arguments.file)


def mean_gates(
    client: Client, adapter: str, inputs: Sequence[Sequence[str]]
) -> list[dict[str, float]]:
    """Return each layer's gates by name, the mean over the inputs."""
    asked = client.predict_many(
        [(adapter, texts) for texts in inputs], options=Options(has_gates=True)
    )
    layers = zip(*(output.gates for output in asked.outputs), strict=True)
    return [{name: fmean(each[name] for each in layer) for name in _GATES} for layer in layers]


def draw(gates: Mapping[str, Sequence[Mapping[str, float]]]) -> Figure:
    """Draw a panel an adapter, the last layer on top."""
    rows = -(-len(gates) // _PANELS_A_ROW)
    figure = Figure(figsize=(3.1 * _PANELS_A_ROW, 2.7 * rows), layout="constrained")
    panels = figure.subplots(rows, _PANELS_A_ROW, sharex=True, sharey=True).ravel()
    for axis, (adapter, layers) in zip(panels, gates.items(), strict=True):
        values = [[layer[name] for name in _GATES] for layer in layers]
        image = axis.imshow(
            values, vmin=0.25, vmax=0.75, cmap="Blues", aspect="auto", origin="lower"
        )
        axis.set_title(adapter)
        axis.set_xticks(range(len(_GATES)), _GATES, rotation=45, ha="right")
        for y, row in enumerate(values):
            for x, value in enumerate(row):
                colour = "white" if value > 0.5 else "black"
                axis.text(x, y, f"{value:.2f}", ha="center", va="center", fontsize=8, color=colour)
    for axis in panels[::_PANELS_A_ROW]:
        axis.set_ylabel("layer")
    figure.colorbar(image, ax=panels, label="gate: 0 is shut, 1 is open")
    return figure


if __name__ == "__main__":
    main()
