import json
from pathlib import Path

import pytest

from upt_server import working_set
from upt_server.app import build_engine
from upt_server.metrics import Metrics
from upt_server.working_set import read_working_set, remembering
from upt_testing.serving import FakeRunner, make_settings, until
from upt_zoo.backbone import Backbone
from upt_zoo.local.store import Store
from upt_zoo.local.tags import remove
from upt_zoo.references import Reference


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "working-set.json"


async def test_what_was_in_memory_is_loaded_again_in_its_order(
    store: Store, backbone: Backbone, fake: FakeRunner, file: Path, caplog: pytest.LogCaptureFixture
) -> None:
    first = build_engine(make_settings(store.root), backbone, fake, Metrics())
    async with remembering(file, first.resident):
        await first.warm([Reference.parse(name) for name in ("cola", "sst2", "stsb")])
    assert [each.name for each in first.resident()] == ["cola", "sst2", "stsb"]
    await first.close()
    remove(store, Reference.parse("sst2:1.0.0"))
    second = build_engine(make_settings(store.root), backbone, fake, Metrics())
    await second.warm(read_working_set(file))
    assert [each.name for each in second.resident()] == ["cola", "stsb"]
    assert "not loaded again: no adapter sst2" in caplog.text
    await second.close()


async def test_the_file_follows_what_is_in_memory_while_the_server_runs(
    file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(working_set, "_INTERVAL_S", 0.001)
    memory = [Reference.parse("sst2:1.0.0")]
    async with remembering(file, lambda: tuple(memory)):
        await until(lambda: len(read_working_set(file)) == 1)
        memory.append(Reference.parse("cola:1.0.0"))
        await until(lambda: len(read_working_set(file)) == 2)
    assert read_working_set(file) == tuple(memory)


@pytest.mark.parametrize(
    "content", [b"", b"\0" * 99, b"[]", b'{"adapters": [1]}', b'{"adapters": ["No Such"]}']
)
def test_a_file_of_another_form_is_told_and_left_out(
    file: Path, content: bytes, caplog: pytest.LogCaptureFixture
) -> None:
    assert read_working_set(file) == ()
    assert not caplog.text
    file.write_bytes(content)
    assert read_working_set(file) == ()
    assert "is no list of adapters" in caplog.text


async def test_a_file_that_cannot_be_written_stops_nobody(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    async with remembering(tmp_path / "nowhere" / "file", tuple):
        pass
    assert "cannot write" in caplog.text
    file = tmp_path / "file"
    async with remembering(file, tuple):
        pass
    assert json.loads(file.read_text()) == {"adapters": []}
