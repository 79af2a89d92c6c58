"""The web page of a store: its documents, its cards, and the directory that holds all of it."""

import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from upt_testing.adapters import (
    BOTTLENECK,
    CURVE,
    LORA,
    PREFIX,
    PROMPT,
    random_tensors,
    tiny_spec,
    with_curve,
)
from upt_testing.commands import Run
from upt_testing.stores import publish, resolve
from upt_zoo.errors import AdapterNotFound, Conflict, Corrupt, InvalidInput
from upt_zoo.layout import parameter_counts
from upt_zoo.local.store import Store
from upt_zoo.local.tags import move_alias, yank
from upt_zoo.references import Reference
from upt_zoo.site.assets import POLICY, read_assets
from upt_zoo.site.cards import parse_card
from upt_zoo.site.curves import read_curves
from upt_zoo.site.documents import Documents
from upt_zoo.site.writing import write_site
from upt_zoo.spec import Curve

RECORDS = Path(__file__).parents[2] / "training" / "records"
STATIC = Path(read_assets.__code__.co_filename).with_name("static")


@pytest.fixture
def store(tmp_path: Path) -> Store:
    store = Store(tmp_path / "zoo")
    publish(store, name="a", seed=1)
    publish(store, name="a", seed=2)
    publish(store, name="b")
    return store


def read(file: Path) -> Any:
    return json.loads(file.read_text())


# Documents


def test_the_catalogue_has_every_version_and_what_the_store_says_of_it(store: Store) -> None:
    move_alias(store, Reference.parse("a:1.0.0"), "stable")
    yank(store, Reference.parse("a:1.0.1"))
    entries: Any = Documents(store).catalogue()["adapters"]
    assert [(each["name"], each["version"]) for each in entries] == [
        ("a", "1.0.0"),
        ("a", "1.0.1"),
        ("b", "1.0.0"),
    ]
    assert entries[0]["aliases"] == ["stable"]
    assert entries[0]["yanked"] is None
    assert entries[1]["yanked"] is not None
    assert entries[0]["digest"] == resolve(store, "a:1.0.0").digest


def test_the_catalogue_leaves_out_what_is_hidden_or_damaged(
    store: Store, caplog: pytest.LogCaptureFixture
) -> None:
    damaged = resolve(store, "b")
    store.blob_path(damaged.manifest.config.digest).write_bytes(b"{}")
    documents = Documents(store)
    assert documents.catalogue(lambda name: name != "a") == {"adapters": []}
    assert "left out of the page" in caplog.text
    with pytest.raises(Corrupt):
        documents.adapter("b", "1.0.0")
    with pytest.raises(AdapterNotFound):
        documents.adapter("c", "1.0.0")


def test_the_document_of_a_version_counts_its_parameters_by_part(tmp_path: Path) -> None:
    spec = tiny_spec(lora=LORA, prefix=PREFIX, bottleneck=BOTTLENECK, prompt=PROMPT)
    store = Store(tmp_path)
    store.publish(spec, random_tensors(spec, 0), "# Card\n", version="1.0.0")
    document: Any = Documents(store).adapter("tiny", "1.0.0")
    assert document["parts"].keys() == {"prompt", "prefix", "lora", "bottleneck", "gates", "head"}
    assert sum(document["parts"].values()) == sum(parameter_counts(spec))
    assert document["gates"] == ["lora.q", "lora.v", "prefix", "bottleneck"]
    assert document["card"] == [{"tag": "h1", "children": ["Card"]}]


def test_the_history_of_a_name_is_told(store: Store) -> None:
    move_alias(store, Reference.parse("a:1.0.0"), "stable")
    move_alias(store, Reference.parse("a:1.0.1"), "stable")
    document: Any = Documents(store).adapter("a", "1.0.1")
    assert document["versions"] == ["1.0.0", "1.0.1"]
    assert [(each["action"], each["after"]) for each in document["history"]] == [
        ("tag", "1.0.0"),
        ("tag", "1.0.1"),
    ]


# Cards


def test_a_card_becomes_elements_and_texts() -> None:
    text = "# Tiny\n\nA *small* [one](https://example.com).\n\n- `a`\n\n```\ncode\n```\n"
    assert parse_card(text) == [
        {"tag": "h1", "children": ["Tiny"]},
        {
            "tag": "p",
            "children": [
                "A ",
                {"tag": "em", "children": ["small"]},
                " ",
                {"tag": "a", "children": ["one"], "href": "https://example.com"},
                ".",
            ],
        },
        {
            "tag": "ul",
            "children": [
                {
                    "tag": "li",
                    "children": [
                        {"tag": "p", "children": [{"tag": "code", "children": ["a"]}]},
                    ],
                }
            ],
        },
        {"tag": "pre", "children": ["code\n"]},
    ]


@pytest.mark.parametrize(
    "text",
    [
        "<script>alert(1)</script>",
        "<img src=x onerror=alert(1)>",
        "[a](javascript:alert(1))",
        "[a](data:text/html,x)",
        "![a](https://example.com/pixel.png)",
        '<a href="https://example.com" onclick="x()">a</a>',
        "[a](//example.com)",
    ],
)
def test_a_card_cannot_bring_markup_scripts_or_images(text: str) -> None:
    def check(nodes: list[Any]) -> None:
        for node in nodes:
            if isinstance(node, dict):
                assert node["tag"] in {"p", "a"}
                assert "href" not in node
                check(node["children"])

    check(parse_card(text))


def test_of_a_long_card_the_beginning_is_parsed() -> None:
    assert parse_card("a" * 50_000) == [{"tag": "p", "children": ["a" * 50_000]}]
    beginning, rest = parse_card("a" * 50_001)
    assert beginning == {"tag": "p", "children": ["a" * 50_000]}
    assert "left out" in str(rest)


# Curves


def test_the_records_of_this_repository_have_curves_of_shipped_adapters() -> None:
    curves = read_curves(RECORDS)
    assert curves
    for digest, curve in curves.items():
        assert digest.startswith("sha256:")
        assert curve.holdout is not None
        assert curve.holdout[curve.best_epoch - 1] == max(curve.holdout)


def test_what_is_no_record_is_refused(tmp_path: Path) -> None:
    (tmp_path / "a.json").write_text("{}")
    with pytest.raises(Corrupt, match=r"a\.json is not a run record: holdout: Field required"):
        read_curves(tmp_path)
    record = {"adapter": None, "holdout": [50.0], "best_epoch": 2}
    (tmp_path / "a.json").write_text(json.dumps(record))
    with pytest.raises(Corrupt, match="not a run record: best_epoch 2 is none of the epochs"):
        read_curves(tmp_path)
    with pytest.raises(InvalidInput, match="a folder of run records"):
        read_curves(tmp_path / "nowhere")


def test_the_curve_of_the_adapter_goes_before_that_of_a_record(store: Store) -> None:
    spec = with_curve(tiny_spec(name="c", lora=LORA), CURVE)
    digest = store.publish(spec, random_tensors(spec, 0), "# C").digest
    other = Curve(epochs=(1,), losses=(0.5,), best_epoch=1)
    documents = Documents(store, {digest: other, resolve(store, "b").digest: other})
    curves = {name: documents.adapter(name, "1.0.0")["curve"] for name in ("a", "b", "c")}
    assert curves == {
        "a": None,
        "b": other.model_dump(mode="json"),
        "c": CURVE.model_dump(mode="json"),
    }


# The directory


def test_a_page_holds_assets_and_documents(store: Store, tmp_path: Path) -> None:
    out = tmp_path / "page"
    digest = resolve(store, "b").digest
    assert write_site(store, out, {digest: CURVE}) == 3
    assert read(out / "setup.json") == {"is_live": False}
    assert len(read(out / "data" / "catalogue.json")["adapters"]) == 3
    document = read(out / "data" / "adapters" / "b" / "1.0.0.json")
    assert document["curve"] == CURVE.model_dump(mode="json")
    assert POLICY in (out / "index.html").read_text()
    for name in read_assets():
        assert (out / name).is_file()


def test_a_page_leaves_out_what_is_damaged(
    store: Store, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    spec = tiny_spec(name="c", lora=LORA)
    damaged = store.publish(spec, random_tensors(spec, 0), "# A card of its own")
    store.blob_path(damaged.manifest.card.digest).write_bytes(b"x")
    assert write_site(store, tmp_path / "out") == 3
    shown = read(tmp_path / "out" / "data" / "catalogue.json")["adapters"]
    assert [each["name"] for each in shown] == ["a", "a", "b"]
    assert "left out of the page" in caplog.text


def test_a_page_replaces_an_earlier_one_and_nothing_else(store: Store, tmp_path: Path) -> None:
    out = tmp_path / "page"
    write_site(store, out)
    (out / "CNAME").write_text("example.com")
    (out / "data" / "adapters" / "gone.json").write_text("{}")
    write_site(store, out)
    assert (out / "CNAME").is_file()
    assert not (out / "data" / "adapters" / "gone.json").exists()
    other = tmp_path / "other"
    other.mkdir()
    (other / "thesis.txt").write_text("mine")
    with pytest.raises(Conflict, match="no earlier page"):
        write_site(store, other)
    with pytest.raises(Conflict, match="got the file"):
        write_site(store, other / "thesis.txt")
    assert [file.name for file in other.iterdir()] == ["thesis.txt"]


def test_the_command_writes_the_store_or_the_catalogue(
    run: Run, home: Store, tmp_path: Path
) -> None:
    publish(home)
    out = tmp_path / "page"
    result = run("site", str(out))
    assert (result.code, result.stdout) == (0, f"{out}\n")
    assert "http.server" in result.stderr
    result = run("site", str(out), "--catalogue", "--records", str(RECORDS), "--json")
    assert json.loads(result.stdout) == {"directory": str(out), "versions": 0}


def test_the_page_needs_no_torch() -> None:
    code = (
        "import sys, upt_zoo.site.writing, upt_zoo.commands.site; "
        "print([name for name in ('torch', 'starlette') if name in sys.modules])"
    )
    result = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True
    )
    assert result.stdout == "[]\n"


# Assets


def test_the_page_names_nothing_that_it_does_not_hold() -> None:
    names = set(read_assets())
    for file in STATIC.rglob("*"):
        if file.suffix not in {".js", ".html"} or "vendor" in file.parts:
            continue
        text = file.read_text()
        named = re.findall(
            r'(?:from |import\(|src=|href: )"(?:\./)?([\w./]+\.(?:js|css|svg))"', text
        )
        assert set(named) <= names, file.name


def test_no_script_of_ours_can_make_html_or_store_more_than_the_theme() -> None:
    for file in STATIC.glob("*.js"):
        text = file.read_text()
        for forbidden in (
            "innerHTML",
            "outerHTML",
            "insertAdjacentHTML",
            "document.write",
            "eval(",
        ):
            assert forbidden not in text, file.name
        assert "sessionStorage" not in text
        assert "cookie" not in text
        assert set(re.findall(r"localStorage\.\w+\((\S+?)[,)]", text)) <= {'"theme"'}


def test_the_licence_of_the_library_stands_beside_it() -> None:
    assets = read_assets()
    assert b"MIT" in assets["vendor/uPlot.LICENSE"].content
    assert assets["vendor/uPlot.LICENSE"].media_type.startswith("text/plain")
