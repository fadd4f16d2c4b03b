"""For all tests that run a real AutoTVM; where there is none, nothing of this folder is even imported."""

import importlib.util
import os
from pathlib import Path

os.environ.setdefault("TOPHUB_LOCATION", "NONE")  # no download of tuned configurations
os.environ.setdefault("OMP_NUM_THREADS", "1")


def _has_autotvm() -> bool:
    """By looking for its folder: to import tvm only to ask takes seconds."""
    spec = importlib.util.find_spec("tvm")
    return spec is not None and spec.origin is not None and (Path(spec.origin).parent / "autotvm").is_dir()


collect_ignore_glob = [] if _has_autotvm() else ["*"]
