"""The control plane, which runs on the first node: its command lines, and its certificates.

node_components.py has what runs on every node.
"""

from dataclasses import dataclass
from pathlib import Path

from . import kubeconfig
from .certificates import Authority
from .layout import API_PORT, Layout, NodeLayout
from .programs import Programs

ETCD = "etcd"
API_SERVER = "kube-apiserver"
CONTROLLER_MANAGER = "kube-controller-manager"
SCHEDULER = "kube-scheduler"
CONTROL_PLANE = (ETCD, API_SERVER, CONTROLLER_MANAGER, SCHEDULER)

# Those of them that ask the API server for their work.
API_CLIENTS = (CONTROLLER_MANAGER, SCHEDULER)

ETCD_PORT = 2379
ETCD_URL = f"http://127.0.0.1:{ETCD_PORT}"

ADMIN = "admin"
KUBELET_CLIENT = "kube-apiserver-kubelet-client"
SERVICE_ACCOUNTS = "service-accounts"


@dataclass(frozen=True)
class Components:
    """The files that the control plane of one cluster reads, and its commands."""

    layout: Layout
    programs: Programs

    def write_files(self) -> None:
        """Write certificates, also those of nodes that may join later, and kubeconfigs."""
        self._issue_certificates()
        for user in (ADMIN, CONTROLLER_MANAGER, SCHEDULER):
            kubeconfig.write(
                self._kubeconfig(user),
                url=self.layout.api_url,
                authority=self.authority,
                user=kubeconfig.certificate_user(self.layout.certificates_directory, user),
            )

    @property
    def authority(self) -> Path:
        """The certificate of the cluster's authority."""
        return self._certificate("ca.crt")

    def command(self, component: str) -> list[str]:
        """Return the command of a component."""
        commands = {
            ETCD: self._etcd,
            API_SERVER: self._api_server,
            CONTROLLER_MANAGER: self._controller_manager,
            SCHEDULER: self._scheduler,
        }
        return commands[component]()

    def _certificate(self, file: str) -> Path:
        return self.layout.certificates_directory / file

    def _kubeconfig(self, user: str) -> Path:
        return self.layout.state_directory / f"{user}.kubeconfig"

    def _issue_certificates(self) -> None:
        layout = self.layout
        authority = Authority(layout.certificates_directory)
        authority.issue_client(ADMIN, user="admin", groups=["system:masters"])
        authority.issue_client(CONTROLLER_MANAGER, user="system:kube-controller-manager")
        authority.issue_client(SCHEDULER, user="system:kube-scheduler")
        authority.issue_client(KUBELET_CLIENT, user="kube-apiserver", groups=["system:masters"])
        authority.issue_server(
            "kube-apiserver",
            host_names=["kubernetes", "kubernetes.default", "kubernetes.default.svc"],
            addresses=[layout.nodes[0].ip, layout.api_service_ip],
        )
        authority.issue_key_pair(SERVICE_ACCOUNTS)
        for node in layout.nodes:
            _issue_kubelet_certificates(authority, node)

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
            f"--advertise-address={layout.nodes[0].ip}",
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


def _issue_kubelet_certificates(authority: Authority, node: NodeLayout) -> None:
    # The Node authorizer knows a kubelet by this name and group.
    user = f"system:node:{node.name}"
    authority.issue_client(kubelet_client(node), user=user, groups=["system:nodes"])
    authority.issue_server(kubelet_server(node), host_names=[node.name], addresses=[node.ip])


def kubelet_client(node: NodeLayout) -> str:
    """Return the name of the certificate that its kubelet shows the API server."""
    return f"kubelet-{node.number}"


def kubelet_server(node: NodeLayout) -> str:
    """Return the name of the certificate that its kubelet shows its own clients."""
    return f"kubelet-{node.number}-server"
