"""What installing the package pulls: the core no TVM, and the extras never two of them."""

from __future__ import annotations

from pathlib import Path

import tomllib

PROJECT = tomllib.loads((Path(__file__).parents[1] / "pyproject.toml").read_text())["project"]


def names(requirements: list[str]) -> set[str]:
    """Distributions, with those of this package's own extras in their place."""
    found = set()
    for requirement in requirements:
        name, _, extras = requirement.partition(";")[0].partition("[")
        if name == "chameleon-tvm":
            found |= {n for e in extras.rstrip("]").split(",") for n in names(PROJECT["optional-dependencies"][e])}
        else:
            found.add(name.split("=")[0].split(">")[0].split("<")[0].strip())
    return found


def test_the_core_installs_beside_any_tvm():
    assert not {n for n in names(PROJECT["dependencies"]) if "tvm" in n}


def test_no_extra_pulls_both_the_old_and_the_new_tvm():
    for extra, requirements in PROJECT["optional-dependencies"].items():
        assert not {"apache-tvm", "xtc-tvm-python-bindings"} <= names(requirements), extra
    assert "xtc-tvm-python-bindings" in names(["chameleon-tvm[autotvm]"])
    assert "apache-tvm" in names(["chameleon-tvm[all]"])
    assert not {n for n in names(["chameleon-tvm[test]"]) if "tvm" in n}
