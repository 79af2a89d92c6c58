import json
from pathlib import Path

import pytest
from typer.core import TyperGroup
from typer.main import get_command

from upt_server import configuration
from upt_server.cli import app
from upt_zoo.errors import InvalidInput

GROUP = get_command(app)
assert isinstance(GROUP, TyperGroup)
RUN = GROUP.commands["run"]
OPTIONS = configuration.options_of(RUN.params)


def settle(*arguments: str) -> dict[str, object]:
    """Return what each option of ``upt-server run`` is in the end."""
    return RUN.make_context("run", list(arguments)).params


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "server.toml"


def test_the_command_line_goes_before_a_variable_before_the_file_before_the_default(
    file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file.write_text("grpc-port = 1\nhttp-port = 2\nmax-queue-tokens = 3\n")
    monkeypatch.setenv("UPT_SERVER_GRPC_PORT", "11")
    monkeypatch.setenv("UPT_SERVER_HTTP_PORT", "12")
    given = settle("--config", str(file), "--grpc-port", "21")
    assert [given[name] for name in ("grpc_port", "http_port", "max_queue_tokens")] == [21, 12, 3]
    assert given["max_batch_tokens"] == 2048


def test_the_file_itself_may_be_named_by_a_variable(
    file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file.write_text('home = "/zoo"\nroute = ["a:x=1,y=2", "b:x=1,y=2"]\ninsecure = true\n')
    monkeypatch.setenv("UPT_SERVER_CONFIG", str(file))
    given = settle()
    assert given["home"] == Path("/zoo")
    assert given["route"] == ["a:x=1,y=2", "b:x=1,y=2"]
    assert given["insecure"] is True


def test_switches_and_lists_can_be_variables(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("UPT_SERVER_JSON", "1")
    monkeypatch.setenv("UPT_SERVER_NO_METRICS", "0")
    monkeypatch.setenv("UPT_SERVER_WEIGHT", "a=1 b=2")
    given = settle()
    assert (given["as_json"], given["no_metrics"], given["weight"]) == (True, False, ["a=1", "b=2"])


def test_every_option_can_stand_in_the_file(file: Path) -> None:
    values = {
        configuration.key_of(each): True if each.is_flag else ["x"] if each.multiple else "1"
        for each in OPTIONS
        if configuration.key_of(each) != "config"
    }
    file.write_text("".join(f"{key} = {json.dumps(value)}\n" for key, value in values.items()))
    found = configuration.read_file(file, OPTIONS)
    assert found.keys() == {each.name for each in OPTIONS} - {"config"}
    assert list(found.values()) == list(values.values())


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("grpc-prot = 1", "no option grpc-prot; did you mean grpc-port"),
        ("grpc_port = 1", "no option grpc_port; did you mean grpc-port"),
        ("[tls]\ncert = 'x'", "no option tls"),
        ("config = 'other.toml'", "no option config"),
        ("insecure = 'yes'", "insecure: expected true or false, got 'yes'"),
        ("grpc-port = true", "grpc-port: expected a string or a number, got True"),
        ("preload = ['sst2']", "preload: expected a string or a number, got ['sst2']"),
        ("route = 'a:x=1,y=2'", "route: expected a list of strings, got 'a:x=1,y=2'"),
        ("grpc-port = ", "as TOML"),
    ],
)
def test_what_no_option_takes_is_refused(file: Path, text: str, said: str) -> None:
    file.write_text(text)
    with pytest.raises(InvalidInput) as caught:
        settle("--config", str(file))
    assert said in str(caught.value)
    assert str(file) in str(caught.value)


def test_a_file_that_is_not_there_is_named(file: Path) -> None:
    with pytest.raises(InvalidInput, match=r"cannot read .*server\.toml"):
        settle("--config", str(file))


def test_a_variable_that_no_option_has_is_told_of() -> None:
    names = ["UPT_SERVER_GRPC_PROT", "UPT_SERVER_GRPC_PORT", "UPT_ZOO_HOME", "PATH"]
    (warning,) = configuration.unknown_variables(names, OPTIONS)
    assert warning.startswith("UPT_SERVER_GRPC_PROT names no option; did you mean UPT_SERVER_GRPC_")


def test_the_example_for_a_container_is_a_configuration() -> None:
    given = settle("--config", str(Path(__file__).parents[2] / "deploy/server.toml"))
    assert given["home"] == Path("/var/lib/upt/zoo")
