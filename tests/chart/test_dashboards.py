"""The Grafana boards as the chart installs them: ConfigMaps that the sidecar finds."""

from __future__ import annotations

import json

from tests.chart.helm import Helm
from tests.unit.boards import boards
from tools.helm.chart import NAMESPACE

# etcd takes 1.5 MiB, and a ConfigMap 1 MiB.
MOST_BYTES = 256 * 1024


def test_each_board_is_a_config_map_as_it_was_committed(helm: Helm) -> None:
    found = helm.manifests("dashboards.enabled=true").of_kind("ConfigMap")

    contents = {}
    for config_map in found:
        assert config_map["metadata"]["namespace"] == NAMESPACE
        assert config_map["metadata"]["labels"]["grafana_dashboard"] == "1"
        assert config_map["metadata"]["annotations"] == {"grafana_folder": "latencyprobe"}
        ((name, text),) = config_map["data"].items()
        assert len(text) < MOST_BYTES
        contents[name.removeprefix("latencyprobe-").removesuffix(".json")] = json.loads(text)
    assert contents == boards()


def test_the_sidecar_decides_on_labels_folder_and_namespace(helm: Helm) -> None:
    found = helm.manifests(
        "dashboards.enabled=true",
        "dashboards.namespace=monitoring",
        "dashboards.labels.dashboards=ops",
        "dashboards.annotations.k8s-sidecar-target-directory=/tmp/dashboards/net",
    ).of_kind("ConfigMap")

    assert found
    for config_map in found:
        metadata = config_map["metadata"]
        assert metadata["namespace"] == "monitoring"
        assert metadata["labels"]["dashboards"] == "ops"
        assert metadata["annotations"]["k8s-sidecar-target-directory"] == "/tmp/dashboards/net"


def test_there_are_no_boards_unless_they_are_wanted(helm: Helm) -> None:
    assert helm.manifests().of_kind("ConfigMap") == []
