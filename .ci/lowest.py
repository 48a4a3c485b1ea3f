"""Print the lowest releases that pyproject.toml allows, as constraints for pip: `make test-lowest`."""

import re
import tomllib
from pathlib import Path

TESTED_WITH = {"hypothesis", "pytest"}
"""What `make test-lowest` needs of the extra `dev`."""
NOT_LOWEST = {"torch"}
"""Taken from constraints.txt: an older torch brings gigabytes of CUDA. Its lower bound is not tested."""


def lowest() -> list[str]:
    """One `name==version` for each dependency, at its lower bound."""
    project = tomllib.loads(Path(__file__).parents[1].joinpath("pyproject.toml").read_text(encoding="utf-8"))["project"]
    found = dict(re.findall(r"^([\w-]+)(?:\[.*?\])?>=([\d.]+)", line)[0] for line in project["dependencies"])
    of_dev = (re.match(r"([\w-]+).*?>=([\d.]+)", line) for line in project["optional-dependencies"]["dev"])
    found |= {line[1]: line[2] for line in of_dev if line is not None and line[1] in TESTED_WITH}
    constraints = Path(__file__).parents[1].joinpath("constraints.txt").read_text(encoding="utf-8")
    found |= {
        name: version for name, version in re.findall(r"^([\w-]+)==(.+)$", constraints, re.M) if name in NOT_LOWEST
    }
    return [f"{name}=={version}" for name, version in found.items()]


if __name__ == "__main__":
    print("\n".join(lowest()))
