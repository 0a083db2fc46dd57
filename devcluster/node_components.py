"""The programs of every node, containerd and the kubelet: their commands and configuration."""

import json
from dataclasses import dataclass
from pathlib import Path

from . import kubeconfig
from .components import kubelet_client, kubelet_server
from .images import PAUSE_IMAGE
from .layout import NodeLayout
from .programs import Programs

CONTAINERD = "containerd"
KUBELET = "kubelet"
NODE_COMPONENTS = (CONTAINERD, KUBELET)

CONTAINERD_SOCKET = "/run/containerd/containerd.sock"


@dataclass(frozen=True)
class NodeComponents:
    """Writes what the components of one node read, and gives their commands."""

    layout: NodeLayout
    programs: Programs

    def write_files(self) -> None:
        """Write the files into the node's directory, which is there, as are the certificates."""
        certificates = self.layout.cluster.certificates_directory
        kubeconfig.write(
            self._kubeconfig,
            url=self.layout.cluster.api_url,
            authority=self._certificate("ca.crt"),
            user=kubeconfig.certificate_user(certificates, kubelet_client(self.layout)),
        )
        self.layout.static_pods_directory.mkdir()
        self._cni_directory.mkdir()
        self._write_json(self._cni_directory / "10-pods.conflist", self._cni_configuration())
        self._write_json(self._kubelet_configuration_file, self._kubelet_configuration())
        self._containerd_configuration_file.write_text(self._containerd_configuration())
        # No cluster DNS, and none of the machine's: names are not resolved in pods.
        self._resolv_conf.write_text("")

    def command(self, component: str) -> list[str]:
        """Return the command of a component."""
        commands = {CONTAINERD: self._containerd, KUBELET: self._kubelet}
        return commands[component]()

    def _certificate(self, file: str) -> Path:
        return self.layout.cluster.certificates_directory / file

    @property
    def _kubeconfig(self) -> Path:
        return self.layout.state_directory / "kubelet.kubeconfig"

    @property
    def _cni_directory(self) -> Path:
        return self.layout.state_directory / "cni"

    @property
    def _kubelet_configuration_file(self) -> Path:
        return self.layout.state_directory / "kubelet.json"

    @property
    def _containerd_configuration_file(self) -> Path:
        return self.layout.state_directory / "containerd.toml"

    @property
    def _resolv_conf(self) -> Path:
        return self.layout.state_directory / "resolv.conf"

    def _write_json(self, path: Path, value: object) -> None:
        path.write_text(json.dumps(value, indent=2) + "\n")

    def _containerd(self) -> list[str]:
        return [self.programs["containerd"], "--config", str(self._containerd_configuration_file)]

    def _containerd_configuration(self) -> str:
        cri = 'plugins."io.containerd.grpc.v1.cri"'
        return f"""\
version = 2
root = "{self.layout.state_directory}/containerd"
state = "/run/containerd"
# They need a file system or a device that is not there, or make /opt/containerd on the machine.
disabled_plugins = [
  "io.containerd.internal.v1.opt",
  "io.containerd.snapshotter.v1.aufs",
  "io.containerd.snapshotter.v1.btrfs",
  "io.containerd.snapshotter.v1.devmapper",
  "io.containerd.snapshotter.v1.zfs",
]

[grpc]
address = "{CONTAINERD_SOCKET}"

[{cri}]
sandbox_image = "{PAUSE_IMAGE}"
# To lower a process's OOM score takes CAP_SYS_RESOURCE, which root may lack inside a container
# or a sandbox (oom_score_adj_write(), fs/proc/base.c).
restrict_oom_score_adj = true

[{cri}.containerd.runtimes.runc]
runtime_type = "io.containerd.runc.v2"

[{cri}.containerd.runtimes.runc.options]
BinaryName = "{self.programs["runc"]}"
SystemdCgroup = false

[{cri}.cni]
bin_dir = "{self.programs.cni_directory}"
conf_dir = "{self._cni_directory}"
"""

    def _cni_configuration(self) -> object:
        addresses = {
            "type": "host-local",
            "dataDir": "/run/cni",
            "ranges": [[{"subnet": str(self.layout.pod_network)}]],
            "routes": [{"dst": "0.0.0.0/0"}],
        }
        # No masquerading: that takes iptables, and every client has a route back to the pods.
        bridge = {"type": "bridge", "bridge": "pods0", "isGateway": True, "ipam": addresses}
        return {"cniVersion": "0.4.0", "name": "pods", "plugins": [bridge]}

    def _kubelet(self) -> list[str]:
        return [
            self.programs["kubelet"],
            f"--config={self._kubelet_configuration_file}",
            f"--kubeconfig={self._kubeconfig}",
            f"--root-dir={self.layout.state_directory}/kubelet",
            f"--cert-dir={self.layout.cluster.certificates_directory}",
            f"--hostname-override={self.layout.name}",
            f"--node-ip={self.layout.ip}",
        ]

    def _kubelet_configuration(self) -> object:
        state = self.layout.state_directory
        return {
            "apiVersion": "kubelet.config.k8s.io/v1beta1",
            "kind": "KubeletConfiguration",
            "address": str(self.layout.ip),
            "containerRuntimeEndpoint": f"unix://{CONTAINERD_SOCKET}",
            "authentication": {
                "anonymous": {"enabled": False},
                "webhook": {"enabled": True},
                "x509": {"clientCAFile": str(self._certificate("ca.crt"))},
            },
            "authorization": {"mode": "Webhook"},
            "tlsCertFile": str(self._certificate(f"{kubelet_server(self.layout)}.crt")),
            "tlsPrivateKeyFile": str(self._certificate(f"{kubelet_server(self.layout)}.key")),
            # There may be no systemd, and the hierarchies may be v1 beside v2.
            "cgroupDriver": "cgroupfs",
            "failCgroupV1": False,
            "enforceNodeAllocatable": ["none"],
            "failSwapOn": False,
            "makeIPTablesUtilChains": False,
            "oomScoreAdj": 0,  # as for containerd: a lower one takes CAP_SYS_RESOURCE
            "resolvConf": str(self._resolv_conf),
            "staticPodPath": str(self.layout.static_pods_directory),
            "podLogsDir": f"{self.layout.cluster.logs_directory}/pods-{self.layout.number}",
            "volumePluginDir": f"{state}/volume-plugins",
            # A full disk of the machine is no reason to evict the tests' pods, nor to remove
            # images that cannot be pulled again.
            "evictionHard": {
                "imagefs.available": "0%",
                "imagefs.inodesFree": "0%",
                "nodefs.available": "0%",
                "nodefs.inodesFree": "0%",
            },
            "imageGCHighThresholdPercent": 100,
            "nodeStatusUpdateFrequency": "5s",
            # How long a changed Secret takes to come to the pods that mount it, at most.
            "syncFrequency": "5s",
        }
