"""The control plane: etcd, and the parts of Kubernetes, as processes."""

import json
import os
import secrets
import subprocess
from collections.abc import Sequence
from pathlib import Path

from tests.operator_e2e.addresses import API_PORT, API_SERVER, API_SERVICE, PODS, SERVICES
from tests.operator_e2e.api import Access
from tests.operator_e2e.programs import control_plane, program
from tests.support.certificates import Authority

ETCD = "http://127.0.0.1:2379"
NAMES_OF_API_SERVER = (
    "127.0.0.1",
    API_SERVER,
    API_SERVICE,
    "kubernetes.default.svc",
    "kubernetes.default.svc.cluster.local",
)
NODE_LOST_AFTER_S = 16
"""After this time without a sign of life, a node counts as lost. An API server that is killed comes
back earlier."""
SCALES_EVERY_S = 2
"""How often a HorizontalPodAutoscaler looks; usually it is every 15 seconds."""
LEAVES_LOST_NODE_AFTER_S = 5
"""How long pods stay on a node that is lost."""
STOP_S = 10


class ControlPlane:
    """Runs the parts of a control plane. They end with this process."""

    def __init__(self, folder: Path, first_node: str, hosts: Sequence[str]) -> None:
        """`hosts` are the addresses of all nodes that there may be."""
        self._folder = folder
        self._first_node = first_node
        self._running: dict[str, subprocess.Popen[bytes]] = {}
        folder.mkdir(parents=True)
        authority = Authority(folder, "cluster")
        self._serving = authority.issue("api-server", NAMES_OF_API_SERVER)
        self._accounts = authority.issue("accounts")
        self.kubelets = authority.issue("kubelet", hosts)
        """The certificate with which kubelets serve logs."""
        token = secrets.token_hex(16)
        (folder / "tokens.csv").write_text(f'{token},admin,admin,"system:masters"\n')
        self.access = Access(f"https://{API_SERVER}:{API_PORT}", token, authority.file)
        self.kubeconfig = folder / "kubeconfig"
        self.kubeconfig.write_text(json.dumps(kubeconfig(self.access)))

    def start(self) -> None:
        """Start etcd and the API server. The others are started when it answers."""
        self._run(
            "etcd",
            [
                str(program("etcd")),
                f"--data-dir={self._folder / 'etcd'}",
                f"--listen-client-urls={ETCD}",
                f"--advertise-client-urls={ETCD}",
                "--listen-peer-urls=http://127.0.0.1:2380",
                "--log-level=error",
            ],
        )
        self.start_api_server()

    def start_controllers(self) -> None:
        self._run_part("kube-controller-manager", *self._controller_flags())
        self._run_part("kube-scheduler", f"--config={self._scheduler_file()}")
        self._run_part("kube-proxy", f"--config={self._proxy_file(self._first_node)}")

    def start_api_server(self) -> None:
        self._run_part(
            "kube-apiserver",
            f"--etcd-servers={ETCD}",
            f"--advertise-address={API_SERVER}",
            f"--secure-port={API_PORT}",
            f"--cert-dir={self._folder}",
            f"--tls-cert-file={self._serving.certificate}",
            f"--tls-private-key-file={self._serving.key}",
            f"--token-auth-file={self._folder / 'tokens.csv'}",
            "--authorization-mode=RBAC",
            "--service-account-issuer=https://kubernetes.default.svc",
            f"--service-account-key-file={self._accounts.certificate}",
            f"--service-account-signing-key-file={self._accounts.key}",
            f"--service-cluster-ip-range={SERVICES}",
            f"--default-not-ready-toleration-seconds={LEAVES_LOST_NODE_AFTER_S}",
            f"--default-unreachable-toleration-seconds={LEAVES_LOST_NODE_AFTER_S}",
            "--kubelet-preferred-address-types=InternalIP",
            f"--kubelet-certificate-authority={self.access.authority}",
        )

    def kill_api_server(self) -> None:
        process = self._running.pop("kube-apiserver")
        process.kill()
        process.wait()

    def move_proxy(self, node: str) -> None:
        """Let kube-proxy work for another node, because it ends when its node is deleted. What it
        has set up stays meanwhile."""
        process = self._running.pop("kube-proxy")
        process.terminate()
        process.wait()
        self._run_part("kube-proxy", f"--config={self._proxy_file(node)}")

    def stop(self) -> None:
        for process in reversed(self._running.values()):
            process.terminate()
        for process in self._running.values():
            try:
                process.wait(STOP_S)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()

    def _controller_flags(self) -> Sequence[str]:
        return (
            f"--kubeconfig={self.kubeconfig}",
            f"--service-account-private-key-file={self._accounts.key}",
            f"--root-ca-file={self.access.authority}",
            "--leader-elect=false",
            f"--node-monitor-grace-period={NODE_LOST_AFTER_S}s",
            "--node-monitor-period=1s",
            f"--horizontal-pod-autoscaler-sync-period={SCALES_EVERY_S}s",
            f"--flex-volume-plugin-dir={self._folder / 'plugins'}",
            "--bind-address=127.0.0.1",
            f"--cert-dir={self._folder / 'controllers'}",
        )

    def _scheduler_file(self) -> Path:
        return self._configuration(
            "scheduler",
            {
                "apiVersion": "kubescheduler.config.k8s.io/v1",
                "kind": "KubeSchedulerConfiguration",
                "clientConnection": {"kubeconfig": str(self.kubeconfig)},
                "leaderElection": {"leaderElect": False},
            },
        )

    def _proxy_file(self, node: str) -> Path:
        # The limits of connection tracking belong to the whole machine, so they stay as they are.
        return self._configuration(
            "proxy",
            {
                "apiVersion": "kubeproxy.config.k8s.io/v1alpha1",
                "kind": "KubeProxyConfiguration",
                "clientConnection": {"kubeconfig": str(self.kubeconfig)},
                "mode": "nftables",
                "clusterCIDR": PODS,
                "hostnameOverride": node,
                "conntrack": {
                    "maxPerCore": 0,
                    "min": 0,
                    "tcpEstablishedTimeout": "0s",
                    "tcpCloseWaitTimeout": "0s",
                },
                "nftables": {"syncPeriod": "30s", "minSyncPeriod": "100ms"},
            },
        )

    def _configuration(self, name: str, content: object) -> Path:
        file = self._folder / f"{name}.json"
        file.write_text(json.dumps(content))
        return file

    def _run_part(self, name: str, *flags: str) -> None:
        self._run(name, [str(control_plane()), name, *flags])

    def _run(self, name: str, command: Sequence[str]) -> None:
        with (self._folder / f"{name}.log").open("ab") as log:
            self._running[name] = subprocess.Popen(
                command, stdin=subprocess.DEVNULL, stdout=log, stderr=log, env=dict(os.environ)
            )


def kubeconfig(access: Access, namespace: str = "default") -> dict[str, object]:
    """Return the configuration with which kubectl and others call an API server."""
    cluster = {"server": access.url, "certificate-authority": str(access.authority)}
    context = {"cluster": "test", "user": "test", "namespace": namespace}
    return {
        "apiVersion": "v1",
        "kind": "Config",
        "clusters": [{"name": "test", "cluster": cluster}],
        "users": [{"name": "test", "user": {"token": access.token}}],
        "contexts": [{"name": "test", "context": context}],
        "current-context": "test",
    }
