"""``deploy/`` against the server that it deploys: metrics, options, files and versions."""

import json
import re
import subprocess
import tomllib
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml
from typer.core import TyperGroup
from typer.main import get_command

from upt_server.cli import app
from upt_server.metrics import Metrics
from upt_testing.registries import need

ROOT = Path(__file__).parents[2]
DEPLOY = ROOT / "deploy"
ALERTS = yaml.safe_load((DEPLOY / "prometheus/alerts.yaml").read_text())
DASHBOARD = json.loads((DEPLOY / "grafana/dashboard.json").read_text())
VERSION = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"]
# given by Prometheus, Kubernetes or the histogram itself
SCRAPED_LABELS = {"job", "instance", "namespace", "pod", "le"}


def exported() -> dict[str, set[str]]:
    """Return the labels of every series that the server has, by name."""
    registry = Metrics()._registry
    series: dict[str, set[str]] = {}
    for collector, names in registry._collector_to_names.items():
        for name in names:
            series[name] = {*collector._labelnames}  # type: ignore[attr-defined]  # no public way
    return series


def expressions() -> Iterator[str]:
    for group in ALERTS["groups"]:
        yield from (rule["expr"] for rule in group["rules"])
    for panel in DASHBOARD["panels"]:
        yield from (target["expr"] for target in panel.get("targets", ()))
    for variable in DASHBOARD["templating"]["list"]:
        if variable["type"] == "query":
            yield variable["query"]["query"]
    for rule in yaml.safe_load((DEPLOY / "prometheus/adapter_rules.yaml").read_text())["rules"][
        "custom"
    ]:
        yield rule["seriesQuery"]


EXPRESSIONS = sorted(set(expressions()))


@pytest.mark.parametrize("expression", EXPRESSIONS)
def test_every_metric_that_is_asked_for_is_one_that_the_server_has(expression: str) -> None:
    series = exported()
    names = re.findall(r"\b(upt_[a-z_]+)", expression)
    assert set(names) <= series.keys()
    assert names or expression.startswith("up{")
    for name, selectors in re.findall(r"\b(upt_[a-z_]+)\{([^}]*)\}", expression):
        assert set(re.findall(r"(\w+)\s*[=!]", selectors)) <= series[name] | SCRAPED_LABELS
    for grouping in re.findall(r"\bby \(([^)]*)\)", expression):
        labels = {label.strip() for label in grouping.split(",")}
        assert labels <= SCRAPED_LABELS.union(*(series[name] for name in names))


def test_the_dashboard_shows_what_an_operator_asks() -> None:
    shown = " ".join(EXPRESSIONS)
    for name in (
        *("upt_requests_total", "upt_request_duration_seconds_bucket", "upt_queue_depth"),
        *("upt_batch_tokens_sum", "upt_adapter_resident", "upt_adapter_evictions_total"),
        "upt_rejected_total",
    ):
        assert name in shown
    places = [
        (panel["gridPos"]["x"], panel["gridPos"]["y"], panel["id"]) for panel in DASHBOARD["panels"]
    ]
    assert len({place[:2] for place in places}) == len({place[2] for place in places})


def test_every_alert_has_a_test_in_which_it_is_raised_and_says_what_to_do() -> None:
    tests = yaml.safe_load((DEPLOY / "prometheus/alerts_test.yaml").read_text())["tests"]
    raised = {
        case["alertname"]
        for test in tests
        for case in test["alert_rule_test"]
        if case.get("exp_alerts")
    }
    rules = [rule for group in ALERTS["groups"] for rule in group["rules"]]
    assert raised == {rule["alert"] for rule in rules}
    assert all(rule["annotations"].keys() == {"summary", "action"} for rule in rules)
    documented = re.findall(r"^\| `(Upt\w+)` \|", (ROOT / "docs/deploy.md").read_text(), re.M)
    assert documented == [rule["alert"] for rule in rules]


@pytest.mark.parametrize(
    "arguments",
    [
        ("check", "config", "--syntax-only", "prometheus.yaml"),
        ("check", "rules", "alerts.yaml"),
        ("test", "rules", "alerts_test.yaml"),
    ],
)
def test_prometheus_takes_its_files_and_the_alerts_do_what_their_tests_say(
    arguments: tuple[str, ...],
) -> None:
    need("promtool")
    result = subprocess.run(
        ["promtool", *arguments],
        cwd=DEPLOY / "prometheus",
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert result.returncode == 0, result.stdout + result.stderr


def test_the_image_is_built_from_files_that_are_there_and_let_in() -> None:
    copied = re.findall(r"^COPY (?!--from)(.+) \S+$", (DEPLOY / "Dockerfile").read_text(), re.M)
    let_in = re.findall(r"^!(.+)$", (ROOT / ".dockerignore").read_text(), re.M)
    sources = {source for line in copied for source in line.split()}
    assert sources == set(let_in)
    assert all((ROOT / source).exists() for source in sources)


def test_compose_mounts_files_that_are_there_and_pins_its_images() -> None:
    compose = yaml.safe_load((DEPLOY / "compose.yaml").read_text())
    for service in compose["services"].values():
        assert re.search(r":[^:]*\d", service["image"])
        assert service["read_only"]
        for volume in service["volumes"]:
            source = volume.split(":")[0]
            named = source in compose["volumes"]
            assert named or (DEPLOY / source).exists(), source
        for port in service.get("ports", ()):
            assert port.startswith("127.0.0.1:")


def test_what_containers_run_is_a_command_that_the_server_takes() -> None:
    group = get_command(app)
    assert isinstance(group, TyperGroup)
    runtime = yaml.safe_load((DEPLOY / "kserve/cluster_serving_runtime.yaml").read_text())
    (container,) = runtime["spec"]["containers"]
    assert container["args"][0] == "run"
    given = group.commands["run"].make_context("run", container["args"][1:]).params
    ports = {port["containerPort"] for port in container["ports"]}
    assert ports == {given["http_port"], given["grpc_port"]}


def test_every_file_names_the_version_of_the_project() -> None:
    chart = yaml.safe_load((DEPLOY / "helm/upt/Chart.yaml").read_text())
    assert (chart["version"], chart["appVersion"]) == (VERSION, VERSION)
    for file in ("compose.yaml", "kserve/cluster_serving_runtime.yaml"):
        assert f"upt:{VERSION}" in (DEPLOY / file).read_text().replace("${UPT_TAG:-", "")
