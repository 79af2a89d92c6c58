"""``upt-server score`` and its parts: rows in, one line for each out, in any number of runs."""

import asyncio
import json
import os
import pty
import sys
from collections.abc import AsyncIterator, Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

from upt_server.client import AsyncClient
from upt_server.results import AdapterIdentity, Output
from upt_server.runner import TorchRunner
from upt_server.scoring.lines import answer_line
from upt_server.scoring.own_server import own_server
from upt_server.scoring.rows import ScoredRow, read_rows
from upt_server.scoring.score_file import Job, ScoreFile, digest_and_lines
from upt_server.scoring.scorer import Scorer
from upt_testing.processes import upt_server
from upt_testing.serving import TIMEOUT_S, FakeRunner, Publisher, Served, make_settings, serving
from upt_zoo.answers import LabelAnswer, LabelSetAnswer, SpanAnswer, ValueAnswer
from upt_zoo.backbone import Backbone
from upt_zoo.catalogue import embedded_catalogue
from upt_zoo.errors import (
    AdapterNotFound,
    Conflict,
    Corrupt,
    InvalidInput,
    InvalidText,
    Overflowed,
    Overloaded,
    Unavailable,
    UptError,
    WrongBackbone,
)
from upt_zoo.local.store import Store
from upt_zoo.references import Reference

JOB = Job(rows_digest="sha256:0", adapter="a", columns=["x"], options={"top_k": None})


def output_of(text: str) -> Output:
    """An answer that shows which text it is to."""
    return Output(
        answer=ValueAnswer(value=float(len(text))),
        labels=(),
        adapter=AdapterIdentity(name="a", version="1.0.0", digest="sha256:"),
        task="a",
        tokens=1,
        is_truncated=False,
        windows=1,
    )


# Rows


def rows_of(file: Path, data: bytes, *columns: str) -> list[ScoredRow | str]:
    file.write_bytes(data)
    return [str(row) if isinstance(row, InvalidText) else row for row in read_rows(file, columns)]


def test_rows_of_jsonl_and_what_is_none(tmp_path: Path) -> None:
    data = (
        b'{"b": "two", "a": "one", "label": 1}\n'
        b"not json\n"
        b"[1]\n"
        b'{"a": "one"}\n'
        b'{"a": "one", "b": 2}\n'
        b"\n"
        b'{"a": "\\ud800", "b": "x"}\n'
        b'{"a": "\xff", "b": "x"}\n' + b"[" * 100_000 + b"\n"
        b'{"a": "\xe2\x80\xa8", "b": "last"}'
    )
    assert rows_of(tmp_path / "rows.jsonl", data, "a", "b") == [
        ("one", "two"),
        "expected a JSON object",
        "expected a JSON object, got list",
        "row has no field `b`; it has `a`; --columns names others",
        "expected text in b, got int",
        "expected a JSON object",
        "expected UTF-8",
        "expected a JSON object",
        "expected a JSON object",
        ("\u2028", "last"),
    ]


def test_a_row_without_the_field_can_be_written_whatever_its_names(tmp_path: Path) -> None:
    data = b'{"\\ud800": ""}\n{}\n' + json.dumps({"x" * 3_000_000: ""}).encode()
    first, second, third = rows_of(tmp_path / "rows.jsonl", data, "a")
    assert first == "row has no field `a`; it has `?`; --columns names others"
    assert second == "row has no field `a`; it has none; --columns names others"
    assert len(str(third)) < 500


def test_rows_of_csv_and_what_is_none(tmp_path: Path) -> None:
    data = (
        b'\xef\xbb\xbfid,b,a\r\n1,two,"one, with\na line end"\r\n\r\n2,two\r\n3,\xff,x\r\n4,,\r\n'
    )
    assert rows_of(tmp_path / "rows.csv", data, "a", "b") == [
        ("one, with\na line end", "two"),
        "expected 3 cells, got 2",
        "expected UTF-8",
        ("", ""),
    ]


def test_a_row_too_large_for_any_server_is_not_sent(tmp_path: Path) -> None:
    data = json.dumps({"a": "x" * 3_000_000}).encode()
    (row,) = rows_of(tmp_path / "rows.jsonl", data, "a")
    assert str(row) == "expected at most 2097152 bytes of text, got 3000000"


def test_a_long_cell_is_not_the_end_of_the_file(tmp_path: Path) -> None:
    cells = ["x" * 200_000, "y" * 3_000_000, "last"]
    assert rows_of(tmp_path / "rows.csv", "\n".join(["a", *cells]).encode(), "a") == [
        ("x" * 200_000,),
        "expected at most 2097152 bytes of text, got 3000000",
        ("last",),
    ]


@pytest.mark.parametrize(
    ("name", "data", "message"),
    [
        (
            "rows.csv",
            b"a,b\n1,2\n",
            "one column `x`, got `a`, `b`; --columns NAME,NAME names",
        ),
        ("rows.csv", b"x,x\n1,2\n", "expected one column `x`, got `x`, `x`"),
        ("rows.csv", b"x;y\n1;2\n", "got `x;y`; is it separated by semicolons\\? commas are"),
        ("rows.csv", b"", "got an empty file"),
        ("rows.csv", b'x\n"a" b\n', "line 2: "),
        ("rows.csv", b'x\n"' + b"a" * (16 * 1024**2 + 1), "line 2: field larger than"),
        ("rows.txt", b"", r"ends in \.jsonl or \.csv"),
    ],
)
def test_a_file_that_cannot_be_read_is_an_error(
    tmp_path: Path, name: str, data: bytes, message: str
) -> None:
    with pytest.raises(InvalidInput, match=message):
        rows_of(tmp_path / name, data, "x")


# Lines


@pytest.mark.parametrize(
    ("answer", "labels", "expected"),
    [
        (
            LabelAnswer(label="b", index=1, score=0.75, scores=(0.25, 0.75)),
            ("a", "b"),
            {"label": "b", "score": 0.75, "scores": {"a": 0.25, "b": 0.75}},
        ),
        (
            LabelSetAnswer(labels=("b",), scores=(0.25, 0.75)),
            ("a", "b"),
            {"labels": ["b"], "scores": {"a": 0.25, "b": 0.75}},
        ),
        (ValueAnswer(value=1.5), (), {"value": 1.5}),
        (
            SpanAnswer(text="東京", start=1, end=3, score=0.5),
            (),
            {"text": "東京", "start": 1, "end": 3, "score": 0.5},
        ),
    ],
)
def test_every_kind_of_answer_has_its_line(
    answer: Any, labels: tuple[str, ...], expected: dict[str, object]
) -> None:
    output = Output(
        answer=answer,
        labels=labels,
        adapter=AdapterIdentity(name="a", version="1.0.0", digest="sha256:"),
        task="a",
        tokens=3,
        is_truncated=True,
        windows=2,
        candidates=(SpanAnswer(text="x", start=0, end=1, score=0.5),),
        logits=(0.5, -1.0),
        gates=({"prefix": 0.25},),
    )
    assert json.loads(answer_line(7, output)) == {
        "row": 7,
        **expected,
        "tokens": 3,
        "truncated": True,
        "windows": 2,
        "candidates": [{"text": "x", "start": 0, "end": 1, "score": 0.5}],
        "logits": [0.5, -1.0],
        "gates": [{"prefix": 0.25}],
    }


# The file of scores


def test_what_a_killed_run_left_half_written_is_cut_off(tmp_path: Path) -> None:
    file = tmp_path / "out.jsonl"
    with ScoreFile(file, JOB) as scores:
        scores.append("one")
        scores.append("two")
    with file.open("ab") as stream:
        stream.write(b"thr")
    with ScoreFile(file, JOB) as scores:
        assert scores.lines == 2
        scores.append("three")
        scores.finish()
    assert file.read_text() == "one\ntwo\nthree\n"
    assert [each.name for each in tmp_path.iterdir()] == ["out.jsonl"]


def test_an_error_before_the_first_line_leaves_nothing(tmp_path: Path) -> None:
    with pytest.raises(Unavailable), ScoreFile(tmp_path / "out.jsonl", JOB):
        raise Unavailable("away")
    assert not [*tmp_path.iterdir()]


def test_a_whole_file_is_not_written_again(tmp_path: Path) -> None:
    file = tmp_path / "out.jsonl"
    file.write_text("mine")
    with pytest.raises(Conflict, match="is there already"):
        ScoreFile(file, JOB)
    assert file.read_text() == "mine"


@pytest.mark.parametrize(
    "change",
    [
        {"rows_digest": "sha256:1"},
        {"adapter": "b"},
        {"columns": ["y"]},
        {"options": {"top_k": 1}},
    ],
)
def test_a_file_begun_for_another_job_is_left_alone(
    tmp_path: Path, change: dict[str, object]
) -> None:
    file = tmp_path / "out.jsonl"
    with ScoreFile(file, JOB) as scores:
        scores.append("one")
    with pytest.raises(Conflict, match=f"begun with another {next(iter(change))}"):
        ScoreFile(file, JOB.model_copy(update=change))
    assert file.read_text() == "one\n"


def test_two_runs_do_not_write_one_file(tmp_path: Path) -> None:
    file = tmp_path / "out.jsonl"
    with ScoreFile(file, JOB), pytest.raises(Conflict, match="another run writes it"):
        ScoreFile(file, JOB)


def test_a_damaged_resume_file_is_an_error(tmp_path: Path) -> None:
    file = tmp_path / "out.jsonl"
    (tmp_path / "out.jsonl.resume").write_text("{}")
    with pytest.raises(Corrupt, match="expected the job of a run before"):
        ScoreFile(file, JOB)


# The scorer


async def no_sleep(_: float) -> None:
    await asyncio.sleep(0)


async def scored(ask: Callable[[str], Output], rows: list[ScoredRow], first: int = 1) -> list[str]:
    lines: list[str] = []

    async def ask_later(texts: tuple[str, ...]) -> Output:
        for _ in range(len(texts[0]) % 5):  # answers overtake each other
            await asyncio.sleep(0)
        return ask(texts[0])

    await Scorer(ask_later, lines.append, at_once=3, sleep=no_sleep).score(rows, first)
    return lines


async def test_lines_come_in_the_rows_order_whatever_the_answers_do() -> None:
    rows: list[ScoredRow] = [("x" * (7 * n % 11 + 1),) for n in range(100)]
    lines = [json.loads(line) for line in await scored(output_of, rows, 5)]
    assert [line["row"] for line in lines] == list(range(5, 105))
    assert [line["value"] for line in lines] == [7 * n % 11 + 1 for n in range(100)]


async def test_bad_rows_have_lines_that_say_why() -> None:
    def ask(text: str) -> Output:
        if text == "refused":
            raise InvalidText("inputs[0]: too long")
        if text == "fault":
            raise UptError("a fault of the server")
        if text == "overflow":
            raise Overflowed("inputs[0]: expected finite logits")
        return output_of(text)

    rows: list[ScoredRow] = [("refused",), InvalidText("expected UTF-8"), ("fault",)]
    rows += [("overflow",), ("good",)]
    lines = [json.loads(line) for line in await scored(ask, rows)]
    assert lines[:4] == [
        {"row": 1, "error": "INVALID_TEXT", "message": "too long"},
        {"row": 2, "error": "INVALID_TEXT", "message": "expected UTF-8"},
        {"row": 3, "error": "UPT_ERROR", "message": "a fault of the server"},
        {"row": 4, "error": "OVERFLOWED", "message": "expected finite logits"},
    ]
    assert lines[4]["value"] == 4


@pytest.mark.parametrize("error", [Overloaded("full"), Unavailable("away"), TimeoutError("late")])
async def test_a_server_that_has_no_time_is_asked_again(error: Exception) -> None:
    refusals = 0

    def ask(text: str) -> Output:
        nonlocal refusals
        refusals += 1
        if refusals % 4:
            raise error
        return output_of(text)

    lines = await scored(ask, [("row",)] * 40)
    assert len(lines) == 40


async def test_a_server_that_stays_away_ends_the_job_after_the_lines_before_it() -> None:
    def ask(text: str) -> Output:
        if text == "bad":
            raise Unavailable("away")
        return output_of(text)

    lines: list[str] = []

    async def ask_later(texts: tuple[str, ...]) -> Output:
        return ask(texts[0])

    rows: list[ScoredRow] = [("good",), ("bad",), ("good",)]
    with pytest.raises(Unavailable, match="away"):
        await Scorer(ask_later, lines.append, at_once=3, sleep=no_sleep).score(rows, 1)
    assert [json.loads(line)["row"] for line in lines] == [1]


@pytest.mark.parametrize(
    "error", [AdapterNotFound("gone"), WrongBackbone("another"), Corrupt("damaged")]
)
async def test_what_no_row_would_survive_ends_the_job(error: Exception) -> None:
    def ask(_: str) -> Output:
        raise error

    with pytest.raises(type(error)):
        await scored(ask, [("row",)] * 5)


# The command


@pytest.fixture
async def served(store: Store, backbone: Backbone, runner: TorchRunner) -> AsyncIterator[Served]:
    async with serving(make_settings(store.root), backbone, runner) as started:
        yield started


def names_in(folder: Path) -> set[str]:
    return {each.name for each in folder.iterdir()}


def write_rows(file: Path, count: int) -> Path:
    words = ["good", "bad", "film", "book", "city", "very", "dull"]
    lines = [
        json.dumps({"text": " ".join(words[: n % 7 + 1]) if n % 10 else "", "id": n})
        for n in range(count)
    ]
    file.write_text("\n".join(lines) + "\n")
    return file


async def test_all_rows_of_a_file_are_answered_as_one_by_one(
    served: Served, tmp_path: Path
) -> None:
    rows, out = write_rows(tmp_path / "rows.jsonl", 50), tmp_path / "out.jsonl"
    arguments = ("score", rows, "--adapter", "sst2", "--server", served.target, "--out", out)
    result = await asyncio.to_thread(
        upt_server, *arguments, "--columns", "text", "--logits", "--top-k", "1", "--json"
    )
    assert result.returncode == 65
    told = json.loads(result.stdout)
    assert told.pop("adapter").startswith("sst2:1.0.0@sha256:")
    expected_facts = {"out": str(out), "rows": 50, "rows_before": 0, "rows_without_answer": 5}
    assert told == expected_facts
    assert "50 rows by sst2:1.0.0@sha256:" in result.stderr
    last = f'{out}: 5 of 50 rows have no answer; their lines, those with "error", say why'
    assert result.stderr.splitlines()[-1] == last
    lines = [json.loads(line) for line in out.read_text().splitlines()]
    assert [line["row"] for line in lines] == list(range(1, 51))
    async with AsyncClient(served.target) as client:
        for line, text in zip(lines, rows.read_text().splitlines(), strict=True):
            given = json.loads(text)["text"]
            if not given:
                assert (line["error"], line["message"][:9]) == ("INVALID_TEXT", "task sst2")
                continue
            expected = (await client.predict("sst2", given)).answer
            assert isinstance(expected, LabelAnswer)
            assert line["label"] == expected.label
            assert line["score"] == pytest.approx(expected.score, abs=1e-5)
            assert (len(line["scores"]), len(line["logits"])) == (1, 2)
    again = await asyncio.to_thread(upt_server, *arguments, "--columns", "text")
    assert (again.returncode, "is there already" in again.stderr) == (73, True)


async def test_a_terminal_shows_how_many_rows_are_done_and_the_answers_are_the_same(
    store: Store, backbone: Backbone, fake: FakeRunner, tmp_path: Path
) -> None:
    rows = write_rows(tmp_path / "rows.jsonl", 50)
    plain, shown = tmp_path / "plain.jsonl", tmp_path / "shown.jsonl"
    async with serving(make_settings(store.root), backbone, fake) as served:
        arguments = ["score", str(rows), "--adapter", "sst2", "--server", served.target]
        arguments += ["--columns", "text", "--out"]
        result = await asyncio.to_thread(upt_server, *arguments, plain)
        code, screen = await on_a_terminal(*arguments, str(shown))
    assert (result.returncode, code) == (65, 65)
    assert "50/50" not in result.stderr
    assert screen.index(b" 0/50") < screen.index(b"50/50") < screen.index(b": 50 rows by sst2")
    assert screen.count(b"\x1b[?25h") >= screen.count(b"\x1b[?25l") > 0  # the cursor is back
    assert shown.read_bytes() == plain.read_bytes()


async def on_a_terminal(*arguments: str) -> tuple[int, bytes]:
    """Run ``upt-server`` with a terminal for its messages; return the code and what it showed."""
    leader, follower = pty.openpty()
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "upt_server.cli", *arguments),
        stderr=follower,
        env=os.environ | {"COLUMNS": "120", "TERM": "xterm"},
    )
    os.close(follower)
    try:
        screen = await asyncio.to_thread(read_all, leader)
        return await process.wait(), screen
    finally:
        os.close(leader)


def read_all(descriptor: int) -> bytes:
    found = b""
    with suppress(OSError):  # what a terminal says whose other side is closed
        while data := os.read(descriptor, 65536):
            found += data
    return found


async def test_a_killed_run_is_gone_on_with_by_the_same_version(
    publish: Publisher, backbone: Backbone, fake: FakeRunner, tmp_path: Path
) -> None:
    publish("sst2", seed=1)
    rows, out = write_rows(tmp_path / "rows.jsonl", 400), tmp_path / "out.jsonl"
    async with serving(make_settings(publish.store.root), backbone, fake) as served:
        arguments = ["score", str(rows), "--adapter", "sst2", "--out", str(out)]
        arguments += ["--server", served.target, "--columns", "text", "--at-once", "4"]
        command = [sys.executable, "-m", "upt_server.cli", *arguments]
        process = await asyncio.create_subprocess_exec(*command)
        async with asyncio.timeout(TIMEOUT_S):
            while not out.exists() or out.read_bytes().count(b"\n") < 40:  # noqa: ASYNC110 - another process writes it
                await asyncio.sleep(0.01)
        fake.hold()
        process.kill()
        await process.wait()
        fake.release()
        before = out.read_bytes()
        assert 40 <= before.count(b"\n") < 400
        assert (tmp_path / "out.jsonl.resume").exists()
        result = await asyncio.to_thread(upt_server, *arguments)
        assert result.returncode == 65, result.stderr
        assert "going on behind row" in result.stderr
        assert "40 of 400 rows have no answer" in result.stderr  # by both runs
        whole = tmp_path / "whole.jsonl"
        assert (
            await asyncio.to_thread(upt_server, *arguments, "--out", str(whole))
        ).returncode == 65
    assert out.read_bytes() == whole.read_bytes()
    assert out.read_bytes().startswith(before[: before.rindex(b"\n") + 1])
    assert not (tmp_path / "out.jsonl.resume").exists()


async def test_columns_that_the_file_lacks_can_be_put_right(served: Served, tmp_path: Path) -> None:
    rows, out = tmp_path / "rows.csv", tmp_path / "out.jsonl"
    rows.write_text("words,team\na good film,red\n")
    arguments = ("score", rows, "--adapter", "sst2", "--server", served.target, "--out", out)
    result = await asyncio.to_thread(upt_server, *arguments)
    assert (result.returncode, "--columns NAME" in result.stderr) == (64, True), result.stderr
    assert names_in(tmp_path).isdisjoint({"out.jsonl", "out.jsonl.resume"})
    result = await asyncio.to_thread(upt_server, *arguments, "--columns", "words")
    assert (result.returncode, len(out.read_text().splitlines())) == (0, 1), result.stderr


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (("--adapter", "nobody"), 66, "no adapter nobody"),
        (("--adapter", "squad", "--columns", "text"), 64, "takes question and context"),
        (("--adapter", "sst2", "--stride", "4"), 64, "stride is for spans and entities"),
        (("--adapter", "sst2", "--max-tokens", "4000"), 64, "max_tokens 4000"),
        (("--adapter", "sst2", "--token-file", "nowhere"), 64, "cannot read a token"),
    ],
)
async def test_a_job_that_cannot_be_done_begins_no_file(
    served: Served, tmp_path: Path, arguments: tuple[str, ...], code: int, message: str
) -> None:
    rows, out = write_rows(tmp_path / "rows.jsonl", 3), tmp_path / "out.jsonl"
    result = await asyncio.to_thread(
        upt_server, "score", rows, "--server", served.target, "--out", out, *arguments
    )
    assert (result.returncode, message in result.stderr) == (code, True), result.stderr
    assert not names_in(tmp_path) & {"out.jsonl", "out.jsonl.resume"}


def test_no_server_is_unavailable(tmp_path: Path) -> None:
    rows = write_rows(tmp_path / "rows.jsonl", 3)
    arguments = ("--adapter", "sst2", "--server", "127.0.0.1:1", "--out", tmp_path / "out.jsonl")
    result = upt_server("score", rows, *arguments)
    assert (result.returncode, "cannot reach" in result.stderr) == (69, True)


@pytest.mark.slow
def test_without_a_server_it_runs_one_of_its_own(tmp_path: Path) -> None:
    Store(tmp_path / "home").copy_from(embedded_catalogue(), Reference(name="mrpc"))
    rows = tmp_path / "rows.csv"
    rows.write_text(
        "sentence1,sentence2\n"
        "The cat sat on the mat.,A cat was sitting on the mat.\n"
        "The cat sat on the mat.,Shares of the company fell by a tenth on Monday.\n"
    )
    out = tmp_path / "out.jsonl"
    arguments = ("--adapter", "mrpc", "--out", out, "--home", tmp_path / "home", "--gates")
    result = upt_server("score", rows, *arguments)
    assert result.returncode == 0, result.stderr
    first, second = (json.loads(line) for line in out.read_text().splitlines())
    assert first["label"] != second["label"]
    assert len(first["gates"]) == 6


def test_rows_that_are_not_there_start_no_server(tmp_path: Path) -> None:
    result = upt_server(
        "score", tmp_path / "rows.jsonl", "--adapter", "sst2", "--out", tmp_path / "out.jsonl"
    )
    assert (result.returncode, "no file" in result.stderr) == (66, True)


def test_a_folder_that_is_not_there_starts_no_server(tmp_path: Path) -> None:
    rows, out = write_rows(tmp_path / "rows.jsonl", 3), tmp_path / "nowhere" / "out.jsonl"
    result = upt_server("score", rows, "--adapter", "sst2", "--out", out)
    message = f"the folder of --out does not exist: {out.parent}; make it first"
    assert (result.returncode, message in result.stderr) == (74, True), result.stderr


def script(file: Path, *lines: str) -> str:
    file.write_text("\n".join(["#!/bin/sh", *lines, ""]))
    file.chmod(0o755)
    return str(file)


def test_an_own_server_that_does_not_start_says_why(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    program = script(tmp_path / "python", "echo first >&2", "echo no backbone >&2", "exit 66")
    monkeypatch.setattr(sys, "executable", program)
    with pytest.raises(Unavailable, match="did not start: no backbone"), own_server(None):
        pass


def test_an_own_server_that_does_not_stop_is_killed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    lines = ("trap '' TERM", """echo '{"grpc_port": 7}'""", "while :; do sleep 0.05; done")
    monkeypatch.setattr(sys, "executable", script(tmp_path / "python", *lines))
    monkeypatch.setattr("upt_server.scoring.own_server._PATIENCE_S", 0.1)
    with own_server(tmp_path) as target:
        assert target == "127.0.0.1:7"


def test_the_digest_and_the_estimate_are_those_of_the_file(tmp_path: Path) -> None:
    file = write_rows(tmp_path / "rows.jsonl", 30)
    digest, lines = digest_and_lines(file)
    assert lines == 30
    assert digest == Reference.parse(f"a@{digest}").digest
