"""The proxies: nginx with the files of `deploy/nginx`, which finds the node of each call."""

from collections.abc import Iterator

from megaphone_operator.plan.names import GRPC_PORT, HTTP_PORT, OPS_PORT, Names
from megaphone_operator.plan.objects import (
    CERTIFICATE_FOLDER,
    CERTIFICATE_MOUNT,
    NO_PRIVILEGES,
    PORTS,
    TMP,
    Manifest,
    Surroundings,
    budget,
    certificate_volume,
    checksum,
    deployment,
    get_probe,
    manifest,
    pod_security,
    pod_template,
    spread,
)
from megaphone_operator.plan.resource import Megaphone

USER = 101
"""The user of nginx in its image."""
FOLDER = "/etc/megaphone"
FILES = ("nginx.conf", "megaphone.conf", "questions.conf", "question.conf")
GRACE_S = 60
"""How long nginx may serve open calls when it stops. A read takes 20 seconds by default."""
LISTENERS = {
    f"listen {HTTP_PORT};": f"listen {HTTP_PORT} ssl;",
    f"listen {GRPC_PORT} http2;": f"listen {GRPC_PORT} ssl http2;",
}
CERTIFICATE = f"""
# With a variable nginx reads the files for each connection, and so shows a renewed certificate.
map "" $megaphone_certificates {{
    default {CERTIFICATE_FOLDER};
}}
ssl_certificate $megaphone_certificates/tls.crt;
ssl_certificate_key $megaphone_certificates/tls.key;
ssl_protocols TLSv1.2 TLSv1.3;
"""


def proxy_objects(resource: Megaphone, surroundings: Surroundings) -> Iterator[Manifest]:
    names = Names(resource.name, resource.uid)
    files = configuration(resource, surroundings)
    yield manifest(resource, "ConfigMap", names.proxy, names.labels("proxy"), data=files)
    yield budget(resource, names.proxy, "proxy", names.proxy_selector)
    yield deployment(
        resource,
        names.proxy,
        "proxy",
        resource.spec.proxy.replicas,
        names.proxy_selector,
        _template(resource, files),
    )


def configuration(resource: Megaphone, surroundings: Surroundings) -> dict[str, str]:
    """Return the files of nginx by their names."""
    files = {name: surroundings.nginx[name] for name in FILES}
    nodes = _nodes_file(resource, surroundings)
    if resource.spec.tls:
        for plain, encrypted in LISTENERS.items():
            if files["megaphone.conf"].count(plain) != 1:
                raise ValueError(f"megaphone.conf must have one line `{plain}`")
            files["megaphone.conf"] = files["megaphone.conf"].replace(plain, encrypted)
        nodes += CERTIFICATE
    return files | {"nodes.conf": nodes}


def _nodes_file(resource: Megaphone, surroundings: Surroundings) -> str:
    names = Names(resource.name, resource.uid)
    domain = f"{resource.namespace}.svc.{surroundings.domain}"
    return f"""\
# Made by the operator.

{_resolver_line(surroundings.resolver)}

map "" $megaphone_nodes {{
    default {names.all_nodes}.{domain}:{OPS_PORT};
}}

map "" $megaphone_http_port {{
    default {HTTP_PORT};
}}

map "" $megaphone_grpc_port {{
    default {GRPC_PORT};
}}

map "" $megaphone_takers {{
    default {names.takers}.{domain}:{OPS_PORT};
}}
"""


def _resolver_line(address: str) -> str:
    """Return the name server in the words of nginx. Nodes have addresses of its kind.

    An address of IPv4 may have a port.
    """
    if address.count(":") > 1:
        return f"resolver [{address}] valid=1s;"
    return f"resolver {address} valid=1s ipv6=off;"


def _template(resource: Megaphone, files: dict[str, str]) -> Manifest:
    names, spec = Names(resource.name, resource.uid), resource.spec
    volumes: list[Manifest] = [
        {"name": "configuration", "configMap": {"name": names.proxy}},
        {"name": "tmp", "emptyDir": {}},
    ]
    if spec.tls:
        volumes.append(certificate_volume(spec.tls.secret_name))
    pod: Manifest = {
        "terminationGracePeriodSeconds": GRACE_S,
        "securityContext": pod_security(USER),
        "topologySpreadConstraints": spread(names.proxy_selector),
        "containers": [_container(resource)],
        "volumes": volumes,
    }
    # nginx reads its files when it starts, so other files need other pods.
    annotations = {"d71.dev/configuration": checksum(files)}
    labels = names.labels("proxy") | names.proxy_selector
    return pod_template(resource, labels, annotations, pod)


def _container(resource: Megaphone) -> Manifest:
    has_tls = resource.spec.tls is not None
    mounts: list[Manifest] = [
        {"name": "configuration", "mountPath": FOLDER},
        {"name": "tmp", "mountPath": TMP},
    ]
    if has_tls:
        mounts.append(CERTIFICATE_MOUNT)
    readiness = get_probe("/livez", "http", 2)
    if has_tls:
        readiness["httpGet"]["scheme"] = "HTTPS"
    container: Manifest = {
        "name": "nginx",
        "image": resource.spec.proxy.image,
        "command": ["nginx", "-c", f"{FOLDER}/nginx.conf", "-g", "daemon off;"],
        "ports": [{"name": one["name"], "containerPort": one["port"]} for one in PORTS],
        "readinessProbe": readiness,
        "livenessProbe": {"tcpSocket": {"port": "http"}, "periodSeconds": 10},
        # Until the services send no more calls to a pod that stops.
        "lifecycle": {"preStop": {"exec": {"command": ["sleep", "3"]}}},
        "securityContext": NO_PRIVILEGES,
        "volumeMounts": mounts,
    }
    if resource.spec.proxy.resources:
        container["resources"] = resource.spec.proxy.resources.manifest()
    return container
