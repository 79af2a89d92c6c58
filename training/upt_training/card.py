"""The card of an adapter: Markdown for people, made from the spec alone."""

from upt_zoo.spec import AdapterSpec


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
        "## Quality",
        _table(("split/metric", "%"), [(n, f"{v:.2f}") for n, v in lineage.metrics.items()]),
        "In fp32, by these very tensors. Dev and test files were read once, after training.",
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
        f"{lineage.commercial_use}.",
        _table(
            ("file", "rows", "sha256"),
            [(f.name, f"{f.rows:,}", f.digest.removeprefix("sha256:")) for f in lineage.files],
        ),
        f"{train_rows:,} rows were learnt from. {chosen}",
        f"Overlap with the backbone's own data: {lineage.backbone_overlap or 'none known'}.",
        "## Recipe",
        f"Seed {lineage.seed}, {lineage.precision} products, upt {lineage.code_version}.",
        _table(("key", "value"), [(key, str(value)) for key, value in lineage.recipe.items()]),
    ]
    return "\n\n".join(paragraphs) + "\n"


def _table(header: tuple[str, ...], rows: list[tuple[str, ...]]) -> str:
    lines = [header, ("---",) * len(header), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)
