"""The command: in this process where it can be, in one of its own where it is killed."""

import asyncio
import json
import subprocess
import sys
from pathlib import Path
from typing import get_args

import pytest
from typer.main import get_command

from upt_server.runner import TorchRunner
from upt_testing.backbones import write_tiny_backbone
from upt_testing.desks import TIMEOUT_S, Desk, Result, kill_in, make_desk
from upt_testing.rows import JsonRow, sentiment_rows, write_split
from upt_testing.serving import make_settings, serving
from upt_training.cli import app
from upt_training.experiment import Experiment
from upt_training.methods import Method
from upt_training.metrics import measure
from upt_training.recipe import recipe_of_task
from upt_training.records import Record
from upt_zoo.backbone import Backbone
from upt_zoo.local.store import Store
from upt_zoo.nn.encoder import load_encoder
from upt_zoo.references import Reference
from upt_zoo.spec import Curve
from upt_zoo.tasks import TASKS, find_task

METRICS = {
    "sst2": ("accuracy",),
    "stsb": ("pearson", "spearmanr"),
    "squad": ("f1", "exact_match"),
}


@pytest.fixture
def desk(tmp_path: Path, backbone: Backbone) -> Desk:
    return make_desk(tmp_path, backbone)


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory, backbone: Backbone) -> Desk:
    """A desk on which the three tasks were trained; no test trains on it again."""
    desk = make_desk(tmp_path_factory.mktemp("desk"), backbone)
    recipes = [desk.write_recipe(task) for task in METRICS]
    result = desk.run("run", *recipes, "--json", "--records", str(desk.root / "records"))
    assert result.code == 0, result.stderr
    (desk.root / "stdout").write_text(result.stdout)
    (desk.root / "stderr").write_text(result.stderr)
    return desk


def dev_metrics(store: Store, name: str) -> dict[str, float]:
    lineage = store.resolve(Reference.parse(name)).spec.lineage
    return {key.removeprefix("dev/"): value for key, value in lineage.metrics.items()}


# What a run leaves


def test_a_run_publishes_whole_adapters(shared: Desk) -> None:
    references = shared.store.list()
    assert [(each.name, each.tag) for each in references] == [
        ("squad", "1.0.0"),
        ("sst2", "1.0.0"),
        ("stsb", "1.0.0"),
    ]
    for reference in references:
        stored = shared.store.resolve(reference)
        shared.store.verify(stored)
        card = shared.store.card(stored)
        assert card.startswith(f"# {stored.name}\n")
        record = Record.model_validate_json(
            (shared.root / "records" / f"{stored.name}-unipelt_prompt-seed1.json").read_bytes()
        )
        assert stored.spec.lineage.curve == Curve.of_run(
            holdout=record.holdout, losses=record.losses, best_epoch=record.best_epoch
        )
        assert len(record.holdout) == len(record.losses) == 2
        held = 24 - record.train_rows
        assert held >= 8
        assert f"{record.train_rows} rows were learnt from. {held} rows of the train" in card


@pytest.mark.parametrize("task", METRICS)
def test_evaluate_finds_the_metrics_of_the_lineage(shared: Desk, task: str) -> None:
    metrics = shared.evaluate(task)
    assert tuple(metrics) == METRICS[task]
    assert metrics == dev_metrics(shared.store, task)


def test_evaluate_says_what_it_did(shared: Desk) -> None:
    result = shared.run("evaluate", "squad:1.0.0", "--split", "train")
    header, *lines = result.stdout.splitlines()
    assert header == "squad:1.0.0 on squad/train (24 rows), by this process"
    assert [line.split()[0] for line in lines] == ["f1", "exact_match"]
    as_json = json.loads(shared.run("evaluate", "sst2", "--json").stdout)
    stored = shared.store.resolve(Reference.parse("sst2"))
    assert as_json["adapter"] == f"sst2:1.0.0@{stored.digest}"
    assert (as_json["file"], as_json["rows"]) == ("sst2/dev", 12)


def test_evaluate_reads_an_adapter_of_another_store(shared: Desk, desk: Desk) -> None:
    remote = f"{shared.store.root.as_uri()}/sst2"
    assert desk.evaluate(remote) == shared.evaluate("sst2")


def test_a_record_holds_what_its_metrics_were_computed_from(shared: Desk) -> None:
    for task in METRICS:
        file = shared.root / "records" / f"{task}-unipelt_prompt-seed1.json"
        record = Record.model_validate_json(file.read_bytes())
        assert len(record.losses) == 2
        found = measure(find_task(task), record.outcomes["dev"].unpack())
        wanted = {f"dev/{name}": value for name, value in found.items()}
        assert record.metrics == pytest.approx(wanted, abs=0.1)


async def test_evaluate_through_a_server_finds_the_same(shared: Desk, backbone: Backbone) -> None:
    settings = make_settings(shared.store.root)
    async with serving(settings, backbone, TorchRunner(load_encoder(backbone))) as served:
        for task in METRICS:
            found = await asyncio.to_thread(shared.evaluate, task, "--server", served.target)
            assert found == pytest.approx(dev_metrics(shared.store, task), abs=0.01)


def test_json_prints_the_record_and_progress_is_json_where_there_is_no_terminal(
    shared: Desk,
) -> None:
    printed = [
        Record.model_validate_json(line)
        for line in (shared.root / "stdout").read_text().splitlines()
    ]
    assert [record.recipe.task for record in printed] == list(METRICS)
    for record in printed:
        stored = shared.store.resolve(Reference.parse(record.recipe.task_name))
        assert record.adapter == f"{stored.reference}@{stored.digest}"
        assert record.metrics == stored.spec.lineage.metrics
    events = [json.loads(line) for line in (shared.root / "stderr").read_text().splitlines()]
    epochs = [event for event in events if event["event"] == "epoch"]
    assert [event["epoch"] for event in epochs] == [1, 2] * 3
    metric = [next(iter(event["holdout"].values())) for event in epochs[:2]]
    assert printed[0].holdout == tuple(metric)


def test_what_has_a_record_is_skipped(shared: Desk) -> None:
    recipes = [str(shared.root / f"{task}.yaml") for task in METRICS]
    result = shared.run("run", *recipes, "--records", str(shared.root / "records"))
    assert (result.code, result.stdout) == (0, "")
    assert [line.split()[-1] for line in result.stderr.splitlines()] == ["skipped"] * 3
    assert len(shared.store.list()) == 3


def test_a_record_of_another_recipe_is_not_taken_for_this_one(shared: Desk, desk: Desk) -> None:
    recipe = desk.write_recipe("sst2", adapter_rate=0.005)
    result = desk.run("run", recipe, "--records", str(shared.root / "records"))
    assert result.code == 73
    assert "sst2-unipelt_prompt-seed1.json is of another recipe" in one_line(result)
    assert desk.store.list() == ()


def test_a_damaged_record_is_named(desk: Desk) -> None:
    (desk.root / "sst2-unipelt_prompt-seed1.json").write_text("{}")
    result = desk.run("run", desk.write_recipe("sst2"), "--records", str(desk.root))
    assert result.code == 65
    assert "sst2-unipelt_prompt-seed1.json is not a run record" in one_line(result)


def test_a_run_can_leave_the_zoo_as_it_is(desk: Desk) -> None:
    result = desk.run("run", desk.write_recipe("sst2", epochs=1), "--no-publish")
    assert result.code == 0
    assert result.stdout.startswith("not published\ndev/accuracy ")
    assert desk.store.list() == ()


def test_labels_in_another_order_are_not_compared_by_number(shared: Desk, desk: Desk) -> None:
    stored = shared.store.resolve(Reference.parse("sst2"))
    spec, tensors = shared.store.load(stored)
    head = spec.head.model_copy(update={"labels": ("positive", "negative")})
    desk.store.publish(spec.model_copy(update={"head": head}), tensors, "")
    result = desk.run("evaluate", "sst2")
    assert result.code == 64
    assert "they cannot be compared" in one_line(result)


def test_a_second_run_is_the_next_version_and_has_the_same_numbers(
    desk: Desk, shared: Desk
) -> None:
    recipe = desk.write_recipe("sst2")
    result = desk.run("run", recipe)
    assert result.code == 0
    assert desk.run("run", recipe).code == 0
    assert desk.store.versions("sst2") == ("1.0.0", "1.0.1")
    assert desk.checkpoints() == []
    first, second = (desk.store.resolve(reference) for reference in desk.store.list())
    assert second.manifest.tensors == first.manifest.tensors
    assert first.digest == shared.store.resolve(Reference.parse("sst2")).digest
    assert result.stdout.splitlines() == [
        f"published sst2:1.0.0@{first.digest}",
        f"dev/accuracy {first.spec.lineage.metrics['dev/accuracy']:.2f}",
    ]


def test_a_run_starts_from_an_adapter_and_records_its_digest(shared: Desk, desk: Desk) -> None:
    stored = shared.store.resolve(Reference.parse("sst2"))
    source = f"file://{shared.root}/home/sst2"
    recipe = desk.write_recipe("stsb", initial_adapter=source)
    result = desk.run("run", recipe, "--json", "--records", str(desk.root / "records"))
    assert result.code == 0, result.stderr
    (file,) = (desk.root / "records").iterdir()
    assert file.name == "stsb-unipelt_prompt-from-sst2-seed1.json"
    record = Record.model_validate_json(file.read_bytes())
    assert record.recipe.initial_adapter == f"{source}:1.0.0@{stored.digest}"
    assert "skipped" in desk.run("run", recipe, "--records", str(desk.root / "records")).stderr
    missing = desk.write_recipe("stsb", initial_adapter="nobody")
    assert "nobody" in desk.run("run", missing).stderr


def test_another_method_starts_from_nothing_only_when_told_to(desk: Desk) -> None:
    recipe = desk.write_recipe("stsb", initial_adapter="nobody:1.0.0", epochs=1)
    for method in ("full", "unipelt"):
        refused = desk.run("run", recipe, "--method", method)
        assert refused.code == 64
        assert "unipelt_prompt starts from nobody:1.0.0" in one_line(refused)
        assert "--no-initial-adapter" in refused.stderr
    records = desk.root / "records"
    options = ("--no-initial-adapter", "--no-publish", "--records", str(records), "--json")
    result = desk.run("run", recipe, "--method", "full", *options)
    assert result.code == 0, result.stderr
    assert Record.model_validate_json(result.stdout).recipe.initial_adapter is None
    assert [file.name for file in records.iterdir()] == ["stsb-full-seed1.json"]


def test_every_method_of_the_catalogue_can_be_compared_from_the_shipped_recipe(desk: Desk) -> None:
    for task in TASKS:
        recipe = recipe_of_task(task)
        for method in get_args(Method):
            changed = recipe.changed({"method": method, "seed": 3, "initial_adapter": None})
            assert (changed.method, changed.seed, changed.variant) == (method, 3, method)
            same = ("task", "epochs", "batch_size", "holdout_rows", "pooling", "max_tokens")
            assert all(getattr(changed, key) == getattr(recipe, key) for key in same)


def test_methods_and_seeds_are_a_queue_that_goes_on_where_it_was_killed(desk: Desk) -> None:
    records = desk.root / "records"
    recipes = [desk.write_recipe(task, epochs=2) for task in ("sst2", "stsb")]
    grid = ("--method", "lora", "--method", "head", "--seed", "1", "--seed", "2")
    queue = ("run", *recipes, *grid, "--no-publish", "--records", str(records), "--threads", "1")
    kill_in(desk, DIES_IN_EPOCH, *queue)
    assert not records.exists()
    result = desk.run(*queue)
    assert result.code == 0, result.stderr
    epochs = [event["epoch"] for event in result.events() if event["event"] == "epoch"]
    assert epochs == [2, *[1, 2] * 7]
    tasks_methods_seeds = sorted(
        f"{task}-{method}-seed{seed}.json"
        for task in ("sst2", "stsb")
        for method in ("lora", "head")
        for seed in (1, 2)
    )
    assert sorted(file.name for file in records.iterdir()) == tasks_methods_seeds
    again = desk.run(*queue)
    assert (again.code, again.stdout) == (0, "")
    assert [line.split()[-1] for line in again.stderr.splitlines()] == ["skipped"] * 8


def test_a_queue_is_refused_before_its_first_run_if_a_record_is_of_another_recipe(
    shared: Desk, desk: Desk
) -> None:
    recipes = [desk.write_recipe("mrpc"), desk.write_recipe("sst2", adapter_rate=0.005)]
    result = desk.run("run", *recipes, "--records", str(shared.root / "records"))
    assert result.code == 73
    assert "is of another recipe" in one_line(result)


def test_options_go_before_the_recipe(desk: Desk) -> None:
    recipe = desk.write_recipe("sst2", epochs=1)
    options = ("--method", "lora", "--seed", "5", "--version", "3.0.0", "--threads", "1")
    assert desk.run("run", recipe, *options).code == 0
    stored = desk.store.resolve(Reference.parse("sst2:3.0.0"))
    assert stored.spec.method == "lora"
    assert stored.spec.lineage.seed == 5


def test_full_fine_tuning_is_not_published_and_says_so(desk: Desk) -> None:
    recipe = desk.write_recipe("sst2", method="full", epochs=1)
    result = desk.run("run", recipe, "--records", str(desk.root / "records"))
    assert result.code == 0
    first, metric = result.stdout.splitlines()
    assert first == "not published"
    assert metric.startswith("dev/accuracy ")
    assert desk.store.list() == ()
    record = (desk.root / "records" / "sst2-full-seed1.json").read_bytes()
    assert Record.model_validate_json(record).adapter is None


def test_a_time_limit_ends_the_schedule(desk: Desk) -> None:
    recipe = desk.write_recipe("sst2", epochs=100_000)
    result = desk.run("run", recipe, "--max-minutes", "0.01", "--json")
    assert result.code == 0
    record = Record.model_validate_json(result.stdout)
    assert record.max_minutes == 0.01
    assert record.steps < 200_000
    last = json.loads(result.stderr.splitlines()[-1])
    assert last == {"event": "max_minutes", "step": record.steps, "steps": 200_000}
    assert desk.store.versions("sst2") == ("1.0.0",)


def test_a_dry_run_says_what_the_run_then_does_and_leaves_nothing(desk: Desk) -> None:
    recipe = desk.write_recipe("squad", patience=1)
    dry = desk.run("run", recipe, "--dry-run", "--json")
    assert (dry.code, dry.stderr) == (0, "")
    assert desk.store.list() == ()
    assert desk.checkpoints() == []
    said = json.loads(dry.stdout)
    record = Record.model_validate_json(desk.run("run", recipe, "--json").stdout)
    assert (said["run"], said["device"]) == ("squad-unipelt_prompt-seed1", "cpu")
    for key, value in {
        "precision": record.recipe.precision,
        "train_rows": record.train_rows,
        "steps": record.steps,
        "trained_parameters": record.trained_parameters,
    }.items():
        assert said[key] == value, key
    lines = desk.run("run", recipe, "--dry-run").stdout.splitlines()
    assert lines[0] == "squad-unipelt_prompt-seed1: fp32 on cpu"
    assert f"at most {record.steps} steps of 8 rows in 2 epochs" in lines[2]


def test_tasks_lists_the_catalogue(desk: Desk) -> None:
    lines = desk.run("tasks").stdout.splitlines()
    assert [line.split()[0] for line in lines] == list(TASKS)
    listed = {each["name"]: each for each in json.loads(desk.run("tasks", "--json").stdout)}
    assert listed.keys() == TASKS.keys()
    assert listed["squad"] == {
        "name": "squad",
        "fields": ["question", "context"],
        "head": "span",
        "metrics": ["f1", "exact_match"],
    }


# Interruptions

DIES_IN_EPOCH = """
from upt_training.progress import JsonReporter
JsonReporter.epoch = lambda self, progress, **_: progress.epoch == 2 and die()
"""
DIES_BEFORE_THE_INDEX = """
from pathlib import Path
replace = Path.replace
Path.replace = lambda path, to: die() if to.name == "index.json" else replace(path, to)
"""


@pytest.mark.parametrize(
    ("moment", "epochs_left"), [(DIES_IN_EPOCH, [2]), (DIES_BEFORE_THE_INDEX, [])]
)
def test_a_killed_run_publishes_nothing_and_goes_on_when_it_is_repeated(
    desk: Desk, shared: Desk, moment: str, epochs_left: list[int]
) -> None:
    recipe = desk.write_recipe("sst2")
    kill_in(desk, moment, "run", recipe, "--threads", "1")
    assert desk.store.list() == ()
    assert len(desk.checkpoints()) == 1
    repeated = desk.run("run", recipe)
    assert repeated.code == 0
    assert [event["epoch"] for event in repeated.events()] == epochs_left
    whole = shared.store.resolve(Reference.parse("sst2"))
    (reference,) = desk.store.list()
    assert reference.digest == whole.digest  # to the byte as if nothing had happened
    desk.store.verify(desk.store.resolve(reference))
    assert desk.checkpoints() == []


def test_a_run_that_could_not_publish_does_not_train_again(desk: Desk) -> None:
    recipe = desk.write_recipe("sst2")
    assert desk.run("run", recipe, "--version", "1.0.0").code == 0
    taken = desk.run("run", desk.write_recipe("sst2", seed=2), "--version", "1.0.0")
    assert taken.code == 73
    assert "sst2:1.0.0 exists" in taken.stderr.splitlines()[-1]
    again = desk.run("run", recipe, "--json")
    assert (again.code, again.stderr) == (0, "")
    assert len(Record.model_validate_json(again.stdout).holdout) == 2
    assert desk.store.versions("sst2") == ("1.0.0", "1.0.1")


def test_a_run_on_other_data_starts_afresh(desk: Desk) -> None:
    recipe = desk.write_recipe("sst2")
    assert desk.run("run", recipe, "--version", "1.0.0").code == 0
    write_split(desk.root / "data", "sst2", "train", sentiment_rows(24, seed=7))
    assert desk.run("run", recipe, "--version", "1.0.0").code == 73
    write_split(desk.root / "data", "sst2", "train", sentiment_rows(24, seed=8))
    assert [event["epoch"] for event in desk.run("run", recipe).events()] == [1, 2]


# Errors


def one_line(result: Result) -> str:
    assert result.stdout == ""
    (line,) = result.stderr.splitlines()
    assert line.startswith("upt-train: ")
    return line


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        ((), 64, "recipe files or --task NAME"),
        (("RECIPE", "--task", "sst2"), 64, "and not both"),
        (("UNKNOWN",), 64, "colour"),
        (("RECIPE", "--method", "adapters"), 64, "recipe of sst2"),
        (("RECIPE", "--version", "1.0"), 64, "--version: expected MAJOR.MINOR.PATCH"),
        (("NOWHERE.yaml",), 64, "NOWHERE.yaml"),
        (("--task", "sst3"), 66, "no task 'sst3'"),
        (("MISSING",), 66, "mrpc/train.jsonl.gz"),
        (("BAD",), 64, "cola/train.jsonl.gz, row 2"),
    ],
)
def test_a_run_that_cannot_start_is_one_line_and_a_code(
    desk: Desk, arguments: tuple[str, ...], code: int, message: str
) -> None:
    rows: list[JsonRow] = [{"sentence": "it is .", "label": 1}, {"sentence": "is it"}]
    write_split(desk.root / "data", "cola", "train", rows)
    files = {
        "RECIPE": lambda: desk.write_recipe("sst2"),
        "UNKNOWN": lambda: desk.write_recipe("sst2", colour="red"),
        "MISSING": lambda: desk.write_recipe("mrpc"),
        "BAD": lambda: desk.write_recipe("cola"),
    }
    result = desk.run("run", *(files[a]() if a in files else a for a in arguments))
    assert result.code == code
    assert message in one_line(result)
    assert desk.store.list() == ()


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (("nobody",), 66, "no adapter nobody"),
        (("No Such",), 64, "reference 'No Such'"),
        (("sst2", "--split", "test"), 66, "sst2/test.jsonl.gz"),
        (("sst2", "--server", "127.0.0.1:1"), 69, "cannot reach 127.0.0.1:1"),
    ],
)
def test_an_evaluation_that_cannot_be_is_one_line_and_a_code(
    shared: Desk, arguments: tuple[str, ...], code: int, message: str
) -> None:
    result = shared.run("evaluate", *arguments)
    assert result.code == code
    assert message in one_line(result)


def test_an_evaluation_without_a_dev_file_asks_for_one(shared: Desk, tmp_path: Path) -> None:
    result = shared.run("evaluate", "sst2", "--data", str(tmp_path))
    assert result.code == 64
    assert "no dev file of sst2" in one_line(result)


def test_an_adapter_of_another_backbone_is_refused(desk: Desk) -> None:
    directory = desk.root / "own"
    write_tiny_backbone(directory, seed=1)
    recipe = desk.write_recipe("sst2", backbone=str(directory), epochs=1)
    assert desk.run("run", recipe).code == 0
    write_tiny_backbone(directory, seed=2)
    result = desk.run("evaluate", "sst2")
    assert result.code == 64
    assert "belongs to sha256:" in one_line(result)


def test_a_fault_of_ours_is_one_line_without_internals(
    desk: Desk, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(self: Experiment, *_: object, **__: object) -> None:
        raise RuntimeError("secret")

    monkeypatch.setattr(Experiment, "__init__", fail)
    result = desk.run("run", desk.write_recipe("sst2"))
    assert result.code == 70
    line = one_line(result)
    assert "unexpected RuntimeError" in line
    assert "secret" not in line


def test_a_wrong_command_line_is_code_2(desk: Desk) -> None:
    result = desk.run("run", "--task", "sst2", "--data", str(desk.root / "nowhere"))
    assert result.code == 2
    assert "--data" in result.stderr


# Help


@pytest.fixture(scope="module")
def help_modules() -> set[str]:
    code = (
        "import sys; from upt_training.cli import app; from typer.testing import CliRunner; "
        "results = [CliRunner().invoke(app, [*name, '--help']) for name in ([], ['run'])]; "
        "assert all(result.exit_code == 0 for result in results); print(*sys.modules)"
    )
    result = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=TIMEOUT_S, check=True
    )
    return set(result.stdout.split())


@pytest.mark.parametrize(
    "module", ["torch", "numpy", "matplotlib", "sklearn", "scipy", "yaml", "grpc"]
)
def test_help_loads_no_heavy_module(help_modules: set[str], module: str) -> None:
    assert "typer" in help_modules
    assert module not in help_modules


def test_every_flag_and_argument_is_explained() -> None:
    commands = get_command(app).commands  # type: ignore[attr-defined]  # it is a group
    training = {"run", "search", "pretrain", "sweep"}
    others = {"init", "evaluate", "report", "table", "tasks", "add-example"}
    assert set(commands) == training | others
    for command in commands.values():
        assert command.help
        assert all(parameter.help for parameter in command.params), command.name
