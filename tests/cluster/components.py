"""The command line and the configuration file of each component."""

import json
from dataclasses import dataclass
from pathlib import Path

from . import kubeconfig
from .certificates import Authority
from .images import PAUSE_IMAGE
from .layout import API_PORT, Layout
from .programs import Programs

ETCD = "etcd"
API_SERVER = "kube-apiserver"
CONTROLLER_MANAGER = "kube-controller-manager"
SCHEDULER = "kube-scheduler"
CONTAINERD = "containerd"
KUBELET = "kubelet"

# Those of the control plane and the node that ask the API server for their work.
API_CLIENTS = (CONTROLLER_MANAGER, SCHEDULER, KUBELET)

# In the order in which they are stopped: who watches over others first.
STOP_ORDER = (KUBELET, CONTROLLER_MANAGER, SCHEDULER, CONTAINERD, API_SERVER, ETCD)

ETCD_PORT = 2379
ETCD_URL = f"http://127.0.0.1:{ETCD_PORT}"
CONTAINERD_SOCKET = "/run/containerd/containerd.sock"

ADMIN = "admin"
KUBELET_CLIENT = "kube-apiserver-kubelet-client"
SERVICE_ACCOUNTS = "service-accounts"


@dataclass(frozen=True)
class Components:
    """Writes what the components of one cluster read, and gives their commands."""

    layout: Layout
    programs: Programs

    def write_files(self) -> None:
        """Certificates, kubeconfigs and configuration files."""
        self._issue_certificates()
        for user in (ADMIN, CONTROLLER_MANAGER, SCHEDULER, KUBELET):
            kubeconfig.write(
                self._kubeconfig(user),
                url=self.layout.api_url,
                authority=self.authority,
                user=kubeconfig.certificate_user(self.layout.certificates_directory, user),
            )
        self._cni_directory.mkdir()
        self._write_json(self._cni_directory / "10-pods.conflist", self._cni_configuration())
        self._write_json(self._kubelet_configuration_file, self._kubelet_configuration())
        self._containerd_configuration_file.write_text(self._containerd_configuration())
        # No cluster DNS, and none of the machine's: names are not resolved in pods.
        self._resolv_conf.write_text("")

    @property
    def authority(self) -> Path:
        return self._certificate("ca.crt")

    def command(self, component: str) -> list[str]:
        commands = {
            ETCD: self._etcd,
            API_SERVER: self._api_server,
            CONTROLLER_MANAGER: self._controller_manager,
            SCHEDULER: self._scheduler,
            CONTAINERD: self._containerd,
            KUBELET: self._kubelet,
        }
        return commands[component]()

    def _certificate(self, file: str) -> Path:
        return self.layout.certificates_directory / file

    def _kubeconfig(self, user: str) -> Path:
        return self.layout.state_directory / f"{user}.kubeconfig"

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

    def _issue_certificates(self) -> None:
        layout = self.layout
        authority = Authority(layout.certificates_directory)
        authority.issue_client(ADMIN, user="admin", groups=["system:masters"])
        authority.issue_client(CONTROLLER_MANAGER, user="system:kube-controller-manager")
        authority.issue_client(SCHEDULER, user="system:kube-scheduler")
        # The Node authorizer knows a kubelet by this name and group.
        authority.issue_client(
            KUBELET, user=f"system:node:{layout.node_name}", groups=["system:nodes"]
        )
        authority.issue_client(KUBELET_CLIENT, user="kube-apiserver", groups=["system:masters"])
        authority.issue_server(
            "kube-apiserver",
            host_names=["kubernetes", "kubernetes.default", "kubernetes.default.svc"],
            addresses=[layout.node_ip, layout.api_service_ip],
        )
        authority.issue_server(
            "kubelet-server", host_names=[layout.node_name], addresses=[layout.node_ip]
        )
        authority.issue_key_pair(SERVICE_ACCOUNTS)

    # --- Control plane ---

    def _etcd(self) -> list[str]:
        return [
            self.programs["etcd"],
            # A tmpfs, see node.py: the data die with the cluster, and waiting for a disk at each
            # write would make it slow.
            "--data-dir=/run/etcd",
            f"--listen-client-urls={ETCD_URL}",
            f"--advertise-client-urls={ETCD_URL}",
            "--listen-peer-urls=http://127.0.0.1:2380",
        ]

    def _api_server(self) -> list[str]:
        layout = self.layout
        return [
            self.programs["kube-apiserver"],
            f"--etcd-servers={ETCD_URL}",
            f"--advertise-address={layout.node_ip}",
            f"--secure-port={API_PORT}",
            f"--service-cluster-ip-range={layout.service_network}",
            "--authorization-mode=Node,RBAC",
            "--enable-admission-plugins=NodeRestriction",
            "--allow-privileged=true",
            f"--client-ca-file={self.authority}",
            f"--tls-cert-file={self._certificate('kube-apiserver.crt')}",
            f"--tls-private-key-file={self._certificate('kube-apiserver.key')}",
            f"--kubelet-certificate-authority={self.authority}",
            f"--kubelet-client-certificate={self._certificate(f'{KUBELET_CLIENT}.crt')}",
            f"--kubelet-client-key={self._certificate(f'{KUBELET_CLIENT}.key')}",
            "--kubelet-preferred-address-types=InternalIP",
            "--service-account-issuer=https://kubernetes.default.svc",
            f"--service-account-key-file={self._certificate(f'{SERVICE_ACCOUNTS}.pub')}",
            f"--service-account-signing-key-file={self._certificate(f'{SERVICE_ACCOUNTS}.key')}",
            "--profiling=false",
            # It waits for progress notifications, which etcd has from 3.4.31 on (Debian 12 has
            # 3.4.23; pkg/storage/feature/feature_support_checker.go), and so fails each minute.
            "--feature-gates=SizeBasedListCostEstimate=false",
        ]

    def _controller_manager(self) -> list[str]:
        return [
            self.programs["kube-controller-manager"],
            *self._as_client_of_the_api(CONTROLLER_MANAGER),
            f"--root-ca-file={self.authority}",
            f"--service-account-private-key-file={self._certificate(f'{SERVICE_ACCOUNTS}.key')}",
            "--use-service-account-credentials=true",
            # The default is a directory of the machine, and would be made.
            f"--flex-volume-plugin-dir={self.layout.state_directory}/volume-plugins",
        ]

    def _scheduler(self) -> list[str]:
        return [self.programs["kube-scheduler"], *self._as_client_of_the_api(SCHEDULER)]

    def _as_client_of_the_api(self, component: str) -> list[str]:
        config = self._kubeconfig(component)
        return [
            f"--kubeconfig={config}",
            f"--authentication-kubeconfig={config}",
            f"--authorization-kubeconfig={config}",
            "--bind-address=127.0.0.1",
            "--leader-elect=false",  # there is one of each
            "--profiling=false",
        ]

    # --- Node ---

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
        # No masquerading: that takes iptables, and the machine has a route back to the pods.
        bridge = {"type": "bridge", "bridge": "pods0", "isGateway": True, "ipam": addresses}
        return {"cniVersion": "0.4.0", "name": "pods", "plugins": [bridge]}

    def _kubelet(self) -> list[str]:
        return [
            self.programs["kubelet"],
            f"--config={self._kubelet_configuration_file}",
            f"--kubeconfig={self._kubeconfig(KUBELET)}",
            f"--root-dir={self.layout.state_directory}/kubelet",
            f"--cert-dir={self.layout.certificates_directory}",
            f"--hostname-override={self.layout.node_name}",
            f"--node-ip={self.layout.node_ip}",
        ]

    def _kubelet_configuration(self) -> object:
        state = self.layout.state_directory
        return {
            "apiVersion": "kubelet.config.k8s.io/v1beta1",
            "kind": "KubeletConfiguration",
            "address": str(self.layout.node_ip),
            "containerRuntimeEndpoint": f"unix://{CONTAINERD_SOCKET}",
            "authentication": {
                "anonymous": {"enabled": False},
                "webhook": {"enabled": True},
                "x509": {"clientCAFile": str(self.authority)},
            },
            "authorization": {"mode": "Webhook"},
            "tlsCertFile": str(self._certificate("kubelet-server.crt")),
            "tlsPrivateKeyFile": str(self._certificate("kubelet-server.key")),
            # There may be no systemd, and the hierarchies may be v1 beside v2.
            "cgroupDriver": "cgroupfs",
            "cgroupRoot": self.layout.cgroup_parent or "/",
            "failCgroupV1": False,
            "enforceNodeAllocatable": ["none"],
            "failSwapOn": False,
            "makeIPTablesUtilChains": False,
            "oomScoreAdj": 0,  # as for containerd: a lower one takes CAP_SYS_RESOURCE
            "resolvConf": str(self._resolv_conf),
            "podLogsDir": f"{self.layout.logs_directory}/pods",
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
        }
