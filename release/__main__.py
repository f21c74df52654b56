"""The steps of `make release`.

    python -m release ready    check the tree, the version and the changelog; takes a second
    python -m release build    build the distributions into dist/, and check them
    python -m release dist     build them from the files as they are now, for `make build`

None publishes anything. A failed check ends the program with a message that says what to do.
"""

import sys

from release.checks import check_changelog, check_tree, check_version
from release.distributions import (
    build_twice,
    build_working_tree,
    check_metadata,
    check_wheel,
)

NEXT = """\
dist/ has megaphone-broker, megaphone-client, megaphone-api and megaphone-operator {version}.
What remains to be done:

    git tag -a v{version} -m "Megaphone {version}"
    git push origin v{version}
    auditwheel repair --wheel-dir dist dist/*-linux_*.whl && rm dist/*-linux_*.whl
    twine upload dist/*
    docker build -f deploy/Dockerfile -t megaphone:{version} .
    docker build -f operator/Dockerfile -t megaphone-operator:{version} .

An index takes the compiled wheel only with the tag that auditwheel gives it. The last three
need the accounts of the project."""


def ready() -> str:
    """Return the version to release. Raises: SystemExit, if something is not ready."""
    check_tree()
    version = check_version()
    check_changelog(version)
    return version


def build() -> None:
    version = ready()
    distributions = build_twice()
    for wheel in distributions[1:]:
        check_metadata(wheel, version)
    for wheel in (distributions.pure, distributions.compiled):
        check_wheel(wheel)
    print(NEXT.format(version=version))


def main() -> None:
    match sys.argv[1:]:
        case ["ready"]:
            print(f"ready to release {ready()}")
        case ["build"]:
            build()
        case ["dist"]:
            print(*build_working_tree(), sep="\n")
        case _:
            sys.exit(__doc__)


if __name__ == "__main__":
    main()
