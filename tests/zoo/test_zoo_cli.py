import json
import os
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path

import pytest

from upt_testing.adapters import (
    BOTTLENECK,
    EMBEDDING,
    LORA,
    MULTI_LABEL,
    PREFIX,
    PROMPT,
    REGRESSION,
    SPAN,
    TOKENS,
    random_tensors,
    tiny_spec,
)
from upt_testing.commands import Run
from upt_zoo import terminal
from upt_zoo.local.store import Store, StoredAdapter
from upt_zoo.spec import AdapterSpec

SPEC = tiny_spec(lora=LORA, prefix=PREFIX, bottleneck=BOTTLENECK, prompt=PROMPT)
CARD = "# Tiny\n\nIt tells \x1b[31mgood from bad.\n"


def publish(store: Store, spec: AdapterSpec = SPEC, seed: int = 0) -> StoredAdapter:
    return store.publish(spec, random_tensors(spec, seed), CARD)


def test_pull_takes_an_adapter_from_the_embedded_catalogue(run: Run, home: Store) -> None:
    stored = publish(Store(home.root.with_name("embedded")))
    result = run("pull", "tiny")
    assert (result.code, result.stdout) == (0, f"tiny:1.0.0@{stored.digest}\n")
    assert result.stderr == f"pulled tiny:1.0.0 into {home.root}\n"
    assert home.versions("tiny") == ("1.0.0",)


def test_pull_takes_one_adapter_after_the_other_and_keeps_those_before_a_missing_one(
    run: Run, home: Store
) -> None:
    embedded = Store(home.root.with_name("embedded"))
    stored = [publish(embedded, tiny_spec(name=name, lora=LORA)) for name in ("first", "second")]
    result = run("pull", "first", "second", "third")
    assert result.code == 66
    assert result.stdout == "".join(f"{each.reference}@{each.digest}\n" for each in stored)
    assert "third" in result.stderr
    assert [home.versions(name) for name in ("first", "second")] == [("1.0.0",), ("1.0.0",)]


def test_pull_takes_an_adapter_from_another_directory(run: Run, tmp_path: Path) -> None:
    stored = publish(Store(tmp_path / "other"))
    result = run("pull", f"{(tmp_path / 'other').as_uri()}/tiny:1.0.0", "--json")
    assert json.loads(result.stdout) == {
        "name": "tiny",
        "version": "1.0.0",
        "digest": stored.digest,
        "method": "lora_prefix_bottleneck_prompt",
        "metrics": {"dev/accuracy": 75.0},
        "size_bytes": stored.size_bytes,
    }


def test_the_option_home_goes_before_the_environment(run: Run, tmp_path: Path) -> None:
    publish(Store(tmp_path / "other"))
    assert run("ls", "--home", str(tmp_path / "other")).stdout.count("tiny:1.0.0") == 1


def test_ls_lists_every_version(run: Run, home: Store) -> None:
    first, second = publish(home, seed=1), publish(home, seed=2)
    lines = run("ls").stdout.splitlines()
    assert [line.split()[0] for line in lines] == ["adapter", "tiny:1.0.0", "tiny:1.0.1"]
    assert "dev/accuracy 75.0" in lines[1]
    listed = json.loads(run("ls", "--json").stdout)
    assert [entry["digest"] for entry in listed] == [first.digest, second.digest]


def test_ls_shows_whole_adapters_beside_damaged_ones(run: Run, home: Store) -> None:
    damaged, whole = publish(home, seed=1), publish(home, seed=2)
    blob = home.root / "blobs" / "sha256" / damaged.digest.removeprefix("sha256:")
    blob.write_bytes(b"{}")
    result = run("ls")
    assert result.code == 65
    _, first, *others = result.stdout.splitlines()
    assert first.split()[:2] == [damaged.reference, "damaged"]
    assert others[-1].split()[0] == whole.reference
    result = run("ls", "--json")
    assert result.code == 65
    broken, listed = json.loads(result.stdout)
    assert (broken["name"], broken["version"]) == (damaged.name, damaged.version)
    assert blob.name in broken["damage"]
    assert listed["digest"] == whole.digest


def test_ls_of_nothing_is_empty_on_stdout(run: Run) -> None:
    for arguments in ([], ["--catalogue"]):
        result = run("ls", *arguments)
        assert (result.code, result.stdout) == (0, "")
        assert "no adapters" in result.stderr
    assert json.loads(run("ls", "--json").stdout) == []


def test_ls_catalogue_lists_the_embedded_adapters(run: Run, home: Store) -> None:
    publish(Store(home.root.with_name("embedded")))
    assert [entry["name"] for entry in json.loads(run("ls", "--catalogue", "--json").stdout)] == [
        "tiny"
    ]


def test_show_json_holds_what_a_program_needs(run: Run, home: Store) -> None:
    stored = publish(home)
    shown = json.loads(run("show", "tiny", "--json").stdout)
    assert shown["version"] == "1.0.0"
    assert shown["digest"] == stored.digest
    assert shown["backbone"]["digest"] == SPEC.backbone.digest
    assert shown["metrics"] == {"dev/accuracy": 75.0}
    assert shown["parameters"] == {"trained": 482, "served": 464, "head": 18}
    assert shown["components"]["lora"]["targets"] == ["q", "v"]
    assert shown["components"].keys() == {"lora", "prefix", "bottleneck", "prompt"}
    assert shown["task"]["fields"] == ["sentence"]
    assert shown["licence"] == "Apache-2.0"
    assert shown["size_bytes"] == stored.size_bytes


def test_show_explains_the_adapter_to_a_person(run: Run, home: Store) -> None:
    stored = publish(home)
    text = run("show", "tiny").stdout
    for part in (
        "one of negative, positive",
        "sentence, at most 32 tokens",
        "rank 2 on q, v, gated",
        "3 keys and values a layer, gated",
        "8 to 4 and back, relu, gated",
        "2 vectors before [CLS]",
        "482 trained, 464 served, and 18 in the head",
        "dev/accuracy 75.0",
        "Apache-2.0; commercial use of the data: yes",
        stored.digest,
        "good from bad",
    ):
        assert part in text


@pytest.mark.parametrize(
    ("spec", "answers"),
    [
        (tiny_spec(head=SPAN), "a span of the second field"),
        (tiny_spec(head=REGRESSION), "a number"),
        (tiny_spec(head=MULTI_LABEL), "any of a, b, c"),
        (tiny_spec(head=TOKENS), "entities: PER, LOC"),
        (tiny_spec(head=EMBEDDING), "an embedding: 8 numbers of length 1, mean pooling"),
        (
            tiny_spec(head=EMBEDDING.model_copy(update={"normalised": False, "pooling": "cls"})),
            "an embedding: 8 numbers of any length, cls pooling",
        ),
    ],
    ids=["span", "regression", "multi_label", "tokens", "embedding", "plain embedding"],
)
def test_show_says_what_the_head_answers(
    run: Run, home: Store, spec: AdapterSpec, answers: str
) -> None:
    publish(home, spec)
    assert answers in run("show", "tiny").stdout


def test_a_card_cannot_drive_the_terminal(run: Run, home: Store) -> None:
    publish(home)
    assert "\x1b" not in run("show", "tiny").stdout


def test_show_reads_a_remote_without_pulling(run: Run, home: Store, tmp_path: Path) -> None:
    publish(Store(tmp_path / "other"))
    assert run("show", f"{(tmp_path / 'other').as_uri()}/tiny").code == 0
    assert not home.root.exists()


def test_verify_names_the_damaged_adapter_and_fails(run: Run, home: Store) -> None:
    damaged, whole = publish(home, seed=1), publish(home, seed=2)
    assert run("verify").code == 0
    digest = damaged.manifest.tensors.digest.removeprefix("sha256:")
    (home.root / "blobs" / "sha256" / digest).write_bytes(b"x")
    result = run("verify", "--json")
    assert result.code == 65
    verdicts = {entry["reference"]: entry["damage"] for entry in json.loads(result.stdout)}
    assert verdicts[whole.reference] is None
    assert digest in verdicts[damaged.reference]
    assert run("verify", "tiny:1.0.0").code == 65
    assert run("verify", "tiny:1.0.1").stdout.split()[-2:] == ["tiny:1.0.1", "ok"]


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (["show", "../x"], 64, "reference '../x': expected"),
        (["pull", "elsewhere/tiny"], 64, "remote 'elsewhere': expected embedded or file"),
        (["show", "tinny"], 66, "did you mean tiny?"),
        (["verify", "tiny:9.9.9"], 66, "it has 1.0.0"),
        (["pull", "nothing"], 66, "upt-zoo ls --catalogue"),
    ],
)
def test_an_error_is_one_clear_line_on_stderr(
    run: Run, home: Store, arguments: list[str], code: int, message: str
) -> None:
    publish(home)
    result = run(*arguments)
    assert (result.code, result.stdout) == (code, "")
    assert result.stderr.startswith("upt-zoo: ")
    assert result.stderr.count("\n") == 1
    assert message in result.stderr


def test_a_refusal_of_the_operating_system_has_its_own_code(run: Run, home: Store) -> None:
    home.root.mkdir()
    (home.root / "index.json").symlink_to("index.json")
    result = run("ls")
    assert result.code == 74
    assert "index.json" in result.stderr


def test_a_fault_of_ours_tells_no_internals(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(store: Store) -> None:
        raise KeyError("secret")

    monkeypatch.setattr(Store, "listing", fail)
    result = run("ls")
    assert result.code == terminal.UNEXPECTED
    assert "unexpected KeyError" in result.stderr
    assert "secret" not in result.stderr


def test_a_fault_of_ours_shows_where_in_pythons_development_mode() -> None:
    program = (
        "from upt_zoo import cli\ndef app(): raise KeyError('details')\ncli.app = app; cli.main()"
    )
    result = subprocess.run(
        [sys.executable, "-X", "dev", "-c", program],
        env=os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)},
        capture_output=True,
        check=False,
        text=True,
    )
    assert result.returncode == terminal.UNEXPECTED
    assert "KeyError: 'details'" in result.stderr


def test_a_wrong_command_line_exits_with_two(run: Run) -> None:
    assert run("pull").code == 2
    assert run("ls", "--unknown").code == 2


def test_help_imports_neither_torch_nor_numpy() -> None:
    program = (
        "import sys, upt_zoo.cli; sys.argv[1:] = ['--help']\n"
        "try: upt_zoo.cli.main()\n"
        "finally: print(*sys.modules)"
    )
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)}
    output = subprocess.run(
        [sys.executable, "-c", program], env=environment, capture_output=True, check=True, text=True
    ).stdout
    for command in ("pull", "ls", "show", "verify"):
        assert f"\n  {command} " in output
    assert not {"torch", "numpy", "pydantic", "rich.console"} & set(output.split())


def test_version_is_that_of_the_package_and_imports_no_torch() -> None:
    program = (
        "import sys, upt_zoo.cli; sys.argv[1:] = ['--version']\n"
        "try: upt_zoo.cli.main()\n"
        "finally: print(*sys.modules)"
    )
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)}
    said, modules = subprocess.run(
        [sys.executable, "-c", program], env=environment, capture_output=True, check=True, text=True
    ).stdout.splitlines()
    assert said == f"upt {version('upt-zoo')}"
    assert not {"torch", "numpy", "pydantic", "rich.console"} & set(modules.split())


def test_the_registry_imports_no_torch() -> None:
    program = "import sys, upt_zoo.catalogue; sys.exit('torch' in sys.modules)"
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)}
    subprocess.run([sys.executable, "-c", program], env=environment, check=True)
