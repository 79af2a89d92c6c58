"""Render, lint and validate the Helm chart; runs in an environment of its own, without upt.

Reads from stdin values by a case's name and prints by that name what came of them: the manifests,
what is wrong with them, or why there are none.
"""

import json
import sys
from pathlib import Path

import helm_python
import kubernetes_validate
import yaml

VERSIONS = ("1.29", kubernetes_validate.latest_version())
OTHERS = (
    "monitoring.coreos.com/v1",
)  # kinds of the Prometheus operator, of which no schema is here


def main() -> None:
    """Answer the cases on stdin."""
    chart = Path(sys.argv[1])
    cases = json.load(sys.stdin)
    json.dump({name: answer(chart, values) for name, values in cases.items()}, sys.stdout)


def answer(path: Path, values: dict) -> dict:
    """Return the manifests and what Helm and Kubernetes' own schemas say against them."""
    try:
        with helm_python.Chart.load(path) as chart:
            chart.validate_schema(values)
            files = chart.render(values, name="web", namespace="serving", is_upgrade=True)
    except helm_python.HelmError as error:
        return {"error": str(error)}
    manifests = [
        manifest
        for name, text in files.items()
        if name.endswith(".yaml")
        for manifest in yaml.safe_load_all(text)
        if manifest
    ]
    report = helm_python.lint(path, values, strict=True, namespace="serving")
    problems = [each["error"] for each in report["messages"] if each["severity"] > 1]
    return {"manifests": manifests, "problems": [*problems, *schema_problems(manifests)]}


def schema_problems(manifests: list[dict]) -> list[str]:
    """Hold every manifest to the schemas of Kubernetes."""
    found = []
    for manifest in manifests:
        if manifest["apiVersion"] in OTHERS:
            continue
        for version in VERSIONS:
            try:
                kubernetes_validate.validate(manifest, version, strict=True)
            except kubernetes_validate.ValidationError as error:
                found.append(f"{manifest['kind']}, {version}: {error}")
    return found


if __name__ == "__main__":
    main()
