"""The chart deploy/helm/dicomnode: the objects that it makes of a site's values, and the values that it refuses."""

from __future__ import annotations

import importlib
import tomllib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from dicomnode import config
from tests.helm import CHART, Refused, lint, merge, render

DIGEST = f"sha256:{'a' * 64}"
CUDA = f"sha256:{'b' * 64}"
SITE: dict[str, Any] = {
    "image": {"repository": "registry.example/dicomnode", "digest": DIGEST, "cudaDigest": CUDA},
    "database": {"secret": "dicomnode-database"},
    "web": {"tokenSecret": "dicomnode-web"},
}
EVERYTHING = merge(
    SITE,
    {
        "image": {"pullSecrets": ["registry"]},
        "storage": {"storageClass": "shared"},
        "node": {"secrets": ["tls"]},
        "service": {"loadBalancerSourceRanges": ["10.0.0.0/8"], "annotations": {"a": "b"}},
        "web": {
            "publicUrl": "https://node.example",
            "ingress": {"enabled": True, "className": "nginx", "host": "node.example", "tlsSecret": "node-tls"},
        },
        "workers": {"replicas": 2, "runtimeClassName": "nvidia", "nodeSelector": {"gpu": "yes"}},
        "ray": {"enabled": True, "maxReplicas": 8, "tokenSecret": "dicomnode-ray"},
        "monitoring": {"serviceMonitor": True, "alerts": True, "labels": {"release": "prometheus"}},
        "networkPolicy": {"senders": ["10.0.0.0/8"]},
    },
)
BOTH = pytest.mark.parametrize("values", [SITE, EVERYTHING], ids=["site", "everything"])

Objects = list[dict[str, Any]]


def find_object(objects: Objects, kind: str, name: str = "") -> dict[str, Any]:
    (found,) = [each for each in objects if each["kind"] == kind and name in ("", each["metadata"]["name"])]
    return found


def find_pods(objects: Objects) -> dict[str, dict[str, Any]]:
    """Return the specification of every pod by the name of its owner."""
    found = {
        each["metadata"]["name"]: each["spec"]["template"]["spec"] for each in objects if each["kind"] == "Deployment"
    }
    for ray in (each["spec"] for each in objects if each["kind"] == "RayCluster"):
        found["ray head"] = ray["headGroupSpec"]["template"]["spec"]
        found |= {f"ray {group['groupName']}": group["template"]["spec"] for group in ray["workerGroupSpecs"]}
    return found


def read_node_toml(objects: Objects) -> str:
    text: str = find_object(objects, "ConfigMap")["data"]["node.toml"]
    return text


@BOTH
def test_helm_finds_nothing_wrong(values: dict[str, Any], tmp_path: Path) -> None:
    assert lint(values, tmp_path) == []


@BOTH
def test_kubernetes_knows_every_object(values: dict[str, Any], tmp_path: Path) -> None:
    objects = render(values, tmp_path)
    try:
        validate: Callable[..., Any] = importlib.import_module("kubernetes_validate").validate
    except ImportError:
        pytest.skip("kubernetes-validate is not installed (pip install kubernetes-validate)")
    checked = [each["kind"] for each in objects if "." not in each["apiVersion"] or ".k8s.io/" in each["apiVersion"]]
    for each in objects:
        if each["kind"] in checked:
            validate(each, "1.31", strict=True)
    assert len(checked) >= 8


@BOTH
def test_no_pod_may_do_what_it_does_not_need(values: dict[str, Any], tmp_path: Path) -> None:
    found = find_pods(render(values, tmp_path))
    assert len(found) >= 2
    for name, pod in found.items():
        assert pod["securityContext"]["runAsNonRoot"] is True, name
        assert pod["securityContext"]["runAsUser"] == 10001, name
        for container in pod["containers"]:
            assert container["securityContext"] == {
                "allowPrivilegeEscalation": False, "readOnlyRootFilesystem": True, "capabilities": {"drop": ["ALL"]},
            }, name  # fmt: skip
            assert set(container["resources"]) == {"requests", "limits"}, name
            assert container["image"].rpartition("@")[2] in (DIGEST, CUDA), name


@BOTH
def test_every_pod_sees_the_same_spool_database_and_configuration(values: dict[str, Any], tmp_path: Path) -> None:
    objects = render(values, tmp_path)
    assert find_object(objects, "PersistentVolumeClaim")["spec"]["accessModes"] == ["ReadWriteMany"]
    for name, pod in find_pods(objects).items():
        mounted = {each["mountPath"]: each["name"] for each in pod["containers"][0]["volumeMounts"]}
        volumes = {each["name"]: each for each in pod["volumes"]}
        assert volumes[mounted["/var/lib/dicomnode"]]["persistentVolumeClaim"] == {"claimName": "site-data"}, name
        assert volumes[mounted["/etc/dicomnode"]]["configMap"] == {"name": "site"}, name
        secret = volumes[mounted["/run/secrets/database"]]["secret"]
        assert (secret["secretName"], secret["items"]) == ("dicomnode-database", [{"key": "url", "path": "url"}]), name


@BOTH
def test_the_node_reads_what_the_chart_writes(values: dict[str, Any], tmp_path: Path) -> None:
    path = tmp_path / "node.toml"
    path.write_text(read_node_toml(render(values, tmp_path)))
    found = config.load(path)
    assert str(found.database.url_file) == "/run/secrets/database/url"
    assert found.worker.concurrency == 0
    assert [route.name for route in found.routes] == ["raw-to-image"]


def test_a_gpu_goes_to_each_worker_and_to_nobody_else(tmp_path: Path) -> None:
    found = find_pods(render(SITE, tmp_path))
    gpu_limits = {
        name: pod["containers"][0]["resources"]["limits"].get("nvidia.com/gpu") for name, pod in found.items()
    }
    assert gpu_limits == {"site": None, "site-worker": 1}
    assert found["site-worker"]["containers"][0]["image"].endswith(CUDA)
    assert found["site"]["containers"][0]["image"].endswith(DIGEST)


def test_with_ray_the_gpus_are_those_of_rays_workers(tmp_path: Path) -> None:
    objects = render(EVERYTHING, tmp_path)
    gpu_limits = {
        name: pod["containers"][0]["resources"]["limits"].get("nvidia.com/gpu")
        for name, pod in find_pods(objects).items()
    }
    assert gpu_limits == {"site": None, "site-worker": None, "ray head": None, "ray gpu": 1}
    spec = find_object(objects, "RayCluster")["spec"]
    (group,) = spec["workerGroupSpecs"]
    assert spec["enableInTreeAutoscaling"] is True
    assert (group["minReplicas"], group["maxReplicas"]) == (0, 8)
    assert spec["headGroupSpec"]["rayStartParams"]["num-cpus"] == "0"
    driver = find_object(objects, "Deployment", "site-worker")["spec"]
    assert driver["replicas"] == 1
    assert "livenessProbe" not in driver["template"]["spec"]["containers"][0]  # the driver reports no worker
    assert spec["authOptions"] == {"mode": "token", "secretName": "dicomnode-ray"}
    variables = {each["name"]: each["value"] for each in driver["template"]["spec"]["containers"][0]["env"]}
    assert variables == {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN_PATH": "/run/secrets/ray/auth_token"}
    worker = tomllib.loads(read_node_toml(objects))["worker"]
    assert worker["device"] == "cuda"
    assert (worker["engine"], worker["ray_address"]) == ("ray", "ray://site-ray-head-svc:10001")


def test_without_ray_nothing_speaks_of_it(tmp_path: Path) -> None:
    assert "ray" not in yaml.safe_dump(render(SITE, tmp_path)).replace("array", "")


def test_senders_alone_reach_the_port_and_nobody_reaches_a_worker(tmp_path: Path) -> None:
    objects = render(EVERYTHING, tmp_path)
    dicom, pages = find_object(objects, "NetworkPolicy", "site")["spec"]["ingress"]
    assert dicom == {"ports": [{"port": "dicom"}], "from": [{"ipBlock": {"cidr": "10.0.0.0/8"}}]}
    assert pages["ports"] == [{"port": "web"}]
    assert "ingress" not in find_object(objects, "NetworkPolicy", "site-worker")["spec"]
    (ray,) = find_object(objects, "NetworkPolicy", "site-ray")["spec"]["ingress"]
    assert list(ray["from"][0]) == ["podSelector"]


def test_the_alerts_of_the_chart_are_those_of_the_repository(tmp_path: Path) -> None:
    shipped = yaml.safe_load((CHART.parent.parent / "prometheus" / "alerts.yml").read_text())
    objects = render(EVERYTHING, tmp_path)
    assert find_object(objects, "PrometheusRule")["spec"] == shipped
    (endpoint,) = find_object(objects, "ServiceMonitor")["spec"]["endpoints"]
    assert {"targetLabel": "job", "replacement": "dicomnode"} in endpoint["relabelings"]
    monitored = find_object(objects, "ServiceMonitor")["spec"]["selector"]["matchLabels"]
    assert monitored.items() <= find_object(objects, "Service", "site-web")["metadata"]["labels"].items()


def test_pods_are_renewed_when_their_configuration_changes(tmp_path: Path) -> None:
    def read_checksum(values: dict[str, Any]) -> str:
        template = find_object(render(values, tmp_path), "Deployment", "site")["spec"]["template"]
        return str(template["metadata"]["annotations"]["checksum/config"])

    assert read_checksum(SITE) == read_checksum(SITE)
    assert read_checksum(SITE) != read_checksum(merge(SITE, {"node": {"quietSeconds": 5}}))


@pytest.mark.parametrize(
    ("values", "key"),
    [
        ({"image": {"digest": "latest"}}, "digest"),
        ({"image": {"digest": ""}}, "digest"),
        ({"database": {"url": "postgresql://dicomnode:geheim@db.example/dicomnode"}}, "database"),
        ({"database": {"secret": ""}}, "secret"),
        ({"web": {"tokenSecret": ""}}, "tokenSecret"),
        ({"web": {"ingress": {"enabled": True, "host": "node.example"}}}, "tlsSecret"),
        ({"ray": {"enabled": True}}, "tokenSecret"),
        ({"node": {"aeTitle": "LONGER THAN SIXTEEN"}}, "aeTitle"),
        ({"worker": {"replicas": 3}}, "worker"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_values_that_would_not_work_are_refused_by_name(values: dict[str, Any], key: str, tmp_path: Path) -> None:
    with pytest.raises(Refused, match=key):
        render(merge(SITE, values), tmp_path)
