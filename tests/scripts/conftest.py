"""For tests of the scripts, which import one another by name as they do when they are started."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[2] / "scripts"))
