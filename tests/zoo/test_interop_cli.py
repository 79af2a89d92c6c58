import json
from pathlib import Path

import pytest

from parity.foreign import CHECKPOINTS
from parity.foreign_backbones import write_pooled_backbone
from upt_testing.commands import Run
from upt_zoo.backbone import Backbone
from upt_zoo.local.store import Store
from upt_zoo.references import Reference

QV = str(CHECKPOINTS / "peft" / "bert-qv")
UNIPELT = str(CHECKPOINTS / "adapterhub" / "bert-unipelt")


@pytest.fixture(scope="module")
def backbone(tmp_path_factory: pytest.TempPathFactory) -> Backbone:
    return write_pooled_backbone(tmp_path_factory.mktemp("backbone"), "bert")


def test_a_checkpoint_of_peft_is_published(run: Run, home: Store, backbone: Backbone) -> None:
    result = run(
        *("import", "peft", QV, "--task", "mnli", "--name", "my-mnli", "--version", "2.0.0"),
        *("--backbone", str(backbone.directory), "--data", "MultiNLI", "--licence", "MIT"),
    )
    stored = home.resolve(Reference.parse("my-mnli:2.0.0"))
    assert result.code == 0, result.stderr
    assert result.stdout == f"my-mnli:2.0.0@{stored.digest}\n"
    assert result.stderr == f"imported my-mnli:2.0.0 into {home.root}\n"
    spec = stored.spec
    assert spec.head.labels == ("entailment", "neutral", "contradiction")
    assert spec.backbone.hub_id == "upt/tiny-bert"  # the checkpoint's name for it
    assert spec.lineage.data == "MultiNLI"
    assert (spec.lineage.licence, spec.lineage.data_licence) == ("MIT", "unknown")
    assert spec.lineage.metrics == {}
    assert spec.lineage.recipe["imported_from"] == "peft"
    assert "a checkpoint of peft" in home.card(stored)
    home.verify(stored)


def test_an_import_can_be_exported_and_imported_again(
    run: Run, home: Store, backbone: Backbone, tmp_path: Path
) -> None:
    options = ("--task", "tiny", "--backbone", str(backbone.directory), "--json")
    first = json.loads(run("import", "adapterhub", UNIPELT, *options).stdout)
    out = tmp_path / "out"
    result = run("export", "adapterhub", "tiny", str(out))
    assert (result.code, result.stdout) == (0, f"{out}\n"), result.stderr
    assert result.stderr == f"exported tiny:1.0.0@{first['digest']}\n"
    again = run("import", "adapterhub", str(out), *options)
    assert json.loads(again.stdout)["version"] == "1.0.1"
    one, two = (
        home.resolve(Reference.parse(f"tiny:{version}")).manifest.tensors
        for version in ("1.0.0", "1.0.1")
    )
    assert one == two
    exported = run("export", "adapterhub", "tiny:1.0.0", str(tmp_path / "again"), "--json")
    assert json.loads(exported.stdout) == {
        "reference": "tiny:1.0.0",
        "directory": str(tmp_path / "again"),
    }


def test_what_is_refused_is_one_line_and_leaves_nothing(
    run: Run, home: Store, backbone: Backbone, tmp_path: Path
) -> None:
    result = run("import", "peft", QV, "--task", "tiny", "--backbone", str(backbone.directory))
    assert result.code == 64
    assert "labels: the head has 3 outputs" in result.stderr
    assert result.stderr.count("\n") == 1
    assert not home.root.exists()
    run("import", "adapterhub", UNIPELT, "--task", "t", "--backbone", str(backbone.directory))
    result = run("export", "peft", "t", str(tmp_path / "out"))
    assert result.code == 64
    assert "prefix cannot be exported to PEFT" in result.stderr
    assert not (tmp_path / "out").exists()


def test_labels_and_fields_are_given_in_their_order(
    run: Run, home: Store, backbone: Backbone
) -> None:
    result = run(
        *("import", "peft", QV, "--task", "tiny", "--backbone", str(backbone.directory)),
        *("--labels", "yes, no,who knows", "--fields", "a,b", "--max-tokens", "64"),
    )
    assert result.code == 0, result.stderr
    spec = home.resolve(Reference.parse("tiny")).spec
    assert spec.head.labels == ("yes", "no", "who knows")
    assert (spec.task.fields, spec.task.max_tokens) == (("a", "b"), 64)


def test_offline_no_backbone_is_fetched(run: Run) -> None:
    result = run("import", "peft", QV, "--task", "mnli", "--backbone", "no/where", "--offline")
    assert result.code != 0
    assert "offline, and the backbone no/where is not on this machine" in result.stderr
