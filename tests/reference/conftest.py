"""Lets the comparisons import their shared mappings (`port`, `torch_params`) by name."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))
