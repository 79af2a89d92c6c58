"""The Helm chart, rendered by Helm and held to the schemas of Kubernetes."""

import json
import os
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml
from typer.core import TyperGroup
from typer.main import get_command

from upt_server.cli import app
from upt_server.configuration import options_of, read_file

ROOT = Path(__file__).parents[2]
CHART = ROOT / "deploy/helm/upt"
PYTHON = Path(os.environ.get("DEPLOY_VENV", ".venv-deploy")) / "bin" / "python"
Manifest = Any  # whatever Kubernetes takes
EVERYTHING = {
    "tokens": {"existingSecret": "tokens"},
    "tls": {"existingSecret": "tls"},
    "admin": {"enabled": True},
    "backbone": {"existingClaim": "backbone"},
    "zoo": {
        "persistent": True,
        "remotes": 'remotes = ["oci://r.example/x"]\n',
        "registrySecret": "r",
    },
    "autoscaling": {"enabled": True},
    "serviceMonitor": {"enabled": True, "tokenSecret": "scraper", "labels": {"release": "p"}},
    "alerts": {"enabled": True},
    "networkPolicy": {"callers": [{"namespaceSelector": {}}]},
    "server": {"route": ["a:x=1,y=2"], "drain-timeout-s": 12.5, "max-queue-tokens": 2000000},
    "env": [{"name": "OMP_NUM_THREADS", "value": "2"}],
    "preload": ["sst2", "squad:stable"],
}
CASES: dict[str, dict[str, object]] = {
    "defaults": {},
    "everything": EVERYTHING,
    "nothing": {
        "adapters": [],
        "preload": [],
        "podDisruptionBudget": {"enabled": False},
        "networkPolicy": {"enabled": False},
    },
    "operators without tokens": {"admin": {"enabled": True}},
    "misspelt": {"replicaz": 3},
    "what the chart decides": {"server": {"grpc-port": 9}},
}


@pytest.fixture(scope="module")
def answers() -> dict[str, dict[str, Manifest]]:
    if not PYTHON.exists():
        pytest.skip("no environment with Helm; `make test` makes one")
    done = subprocess.run(
        [PYTHON, Path(__file__).with_name("chart_calls.py"), CHART],
        input=json.dumps(CASES),
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    found: dict[str, dict[str, Manifest]] = json.loads(done.stdout)
    return found


def one(answer: dict[str, Manifest], kind: str) -> Manifest:
    (found,) = (each for each in answer["manifests"] if each["kind"] == kind)
    return found


def kinds(answer: dict[str, Manifest]) -> set[str]:
    return {each["kind"] for each in answer["manifests"]}


@pytest.mark.parametrize("case", ["defaults", "everything", "nothing"])
def test_helm_and_kubernetes_find_nothing_wrong(
    answers: dict[str, dict[str, Manifest]], case: str
) -> None:
    assert answers[case].get("error") is None
    assert answers[case]["problems"] == []


@pytest.mark.parametrize("case", ["defaults", "everything", "nothing"])
def test_the_servers_file_is_one_that_the_server_takes(
    answers: dict[str, dict[str, Manifest]], case: str, tmp_path: Path
) -> None:
    group = get_command(app)
    assert isinstance(group, TyperGroup)
    file = tmp_path / "server.toml"
    file.write_text(one(answers[case], "ConfigMap")["data"]["server.toml"])
    read_file(file, options_of(group.commands["run"].params))
    given = group.commands["run"].make_context("run", ["--config", str(file)]).params
    assert (given["grpc_port"], given["http_port"]) == (8001, 8000)
    assert given["insecure"] is (case != "everything")
    if case == "everything":
        assert given["preload"] == "sst2,squad:stable"
        assert given["route"] == ["a:x=1,y=2"]
        assert (given["drain_timeout_s"], given["max_queue_tokens"]) == (12.5, 2_000_000)
        assert given["admin_port"] == 8002


def test_what_is_switched_on_is_there_and_nothing_else(
    answers: dict[str, dict[str, Manifest]],
) -> None:
    few = {"Deployment", "Service", "ServiceAccount", "ConfigMap"}
    assert kinds(answers["nothing"]) == few
    assert kinds(answers["defaults"]) == {*few, "PodDisruptionBudget", "NetworkPolicy"}
    assert kinds(answers["everything"]) == {
        *kinds(answers["defaults"]),
        *("HorizontalPodAutoscaler", "PersistentVolumeClaim", "Job"),
        *("ServiceMonitor", "PrometheusRule"),
    }


@pytest.mark.parametrize("case", ["defaults", "everything"])
def test_no_container_is_root_or_writes_to_its_root(
    answers: dict[str, dict[str, Manifest]], case: str
) -> None:
    for kind in ("Deployment", "Job"):
        for owner in (each for each in answers[case]["manifests"] if each["kind"] == kind):
            pod = owner["spec"]["template"]["spec"]
            assert pod["securityContext"]["runAsNonRoot"]
            assert pod["enableServiceLinks"] is False
            for container in [*pod["containers"], *pod.get("initContainers", ())]:
                assert container["securityContext"]["readOnlyRootFilesystem"]
                mounted = {mount["name"] for mount in container["volumeMounts"]}
                assert mounted <= {volume["name"] for volume in pod["volumes"]}


def test_probes_speak_what_the_ports_speak(answers: dict[str, dict[str, Manifest]]) -> None:
    (clear,) = one(answers["defaults"], "Deployment")["spec"]["template"]["spec"]["containers"]
    (tls,) = one(answers["everything"], "Deployment")["spec"]["template"]["spec"]["containers"]
    assert clear["readinessProbe"]["grpc"] == {"port": 8001}
    assert clear["livenessProbe"]["httpGet"]["path"] == "/healthz"
    for probe in ("startupProbe", "readinessProbe", "livenessProbe"):
        assert tls[probe]["httpGet"]["scheme"] == "HTTPS"


def test_the_selectors_find_the_pods(answers: dict[str, dict[str, Manifest]]) -> None:
    everything = answers["everything"]
    deployment = one(everything, "Deployment")
    labels = deployment["spec"]["template"]["metadata"]["labels"].items()
    services = [each for each in everything["manifests"] if each["kind"] == "Service"]
    selectors = [
        *(service["spec"]["selector"] for service in services),
        one(everything, "PodDisruptionBudget")["spec"]["selector"]["matchLabels"],
        one(everything, "NetworkPolicy")["spec"]["podSelector"]["matchLabels"],
        deployment["spec"]["selector"]["matchLabels"],
    ]
    assert all(selector.items() <= labels for selector in selectors)
    job = one(everything, "Job")["spec"]["template"]["metadata"]["labels"].items()
    assert not any(selector.items() <= job for selector in selectors)
    target = one(everything, "HorizontalPodAutoscaler")["spec"]["scaleTargetRef"]["name"]
    assert target == deployment["metadata"]["name"] == "web-upt"


def test_the_autoscaler_asks_for_what_the_rules_of_the_adapter_make(
    answers: dict[str, dict[str, Manifest]],
) -> None:
    rules = yaml.safe_load((ROOT / "deploy/prometheus/adapter_rules.yaml").read_text())
    metrics = one(answers["everything"], "HorizontalPodAutoscaler")["spec"]["metrics"]
    asked = {metric["pods"]["metric"]["name"] for metric in metrics}
    assert asked == {rule["name"]["as"] for rule in rules["rules"]["custom"]}


def test_the_alerts_are_those_that_are_tested(answers: dict[str, dict[str, Manifest]]) -> None:
    alerts = yaml.safe_load((ROOT / "deploy/prometheus/alerts.yaml").read_text())
    assert one(answers["everything"], "PrometheusRule")["spec"] == alerts


@pytest.mark.parametrize(
    ("case", "said"),
    [
        ("operators without tokens", "admin.enabled needs tokens.existingSecret"),
        ("misspelt", "replicaz"),
        ("what the chart decides", "server"),
    ],
)
def test_values_that_make_no_sense_are_refused(
    answers: dict[str, dict[str, Manifest]], case: str, said: str
) -> None:
    assert said in answers[case]["error"]
