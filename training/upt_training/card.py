"""The card of an adapter: Markdown for people, made from the spec alone."""

import json

from pydantic import JsonValue

from upt_zoo.entities import entity_labels
from upt_zoo.spec import AdapterSpec, Lineage


def write_card(spec: AdapterSpec, *, train_rows: int, holdout_rows: int) -> str:
    """Write what the adapter does, how good it is, what it learnt from, and its limits.

    ``train_rows`` had gradients, ``holdout_rows`` chose the checkpoint; both are train rows.
    """
    lineage, backbone = spec.lineage, spec.backbone
    chosen = (
        f"{holdout_rows:,} rows of the train files were held out; the best epoch on them was kept."
        if holdout_rows
        else "No row was held out; the last epoch was kept."
    )
    paragraphs = [
        f"# {spec.task.name}",
        spec.task.description,
        f"`{spec.method}` on `{backbone.hub_id}` (`{backbone.digest}`).",
        _question(spec),
        "## Quality",
        *_quality(lineage),
        "## Parameters",
        _table(
            ("trained", "served, without the head", "head"),
            [
                (
                    f"{lineage.trained_parameters:,}",
                    f"{lineage.served_parameters:,}",
                    f"{lineage.head_parameters:,}",
                )
            ],
        ),
        "## Data",
        f"{lineage.data}. Licence of the data: {lineage.data_licence}. Commercial use: "
        f"{lineage.commercial_use}. Licence of the adapter: {lineage.licence}.",
        _table(
            ("file", "rows", "sha256"),
            [(f.name, f"{f.rows:,}", f.digest.removeprefix("sha256:")) for f in lineage.files],
        ),
        f"{train_rows:,} rows were learnt from. {chosen}",
        f"Overlap with the backbone's own data: {lineage.backbone_overlap or 'none known'}.",
        "## Recipe",
        f"Seed {lineage.seed}, {lineage.precision} products, upt {lineage.code_version}.",
        _table(
            ("key", "value"),
            [(key, _shown(value)) for key, value in lineage.recipe.items() if value is not None],
        ),
    ]
    return "\n\n".join(paragraph for paragraph in paragraphs if paragraph) + "\n"


def _question(spec: AdapterSpec) -> str:
    fields = ", ".join(f"`{field}`" for field in spec.task.fields)
    labels = ", ".join(spec.head.labels or ())
    entities = ", ".join(entity_labels(spec.head.labels or ()))
    answers = {
        "classification": f"one of {labels}",
        "multi_label": f"any of {labels}",
        "regression": "a number",
        "span": "words of the second",
        "token_classification": f"the entities in it: {entities}",
        "embedding": f"a vector of {spec.head.outputs} numbers",
    }
    return f"Reads {fields} and answers with {answers[spec.head.kind]}."


def _quality(lineage: Lineage) -> list[str]:
    if not lineage.metrics:
        return ["Not measured: there was no dev or test file."]
    is_held = all(name.startswith("holdout/") for name in lineage.metrics)
    return [
        _table(("split/metric", "%"), [(n, f"{v:.2f}") for n, v in lineage.metrics.items()]),
        "On rows held out of the training."
        if is_held
        else "In fp32, by these very tensors. Dev and test files were read once, after training.",
    ]


def _shown(value: JsonValue) -> str:
    """Spell a recipe's value; of a task of one's own, which the card describes, the name."""
    if isinstance(value, dict) and "name" in value:
        return str(value["name"])
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)


def _table(header: tuple[str, ...], rows: list[tuple[str, ...]]) -> str:
    lines = [header, ("---",) * len(header), *rows]
    cells = ([cell.replace("|", "\\|") for cell in line] for line in lines)
    return "\n".join(f"| {' | '.join(line)} |" for line in cells)
