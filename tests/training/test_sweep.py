"""Sweeps: which runs a file means, and doing them one after the other or with Ray."""

import importlib.util
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import get_args

import pytest
import yaml

from upt_testing.backbones import write_tiny_backbone
from upt_testing.desks import TIMEOUT_S, Desk, Result, kill_in, make_desk
from upt_testing.rows import write_split
from upt_training.methods import Method
from upt_training.plan import Planned
from upt_training.recipe import Learning, Recipe, task_of
from upt_training.records import Machine, Record, read_record, record_file
from upt_training.registration import best_of
from upt_training.sweep import Sweep, check_choice, read_sweep
from upt_zoo.backbone import Backbone
from upt_zoo.errors import InvalidInput, InvalidSpec, NotFound
from upt_zoo.local.files import locked
from upt_zoo.local.store import Store
from upt_zoo.manifest import Descriptor
from upt_zoo.references import Reference
from upt_zoo.tasks import TASKS

SHIPPED = sorted((Path(__file__).parents[2] / "training" / "sweeps").glob("*.yaml"))
RAY_TIMEOUT_S = 5 * TIMEOUT_S  # it starts a dozen processes, on a busy machine too
NEEDS_RAY = pytest.mark.skipif(
    importlib.util.find_spec("ray") is None, reason="Ray is not installed"
)


def write_sweep(folder: Path, **keys: object) -> Path:
    file = folder / "sweep.yaml"
    file.write_text(yaml.safe_dump(keys))
    return file


def names(runs: list[Planned]) -> list[str]:
    return [record_file(Path(), run.recipe).stem for run in runs]


# Which runs there are


def test_runs_are_every_task_with_every_seed_method_and_number_of_rows(tmp_path: Path) -> None:
    sweep = Sweep.model_validate(
        {
            "tasks": ["mrpc", "cola"],
            "seeds": [1, 2],
            "methods": ["full", "lora"],
            "train_rows": [100, 500],
            "changes": {"holdout_rows": 1000, "epochs": 3},
        }
    )
    runs = sweep.plan(tmp_path, data=tmp_path / "data")
    assert names(runs) == [
        f"{task}-{rows}rows-{method}-seed{seed}"
        for seed in (1, 2)
        for method in ("full", "lora")
        for rows in (100, 500)
        for task in ("mrpc", "cola")
    ]
    assert {run.recipe.epochs for run in runs} == {3}
    assert {run.recipe.holdout_rows for run in runs} == {1000}
    assert {run.data for run in runs} == {tmp_path / "data"}


def test_what_is_not_listed_is_the_recipes_own(tmp_path: Path) -> None:
    (run,) = Sweep.model_validate({"tasks": ["rte"]}).plan(tmp_path, data=None)
    assert names([run]) == ["rte-unipelt_prompt-from-mnli-seed1"]
    from_nothing = Sweep.model_validate({"tasks": ["rte"], "changes": {"initial_adapter": None}})
    assert names(from_nothing.plan(tmp_path, data=None)) == ["rte-unipelt_prompt-seed1"]


def test_recipes_stand_beside_the_sweep_and_rows_of_ones_own_beside_them(tmp_path: Path) -> None:
    own = {"name": "acts", "fields": ["text"], "files": {"train": "a.csv"}, "labels": ["a", "b"]}
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "acts.yaml").write_text(yaml.safe_dump({"task": own}))
    record = a_record("mrpc", "full", 3)
    (tmp_path / "mrpc.json").write_text(record.model_dump_json())
    file = write_sweep(tmp_path, recipes=["mine/acts.yaml", "mrpc.json"])
    runs = read_sweep(file).plan(tmp_path, data=tmp_path / "data")
    assert names(runs) == ["acts-unipelt_prompt-seed1", "mrpc-full-seed3"]
    assert [run.data for run in runs] == [tmp_path / "mine", tmp_path / "data"]
    assert runs[1].recipe == record.recipe


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({}, "expected tasks or recipes, and not both"),
        ({"tasks": ["mrpc"], "recipes": ["a.yaml"]}, "expected tasks or recipes, and not both"),
        ({"tasks": []}, "tasks: Tuple should have at least 1 item"),
        ({"tasks": "mrpc"}, "tasks: Input should be a valid tuple"),
        ({"tasks": ["mrpc"], "seed": [1]}, "seed: Extra inputs are not permitted; did you mean"),
        ({"tasks": ["mrpc"], "methods": ["ful"]}, "methods.0: Input should be 'unipelt_prompt'"),
        ({"tasks": ["mrpc"], "seeds": [True]}, "seeds.0: Input should be a valid integer"),
        ({"tasks": ["mrpc"], "seeds": ["1"]}, "seeds.0: Input should be a valid integer"),
        ({"tasks": ["mrpc"], "train_rows": [0]}, "train_rows.0: Input should be greater than 0"),
        ({"tasks": ["mrpc"], "max_minutes": 0}, "max_minutes: Input should be greater than 0"),
        ({"tasks": ["mrpc"], "max_minutes": float("inf")}, "max_minutes: Input should be a finite"),
        ({"tasks": ["mrpc"], "changes": {"epoch": 1}}, "changes: epoch is no key of a recipe"),
        ({"tasks": ["mrpc"], "changes": {"seed": 2}}, "seed is not changed here, but by seeds"),
        (
            {"tasks": ["mrpc"], "train_rows": [9], "changes": {"train_rows": 9}},
            "train_rows: expected it as a list or under changes, got both",
        ),
    ],
)
def test_a_file_that_is_no_sweep_is_refused_with_the_place(
    tmp_path: Path, keys: Mapping[str, object], message: str
) -> None:
    file = write_sweep(tmp_path, **keys)
    with pytest.raises(InvalidSpec) as caught:
        read_sweep(file)
    assert str(caught.value).startswith(f"sweep {file}: ")
    assert message in str(caught.value)


@pytest.mark.parametrize("text", ["", "- mrpc", "tasks: [", "tasks: \x00", "\udcff"])
def test_a_file_that_is_no_mapping_is_refused(tmp_path: Path, text: str) -> None:
    file = tmp_path / "sweep.yaml"
    file.write_bytes(text.encode(errors="surrogateescape"))
    with pytest.raises(InvalidSpec, match=r"^sweep .*sweep.yaml: "):
        read_sweep(file)


@pytest.mark.parametrize(
    ("keys", "kind", "message"),
    [
        ({"tasks": ["mrpc", "mrpc"]}, InvalidSpec, "more than one mrpc-unipelt_prompt-seed1"),
        ({"tasks": ["mrpc"], "seeds": [2, 2]}, InvalidSpec, "more than one mrpc-"),
        ({"tasks": ["mrpc"], "changes": {"epochs": 0}}, InvalidSpec, "recipe of mrpc: epochs"),
        ({"tasks": ["rte"], "methods": ["lora"]}, InvalidSpec, "`initial_adapter: null`"),
        ({"tasks": ["mrcp"]}, NotFound, "no task 'mrcp'"),
        ({"recipes": ["nobody.yaml"]}, InvalidSpec, "nobody.yaml"),
        ({"recipes": ["nobody.json"]}, InvalidInput, "there is no file"),
    ],
)
def test_runs_that_cannot_be_are_refused_before_the_first(
    tmp_path: Path, keys: Mapping[str, object], kind: type[Exception], message: str
) -> None:
    with pytest.raises(kind) as caught:
        Sweep.model_validate(keys).plan(tmp_path, data=None)
    assert message in str(caught.value)


def test_one_of_several_adapters_is_chosen_on_held_out_rows_or_not_at_all() -> None:
    runs = [Recipe(task="sst2", seed=seed) for seed in (1, 2)]
    with pytest.raises(InvalidSpec, match="holdout_rows to choose one of 2 adapters of sst2"):
        check_choice(runs)
    check_choice([run.changed({"holdout_rows": 8}) for run in runs])
    check_choice([runs[0], runs[1].changed({"method": "full"})])  # one adapter, no choice


@pytest.mark.parametrize("file", SHIPPED, ids=lambda file: file.stem)
def test_the_sweeps_that_ship_can_be_run(file: Path) -> None:
    runs = read_sweep(file).plan(file.parent, data=None)
    check_choice([run.recipe for run in runs])
    assert f" {len(runs)} runs.\n" in file.read_text()  # as its first lines say


def test_the_papers_own_table_has_every_task_that_there_is_and_squad_in_its_own_windows() -> None:
    table, squad = (
        read_sweep(SHIPPED[0].parent / f"{name}.yaml").plan(Path(), data=None)
        for name in ("roberta-base", "roberta-base-squad")
    )
    assert {run.recipe.task for run in table} == TASKS.keys() - {"rct", "squad"}
    assert {run.recipe.method for run in table} == {*get_args(Method)} - {"unipelt_ap"}
    assert {run.recipe.task for run in squad} == {"squad"}
    assert {run.recipe.max_tokens or task_of(run.recipe).max_tokens for run in squad} == {384}
    per_task = {"method", "max_tokens", "holdout_rows", "head_rate"}
    keys = Learning.model_fields.keys() - per_task
    one, other = (run[0].recipe.model_dump(include=keys) for run in (table, squad))
    assert one == other


def test_the_papers_own_table_runs_on_a_roberta(tmp_path: Path) -> None:
    tiny = write_tiny_backbone(tmp_path / "roberta", "roberta")
    keys = yaml.safe_load((SHIPPED[0].parent / "roberta-base.yaml").read_text())
    small = {"backbone": str(tiny.directory), "epochs": 1, "max_tokens": 48, "holdout_rows": 8}
    keys["changes"] |= small | {"precision": "fp32"}
    desk = make_desk(tmp_path, tiny)
    file = write_sweep(tmp_path, **(keys | {"tasks": ["sst2"]}))
    result = desk.run("sweep", str(file), "--out", str(tmp_path / "out"), "--threads", "1")
    assert result.code == 0, result.stderr
    assert {record.recipe.method for record in records_of(desk).values()} == set(keys["methods"])


def a_record(
    task: str, method: str, seed: int, holdout: tuple[float, ...] = (), adapter: str | None = None
) -> Record:
    return Record(
        recipe=Recipe.model_validate({"task": task, "method": method, "seed": seed}),
        train_rows=1,
        files=(),
        metrics={"dev/f1": 80.0},
        holdout=holdout,
        best_epoch=1,
        steps=1,
        seconds=1.0,
        max_minutes=None,
        trained_parameters=1,
        served_parameters=1,
        head_parameters=1,
        adapter=adapter,
        machine=Machine(processor="p", threads=1, torch="2", python="3"),
    )


def test_the_recipe_that_is_best_on_held_out_rows_over_its_seeds_decides() -> None:
    records = [
        a_record("cola", "lora", 1, (-3.0, -9.0), "cola:1.0.0"),
        a_record("cola", "head", 1, (-4.0, -2.0), "cola:1.0.1"),
        a_record("cola", "lora", 2, (-1.0,), "cola:1.0.2"),  # equal on average, but first
        a_record("cola", "full", 1, (50.0,)),  # gives no adapter
        a_record("rte", "lora", 1, (), "rte:1.0.0"),
        a_record("sst2", "full", 1, (50.0,)),
        a_record("stsb", "lora", 1, (5.0,), "stsb:1.0.0"),
        a_record("stsb", "head", 1, (4.0,), "stsb:1.0.1"),
        a_record("stsb", "lora", 2, (9.0,), "stsb:1.0.2"),  # other rows were held out
        a_record("stsb", "head", 2, (11.0,), "stsb:1.0.3"),
    ]
    chosen = [record.adapter for record in best_of(records)]
    assert chosen == ["cola:1.0.0", "rte:1.0.0", "stsb:1.0.1"]


# Doing them


@pytest.fixture
def desk(tmp_path: Path, backbone: Backbone) -> Desk:
    return make_desk(tmp_path, backbone)


def lay_out_sweep(desk: Desk, **keys: object) -> tuple[str, ...]:
    """Write a sweep of two tasks, two methods and two seeds; return the command."""
    recipes = [Path(desk.write_recipe(task)).name for task in ("sst2", "stsb")]
    values: dict[str, object] = {"recipes": recipes, "methods": ["lora", "full"], "seeds": [1, 2]}
    file = write_sweep(desk.root, **(values | keys))
    return ("sweep", str(file), "--out", str(desk.root / "out"), "--threads", "1")


def records_of(desk: Desk) -> dict[str, Record]:
    return {file.stem: read_record(file) for file in (desk.root / "out" / "records").iterdir()}


def outcomes(records: Mapping[str, Record]) -> dict[str, object]:
    """Return all of the records that does not depend on time, machine and order."""
    own = {"seconds", "machine", "adapter"}
    return {name: record.model_dump(exclude=own) for name, record in records.items()}


def adapters_of(desk: Desk) -> dict[str, tuple[Descriptor, ...]]:
    """Return the bytes, by their digests, of what each run gave."""
    store = Store(desk.root / "out" / "adapters")
    return {
        name: store.resolve(Reference.parse(record.adapter)).manifest.blobs
        for name, record in records_of(desk).items()
        if record.adapter is not None
    }


def digests(desk: Desk) -> dict[str, str]:
    return {str(each.name): str(each.digest) for each in desk.store.list()}


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory, backbone: Backbone) -> tuple[Desk, Result]:
    """A desk where a whole sweep was done in sequence, and what the command said."""
    desk = make_desk(tmp_path_factory.mktemp("desk"), backbone)
    return desk, desk.run(*lay_out_sweep(desk), "--no-ray")


def test_a_sweep_ends_with_one_table_and_the_best_adapter_of_each_task(
    shared: tuple[Desk, Result],
) -> None:
    desk, result = shared
    assert result.code == 0, result.stderr
    records = records_of(desk)
    assert sorted(records) == [
        f"{task}-{method}-seed{seed}"
        for task in ("sst2", "stsb")
        for method in ("full", "lora")
        for seed in (1, 2)
    ]
    table = desk.run("table", str(desk.root / "out" / "records")).stdout
    assert result.stdout.startswith(table)
    published = result.stdout.removeprefix(table).splitlines()
    assert [line.split("@")[0] for line in published] == [
        "published sst2:1.0.0",
        "published stsb:1.0.0",
    ]
    for task in ("sst2", "stsb"):
        first = records[f"{task}-lora-seed1"]  # the only recipe that gives an adapter
        stored = desk.store.resolve(Reference.parse(task))
        assert stored.spec.lineage.recipe == first.recipe.model_dump(mode="json")
        desk.store.verify(stored)
    assert list((desk.root / "out" / "checkpoints").iterdir()) == []
    assert len(list((desk.root / "out" / "curves").glob("*.csv"))) == 8


def test_a_sweep_that_is_done_trains_and_registers_nothing_again(
    shared: tuple[Desk, Result],
) -> None:
    desk, first = shared
    before = digests(desk)
    again = desk.run(*lay_out_sweep(desk), "--no-ray", "--json")
    assert again.code == 0
    (event,) = again.events()
    assert (event["event"], event["done"]) == ("sweep", 8)
    facts = json.loads(again.stdout)
    assert [line.split()[-1] for line in first.stdout.splitlines()[-2:]] == facts["published"]
    assert {(cell["task"], cell["method"]) for cell in facts["cells"]} == {
        (task, method) for task in ("sst2", "stsb") for method in ("lora", "full")
    }
    assert digests(desk) == before
    assert len(desk.store.list()) == 2


def test_a_dry_run_says_which_runs_are_recorded_and_which_would_start(
    shared: tuple[Desk, Result],
) -> None:
    desk, _ = shared
    before = digests(desk), sorted((desk.root / "out").rglob("*"))
    command = (*lay_out_sweep(desk, seeds=[1, 3], methods=["lora"]), "--no-ray", "--dry-run")
    lines = [
        "sst2-lora-seed1 is recorded",
        "stsb-lora-seed1 is recorded",
        "sst2-lora-seed3 will start",
        "stsb-lora-seed3 will start",
        "4 runs: 2 are recorded, 2 will start",
    ]
    result = desk.run(*command)
    assert (result.code, result.stderr) == (0, "")
    assert result.stdout.splitlines() == lines
    said = json.loads(desk.run(*command, "--json").stdout)
    assert said == {
        "runs": [
            {"run": line.split()[0], "is_recorded": line.endswith("is recorded")}
            for line in lines[:-1]
        ],
        "recorded": 2,
        "left": 2,
    }
    assert (digests(desk), sorted((desk.root / "out").rglob("*"))) == before


def test_a_sweep_in_the_same_folder_with_other_recipes_is_refused(
    shared: tuple[Desk, Result],
) -> None:
    desk, _ = shared
    result = desk.run(*lay_out_sweep(desk, changes={"epochs": 1}), "--no-ray")
    assert result.code == 73
    assert "sst2-lora-seed1.json is of another recipe" in result.stderr


DIES_IN_ITS_THIRD_RUN = """
from upt_training.progress import JsonReporter
epochs = []
JsonReporter.epoch = lambda self, *_, **__: (epochs.append(1), len(epochs) == 6 and die())
"""


def test_a_sweep_that_was_killed_goes_on_where_it_was(
    desk: Desk, shared: tuple[Desk, Result]
) -> None:
    command = (*lay_out_sweep(desk), "--no-ray")
    kill_in(desk, DIES_IN_ITS_THIRD_RUN, *command)
    assert desk.store.list() == ()
    assert len(records_of(desk)) == 2
    result = desk.run(*command, "--json")
    assert result.code == 0, result.stderr
    events = result.events()
    assert (events[0]["event"], events[0]["done"]) == ("sweep", 2)
    assert [each["epoch"] for each in events if each["event"] == "epoch"] == [2, *[1, 2] * 5]
    assert outcomes(records_of(desk)) == outcomes(records_of(shared[0]))
    assert digests(desk) == digests(shared[0])


def test_a_dry_run_reads_no_texts_and_leaves_no_folder(desk: Desk) -> None:
    for task in ("sst2", "stsb"):
        (desk.root / "data" / task / "train.jsonl.gz").write_bytes(b"no rows")
    result = desk.run(*lay_out_sweep(desk), "--no-ray", "--dry-run")
    assert (result.code, result.stderr) == (0, "")
    assert result.stdout.endswith("\n8 runs: 0 are recorded, 8 will start\n")
    assert not (desk.root / "out").exists()


def test_train_files_that_are_missing_are_named_before_the_first_run(desk: Desk) -> None:
    names = ["sst2.yaml", "stsb.yaml", "acts.yaml"]
    command = (*lay_out_sweep(desk, recipes=names, methods=["lora"]), "--no-ray")
    data = desk.root / "data"
    own = {"name": "acts", "fields": ["text"], "files": {"train": "a.csv"}, "labels": ["a", "b"]}
    desk.write_recipe("stsb", files=["train", "train_extra"])
    (desk.root / "acts.yaml").write_text(yaml.safe_dump({"task": own, "holdout_rows": 8}))
    missing = (
        f"no run was started: task stsb: expected the file {data}/stsb/train_extra.jsonl.gz; "
        f"task acts: expected the file {desk.root}/a.csv"
    )
    result = desk.run(*command)
    assert (result.code, missing in result.stderr) == (66, True)
    assert list((desk.root / "out").rglob("*.json")) == []
    dry = desk.run(*command, "--dry-run")
    assert dry.stdout.endswith("6 runs: 0 are recorded, 6 will start\n")
    assert (dry.code, missing in dry.stderr) == (66, True)


def test_a_sweep_that_is_done_needs_no_data(desk: Desk) -> None:
    command = (*lay_out_sweep(desk, methods=["head"], seeds=[1]), "--no-ray")
    first = desk.run(*command)
    assert first.code == 0, first.stderr
    shutil.rmtree(desk.root / "data" / "sst2")
    assert desk.run(*command).stdout == first.stdout


def test_a_run_that_fails_leaves_the_others_done_and_the_zoo_as_it_is(desk: Desk) -> None:
    command = (*lay_out_sweep(desk, methods=["lora"], seeds=[1]), "--no-ray")
    rows = desk.root / "data" / "sst2" / "train.jsonl.gz"
    whole = rows.read_bytes()
    write_split(desk.root / "data", "sst2", "train", [{"sentence": "it is ."}])
    result = desk.run(*command)
    assert result.code == 64
    assert "1 of 2: sst2-lora-seed1 failed: " in result.stderr
    assert "2 of 2: stsb-lora-seed1 done" in result.stderr
    assert "| stsb | pearson |" in result.stdout
    assert desk.store.list() == ()
    rows.write_bytes(whole)
    assert desk.run(*command).code == 0
    assert [each.name for each in desk.store.list()] == ["sst2", "stsb"]


def test_a_sweep_can_leave_the_zoo_as_it_is(desk: Desk) -> None:
    command = lay_out_sweep(desk, methods=["lora"], changes={"holdout_rows": 0, "epochs": 1})
    refused = desk.run(*command, "--no-ray")
    assert refused.code == 64
    assert "or run with --no-publish" in refused.stderr
    assert not (desk.root / "out").exists()
    result = desk.run(*command, "--no-ray", "--no-publish")
    assert result.code == 0, result.stderr
    assert "published" not in result.stdout
    assert desk.store.list() == ()


def test_runs_start_from_what_the_zoo_has_before_the_first(desk: Desk) -> None:
    assert desk.run("run", desk.write_recipe("sst2", epochs=1)).code == 0
    (start,) = desk.store.list()
    desk.write_recipe("stsb", initial_adapter="sst2", epochs=1)
    file = write_sweep(desk.root, recipes=["stsb.yaml"], seeds=[1, 2])
    result = desk.run("sweep", str(file), "--out", str(desk.root / "out"), "--no-ray")
    assert result.code == 0, result.stderr
    assert {record.recipe.initial_adapter for record in records_of(desk).values()} == {str(start)}


def test_what_a_sweep_has_registered_is_not_what_it_starts_from_the_next_time(desk: Desk) -> None:
    assert desk.run("run", desk.write_recipe("sst2", epochs=1)).code == 0
    (start,) = desk.store.list()
    desk.write_recipe("sst2", epochs=2)
    desk.write_recipe("stsb", initial_adapter="sst2", epochs=1)
    file = write_sweep(desk.root, recipes=["sst2.yaml", "stsb.yaml"])
    command = ("sweep", str(file), "--out", str(desk.root / "out"), "--no-ray")
    assert desk.run(*command).code == 0
    assert [str(each.tag) for each in desk.store.list()] == ["1.0.0", "1.0.1", "1.0.0"]
    again = desk.run(*command, "--json")
    assert again.code == 0, again.stderr
    assert [event["done"] for event in again.events()] == [2]
    assert json.loads(desk.run(*command, "--dry-run", "--json").stdout)["recorded"] == 2
    records = records_of(desk)
    assert records["stsb-unipelt_prompt-from-sst2-seed1"].recipe.initial_adapter == str(start)
    (desk.root / "out" / "starts.json").write_text("[")
    damaged = desk.run(*command)
    assert (damaged.code, "starts.json" in damaged.stderr) == (65, True)


def test_a_sweep_that_is_at_work_is_left_alone(desk: Desk) -> None:
    (desk.root / "out").mkdir()
    with locked(desk.root / "out" / ".lock", timeout_s=0):
        result = desk.run(*lay_out_sweep(desk), "--no-ray")
    assert (result.code, len(result.stderr.splitlines())) == (69, 1)
    assert f"another process has been writing to {desk.root / 'out'}" in result.stderr
    assert not (desk.root / "out" / "records").exists()


def test_ray_is_asked_for_only_where_it_is(desk: Desk, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)
    command = lay_out_sweep(desk, recipes=["sst2.yaml"], methods=["head"], seeds=[1])
    refused = desk.run(*command, "--ray")
    assert refused.code == 64
    assert "install the extra [ray]" in refused.stderr
    result = desk.run(*command)
    assert result.code == 0, result.stderr


# With Ray

# A worker that has learnt a run's second epoch by the method dies before it has the checkpoint in
# its place: the first one, or each. The log has every epoch that was learnt, and its process.
DIES_AFTER_AN_EPOCH = """
import json, os, signal, sys
from pathlib import Path

log, method, who = Path(os.environ["CHECKPOINTS"]), os.environ["METHOD"], os.environ["DIES"]

def watch(event, arguments):
    if event != "os.rename" or not str(arguments[1]).endswith(".safetensors"):
        return
    with open(arguments[0], "rb") as file:
        header = json.loads(file.read(int.from_bytes(file.read(8), "little")))
    progress = json.loads(header["__metadata__"]["progress"])
    if progress["batch"]:
        return
    name = Path(arguments[1]).name
    line = f"{name} {progress['epoch']} "
    with log.open("a") as file:
        file.write(f"{line}{os.getpid()}\\n")
    is_first = log.read_text().count(line) == 1
    if progress["epoch"] == 2 and f"-{method}-" in name and (is_first or who == "each"):
        os.kill(os.getpid(), signal.SIGKILL)

sys.addaudithook(watch)
"""


def sweep_with_ray(
    desk: Desk, command: tuple[str, ...], *, method: str, dies: str
) -> tuple[Result, dict[str, list[tuple[int, int]]]]:
    """Run a sweep with Ray whose workers die; return each run's epochs and their processes."""
    (desk.root / "hooks").mkdir()
    (desk.root / "hooks" / "sitecustomize.py").write_text(DIES_AFTER_AN_EPOCH)
    log = desk.root / "checkpoints.log"
    done = subprocess.run(
        [sys.executable, "-m", "upt_training.cli", *command, "--ray"],
        env=os.environ
        | desk.environment
        | {"PYTHONPATH": str(desk.root / "hooks"), "CHECKPOINTS": str(log)}
        | {"METHOD": method, "DIES": dies, "RAY_ADDRESS": "local"},
        capture_output=True,
        text=True,
        timeout=RAY_TIMEOUT_S,
        check=False,
    )
    assert log.exists(), done.stderr
    written: dict[str, list[tuple[int, int]]] = {}
    for line in log.read_text().splitlines():
        name, epoch, process = line.split()
        written.setdefault(name.rpartition("-")[0], []).append((int(epoch), int(process)))
    return Result(code=done.returncode, stdout=done.stdout, stderr=done.stderr), written


@NEEDS_RAY
@pytest.mark.timeout(RAY_TIMEOUT_S)
def test_a_gpu_that_ray_does_not_have_is_an_error_and_not_waited_for(
    desk: Desk, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RAY_ADDRESS", "local")
    monkeypatch.setenv("RAY_OVERRIDE_RESOURCES", '{"GPU": 0}')
    command = lay_out_sweep(desk, seeds=[1])
    for device, says in {"cuda": "Ray knows of none", "cuda:1": "for any GPU of Ray's"}.items():
        result = desk.run(*command, "--ray", "--device", device)
        assert result.code == 64
        assert says in result.stderr


@NEEDS_RAY
@pytest.mark.timeout(RAY_TIMEOUT_S + TIMEOUT_S)
def test_a_run_whose_worker_is_killed_goes_on_in_another_to_the_same_bytes(
    desk: Desk, shared: tuple[Desk, Result]
) -> None:
    command = lay_out_sweep(desk, seeds=[1])
    result, written = sweep_with_ray(desk, command, method="lora", dies="first")
    assert result.code == 0, result.stderr
    assert "4 of 4: " in result.stderr
    for task in ("sst2", "stsb"):
        epochs, processes = zip(*written[f"{task}-lora"], strict=True)
        assert epochs == (1, 2, 2)  # the first was not learnt again
        assert processes[0] == processes[1] != processes[2]
        assert [epoch for epoch, _ in written[f"{task}-full"]] == [1, 2]
    whole = outcomes(records_of(shared[0]))
    assert outcomes(records_of(desk)) == {name: whole[name] for name in records_of(desk)}
    assert adapters_of(desk).items() <= adapters_of(shared[0]).items()
    assert [each.name for each in desk.store.list()] == ["sst2", "stsb"]
    assert list((desk.root / "out" / "checkpoints").glob("*.safetensors")) == []


@NEEDS_RAY
@pytest.mark.timeout(RAY_TIMEOUT_S + TIMEOUT_S)
def test_a_run_whose_workers_all_die_fails_alone_and_goes_on_without_ray(desk: Desk) -> None:
    command = lay_out_sweep(desk, recipes=["sst2.yaml"], seeds=[1])
    result, written = sweep_with_ray(desk, command, method="lora", dies="each")
    assert result.code == 69
    assert "sst2-lora-seed1 failed: sst2-lora-seed1: expected a worker that lives" in result.stderr
    epochs, processes = zip(*written["sst2-lora"], strict=True)
    assert epochs == (1, *[2] * 6)
    assert len(set(processes)) == 6
    assert list(records_of(desk)) == ["sst2-full-seed1"]
    assert desk.store.list() == ()
    repeated = desk.run(*command, "--no-ray", "--json")
    assert repeated.code == 0, repeated.stderr
    assert [event["epoch"] for event in repeated.events() if event["event"] == "epoch"] == [2]
    assert [each.name for each in desk.store.list()] == ["sst2"]
