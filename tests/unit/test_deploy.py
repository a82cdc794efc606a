"""Compose file, images, Kubernetes manifests, alerts and dashboard agree with the code and with each other.

No container engine and no cluster is needed; where promtool or kustomize are installed they are asked as well.
"""

import json
import re
import shutil
import subprocess
from pathlib import Path

import jsonschema
import pytest
import yaml
from prometheus_client.metrics import MetricWrapperBase

from pipeline.cli.main import COMMANDS
from pipeline.config import build_config, load_config
from pipeline.local import jars
from pipeline.metrics import Metrics

ROOT = Path(__file__).parent.parent.parent
DEPLOY = ROOT / "deploy"
COMPOSE = yaml.safe_load((ROOT / "docker-compose.yml").read_text())
SERVICES = COMPOSE["services"]
OURS = {name: service for name, service in SERVICES.items() if service["image"].startswith("narrows:")}
TRAINING = {"train", "tune", "evaluate", "report"}


def metric_names() -> set[str]:
    """Every series that a worker's /metrics can show, labels left out."""
    suffixes = {"counter": ["_total"], "histogram": ["_bucket", "_sum", "_count"], "info": ["_info"], "gauge": [""]}
    metrics = [value for value in vars(Metrics()).values() if isinstance(value, MetricWrapperBase)]
    return {f"{metric._name}{suffix}" for metric in metrics for suffix in suffixes[metric._type]}


def used_metrics(query: str) -> set[str]:
    """Names of ours in a PromQL query."""
    return set(re.findall(r"\bnarrows_[a-z_]+\b", query))


# --- docker-compose.yml


def test_the_compose_file_follows_the_official_schema():
    schema = json.loads((ROOT / "tests/schemas/compose-spec.json").read_text())
    validator = jsonschema.validators.validator_for(schema)(schema)
    assert [f"{error.json_path}: {error.message}" for error in validator.iter_errors(COMPOSE)] == []


def test_the_schema_refuses_a_key_that_compose_does_not_know():
    schema = json.loads((ROOT / "tests/schemas/compose-spec.json").read_text())
    wrong = {"services": {"kafka": {"image": "a:1", "port": ["1:1"]}}}
    assert not jsonschema.validators.validator_for(schema)(schema).is_valid(wrong)


@pytest.mark.parametrize("name", SERVICES)
def test_every_published_port_is_bound_to_loopback(name):
    assert all(port.startswith("127.0.0.1:") for port in SERVICES[name].get("ports", []))


@pytest.mark.parametrize("name", SERVICES)
def test_every_image_is_pinned(name):
    assert re.fullmatch(r"[\w./-]+:[\w.-]*\w", SERVICES[name]["image"])
    assert not SERVICES[name]["image"].endswith(":latest")


@pytest.mark.parametrize("name", sorted(set(SERVICES) - {"topics", "trainer"}))
def test_every_server_has_a_health_check(name):
    assert SERVICES[name]["healthcheck"]["test"][0] == "CMD"


@pytest.mark.parametrize("name", OURS)
def test_our_containers_run_without_rights_on_a_read_only_root(name):
    assert OURS[name]["read_only"] is True
    assert OURS[name]["cap_drop"] == ["ALL"]


@pytest.mark.parametrize("name", OURS)
def test_our_containers_call_commands_that_there_are(name):
    assert OURS[name]["command"][0] in COMMANDS


def test_every_service_that_is_waited_for_has_what_is_waited_for():
    for service in SERVICES.values():
        for other, rule in service.get("depends_on", {}).items():
            if rule["condition"] == "service_healthy":
                assert "healthcheck" in SERVICES[other]
            else:
                assert SERVICES[other]["restart"] == "no"


def test_files_that_are_mounted_or_built_are_there():
    for service in SERVICES.values():
        for volume in service.get("volumes", []):
            source = re.sub(r"\$\{\w+:-([^}]+)\}", r"\1", volume).split(":")[0]
            assert source in COMPOSE["volumes"] or (ROOT / source).exists(), source
        if "build" in service:
            assert (ROOT / service["build"]["dockerfile"]).is_file()


def test_the_broker_in_containers_is_the_one_that_tests_run_on():
    assert SERVICES["kafka"]["image"] == f"apache/kafka:{jars.lock().kafka}"


def test_the_configuration_in_containers_can_be_read():
    file = yaml.safe_load((DEPLOY / "narrows.yaml").read_text())
    config = build_config(file, OURS["worker"]["environment"], DEPLOY)
    assert config.kafka.hosts == ["kafka"]
    assert load_config(DEPLOY / "narrows.yaml", {}).streams["pump"].topic == "readings"


# --- images


@pytest.mark.parametrize("file", sorted(DEPLOY.glob("docker/*.Dockerfile")), ids=lambda file: file.stem)
def test_an_image_runs_as_nobody_special_and_copies_what_its_context_holds(file):
    text = file.read_text()
    kept = {line[1:] for line in (ROOT / ".dockerignore").read_text().splitlines() if line.startswith("!")}
    for line in re.findall(r"^COPY (?!--from)(.+)$", text, re.MULTILINE):
        for source in line.split()[:-1]:
            assert source in kept
            assert (ROOT / source).exists()
    last_stage = text[text.rindex("\nFROM "):]
    assert "USER 10001:10001" in last_stage
    assert all(":" in image for image in re.findall(r"^FROM ((?!base|build)\S+)", text, re.MULTILINE))
    command = json.loads(re.search(r"^CMD (.+)$", last_stage, re.MULTILINE)[1])
    assert command[0] in COMMANDS


def test_images_install_with_the_installer_of_the_set_up():
    wanted = re.search(r'UV = "(.+)"', (ROOT / "tools/setup.py").read_text())[1]
    for file in DEPLOY.glob("docker/*.Dockerfile"):
        assert wanted in file.read_text()


# --- Prometheus and Grafana

ALERTS = [
    rule
    for group in yaml.safe_load((DEPLOY / "prometheus/alerts.yml").read_text())["groups"]
    for rule in group["rules"]
]
PANELS = json.loads((DEPLOY / "grafana/dashboards/narrows.json").read_text())["panels"]


@pytest.mark.parametrize("rule", ALERTS, ids=lambda rule: rule["alert"])
def test_an_alert_names_metrics_that_there_are_and_has_its_page_in_the_runbook(rule):
    assert used_metrics(rule["expr"]) <= metric_names()
    assert f"\n## {rule['alert']}\n" in (DEPLOY / "RUNBOOK.md").read_text()


def test_the_runbook_has_no_page_for_an_alert_that_is_gone():
    pages = re.findall(r"^## (Narrows\w+)$", (DEPLOY / "RUNBOOK.md").read_text(), re.MULTILINE)
    assert sorted(pages) == sorted(rule["alert"] for rule in ALERTS)


@pytest.mark.parametrize("panel", PANELS, ids=lambda panel: panel["title"])
def test_a_panel_names_metrics_that_there_are(panel):
    for target in panel["targets"]:
        assert used_metrics(target["expr"])
        assert used_metrics(target["expr"]) <= metric_names()


def test_the_dashboard_is_what_its_source_writes(tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(str(ROOT / "tools"))
    import grafana

    monkeypatch.setattr(grafana, "OUT", tmp_path / "narrows.json")
    grafana.main()
    assert (tmp_path / "narrows.json").read_text() == (DEPLOY / "grafana/dashboards/narrows.json").read_text()


@pytest.mark.skipif(shutil.which("promtool") is None, reason="promtool is not installed")
def test_alerts_fire_when_they_should():
    said = subprocess.run(
        ["promtool", "test", "rules", str(DEPLOY / "prometheus/alerts_test.yml")], capture_output=True, text=True
    )
    assert said.returncode == 0, said.stdout + said.stderr


# --- Kubernetes

BASE = DEPLOY / "kubernetes" / "base"
MANIFESTS = [
    manifest
    for file in sorted(BASE.glob("*.yaml"))
    if file.name not in ("kustomization.yaml", "narrows.yaml")
    for manifest in yaml.safe_load_all(file.read_text())
]
WORKLOADS = [manifest for manifest in MANIFESTS if manifest["kind"] in ("StatefulSet", "Deployment", "Job")]


@pytest.mark.parametrize("manifest", WORKLOADS, ids=lambda manifest: manifest["metadata"]["name"])
def test_a_pod_runs_restricted_and_mounts_what_it_declares(manifest):
    pod = manifest["spec"]["template"]["spec"]
    [container] = pod["containers"]
    assert pod["securityContext"]["runAsNonRoot"] is True
    assert pod["automountServiceAccountToken"] is False
    assert container["securityContext"]["readOnlyRootFilesystem"] is True
    assert container["securityContext"]["allowPrivilegeEscalation"] is False
    assert container["resources"]["limits"]["memory"]
    assert {mount["name"] for mount in container["volumeMounts"]} == {volume["name"] for volume in pod["volumes"]}
    assert container["args"][0] in COMMANDS
    kustomization = yaml.safe_load((BASE / "kustomization.yaml").read_text())
    assert container["image"] in {image["name"] for image in kustomization["images"]}


@pytest.mark.parametrize("manifest", WORKLOADS, ids=lambda manifest: manifest["metadata"]["name"])
def test_a_workload_selects_the_pods_that_it_makes(manifest):
    labels = manifest["spec"]["template"]["metadata"]["labels"]
    if manifest["kind"] != "Job":
        assert manifest["spec"]["selector"]["matchLabels"] == labels


def test_the_settings_of_the_cluster_can_be_read(tmp_path):
    settings = dict(line.split("=", 1) for line in (BASE / "settings.env").read_text().split())
    config = build_config(yaml.safe_load((BASE / "narrows.yaml").read_text()), settings, tmp_path)
    assert config.kafka.security_protocol == "SASL_SSL"
    keys = {Path(value).name for value in settings.values() if value.startswith("/etc/narrows/secret/")}
    documented = (DEPLOY / "kubernetes/README.md").read_text()
    assert all(f"{key}" in documented for key in keys)


def test_every_manifest_is_listed_and_every_listed_one_is_there():
    for folder in (BASE, DEPLOY / "kubernetes/keda"):
        listed = yaml.safe_load((folder / "kustomization.yaml").read_text())["resources"]
        there = {file.name for file in folder.glob("*.yaml")} - {"kustomization.yaml", "narrows.yaml"}
        assert {name for name in listed if name.endswith(".yaml")} == there


def test_the_autoscaler_watches_the_group_and_the_topic_of_the_workers():
    [scaled, _] = yaml.safe_load_all((DEPLOY / "kubernetes/keda/scaling.yaml").read_text())
    [trigger] = scaled["spec"]["triggers"]
    settings = dict(line.split("=", 1) for line in (BASE / "settings.env").read_text().split())
    config = build_config(yaml.safe_load((BASE / "narrows.yaml").read_text()), settings, BASE)
    assert trigger["metadata"]["bootstrapServers"] == config.kafka.bootstrap
    assert trigger["metadata"]["consumerGroup"] == config.kafka.group
    assert trigger["metadata"]["topic"] == config.streams["pump"].topic
    assert scaled["spec"]["scaleTargetRef"]["name"] in {manifest["metadata"]["name"] for manifest in WORKLOADS}


@pytest.mark.skipif(shutil.which("kustomize") is None, reason="kustomize is not installed")
@pytest.mark.parametrize("overlay", ["base", "keda", "gpu"])
def test_kustomize_builds(overlay):
    said = subprocess.run(
        ["kustomize", "build", str(DEPLOY / "kubernetes" / overlay)], capture_output=True, text=True
    )
    assert said.returncode == 0, said.stderr
    built = list(yaml.safe_load_all(said.stdout))
    [worker] = [manifest for manifest in built if manifest["kind"] == "StatefulSet"]
    image = worker["spec"]["template"]["spec"]["containers"][0]["image"]
    assert image == ("narrows:gpu" if overlay == "gpu" else "narrows:cpu")
    assert ("replicas" in worker["spec"]) == (overlay != "keda")
