"""The root file system of a container: this machine's files, over which it writes its own.

The container runs in a mount namespace of its own, so that nothing remains of it, and as the user
that its pod names, within the network namespace of the pod.
"""

import shlex
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from tests.operator_e2e.addresses import DOMAIN, NAMES_SERVICE
from tests.operator_e2e.api import Object, name_of, namespace_of
from tests.operator_e2e.kubelet.images import ROOT, SOURCE, Image
from tests.operator_e2e.kubelet.network import NAMESPACES

PASSWD = "root:x:0:0::/:/bin/sh\n"
"""Other users have no names, as in clusters that choose their numbers."""


@dataclass(frozen=True, slots=True)
class Box:
    """What a container is put into."""

    pod: Object
    container: Object
    image: Image
    folder: Path
    network: str
    address: str
    volumes: Mapping[str, Path]
    environment: Mapping[str, str]

    def command(self) -> list[str]:
        """Prepare the folder, and return the command that becomes the container.

        It becomes the program of the container without a fork, so that its process id is that of
        the program.
        """
        for name in ("upper", "work", "root"):
            (self.folder / name).mkdir(parents=True, exist_ok=True)
        self._write_files()
        script = self.folder / "start.sh"
        script.write_text("\n".join(self._script()) + "\n")
        network = f"--net={NAMESPACES / self.network}"
        return ["nsenter", network, "unshare", "--mount", "--uts", "/bin/sh", str(script)]

    # -- Files

    def _write_files(self) -> None:
        self._let_others_pass(Path(sys.base_prefix))
        for path, content in {**self.image.scripts, **self._files_of_pod()}.items():
            file = self._upper(path)
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_text(content)
            file.chmod(0o755 if path in self.image.scripts else 0o644)
        self._upper(SOURCE).mkdir(parents=True, exist_ok=True)
        for mount in self.container.get("volumeMounts", ()):
            self._make_mount_point(mount)

    def _files_of_pod(self) -> dict[str, str]:
        namespace, name = namespace_of(self.pod), name_of(self.pod)
        searched = " ".join(f"{one}{DOMAIN}" for one in (f"{namespace}.svc.", "svc.", ""))
        return {
            "/etc/resolv.conf": (
                f"nameserver {NAMES_SERVICE}\nsearch {searched}\noptions ndots:5 timeout:2\n"
            ),
            "/etc/hosts": f"127.0.0.1 localhost\n{self.address} {name}\n",
            "/etc/hostname": f"{name}\n",
            "/etc/passwd": PASSWD,
        }

    def _let_others_pass(self, place: Path) -> None:
        """Let every user reach a folder, even if it is in the home of another user."""
        for parent in reversed((place, *place.parents)):
            upper = self._upper(str(parent))
            upper.mkdir(exist_ok=True)
            upper.chmod(0o755)

    def _make_mount_point(self, mount: Object) -> None:
        point = self._upper(mount["mountPath"])
        if self._source_of(mount).is_file():
            point.parent.mkdir(parents=True, exist_ok=True)
            point.touch()
        else:
            point.mkdir(parents=True, exist_ok=True)

    def _source_of(self, mount: Object) -> Path:
        return self.volumes[mount["name"]] / str(mount.get("subPath", ""))

    def _upper(self, path: str) -> Path:
        return self.folder / "upper" / path.lstrip("/")

    # -- The script

    def _script(self) -> list[str]:
        root = self.folder / "root"
        layers = f"lowerdir=/,upperdir={self.folder / 'upper'},workdir={self.folder / 'work'}"
        lines = [
            "set -e",
            f"hostname {shlex.quote(name_of(self.pod)[:63])}",
            "mount --make-rprivate /",
            f"mount -t overlay container -o {layers} {root}",
            f"mount --rbind /proc {root}/proc",
            f"mount --rbind /dev {root}/dev",
            f"mount --bind {ROOT} {root}{SOURCE}",
            f"mount -o remount,bind,ro {root}{SOURCE}",
        ]
        for mount in self.container.get("volumeMounts", ()):
            point = f"{root}{mount['mountPath']}"
            lines.append(f"mount --bind {self._source_of(mount)} {point}")
            if mount.get("readOnly"):
                lines.append(f"mount -o remount,bind,ro {point}")
        if self._security("readOnlyRootFilesystem", False):
            lines.append(f"mount -o remount,ro {root}")
        lines.append(f"exec {self._enter(root)} {self._with_environment()}")
        return lines

    def _enter(self, root: Path) -> str:
        """Return the command that becomes the user of the container, within its files."""
        user = self._security("runAsUser", self.image.user)
        group = self._security("runAsGroup", user)
        groups = f"--groups={self._security('fsGroup', group)}"
        become = f"chroot --userspec={user}:{group} {groups} {root}"
        if self._security("allowPrivilegeEscalation", True):
            return become
        return f"setpriv --no-new-privs {become}"

    def _with_environment(self) -> str:
        """Return the command that becomes the program. It needs no shell, because a shell drops
        variables whose names have dots."""
        directory = self.container.get("workingDir", self.image.directory)
        variables = [f"{name}={value}" for name, value in self.environment.items()]
        return shlex.join(["env", "-i", f"--chdir={directory}", *variables, *self._program()])

    def _program(self) -> list[str]:
        arguments = list(self.container.get("args", ()))
        if "command" in self.container:
            return [*self.container["command"], *arguments]
        return [*self.image.entrypoint, *(arguments or self.image.command)]

    def _security(self, name: str, usual: object) -> object:
        """Return what the container, or else its pod, says about its rights."""
        of_pod = self.pod["spec"].get("securityContext", {})
        return self.container.get("securityContext", {}).get(name, of_pod.get(name, usual))
