"""The plugins here stand for other people's: distributions of their own, written from the docs.

Their tests run with vbkit's; none of them need be installed.
"""

from __future__ import annotations

import sys
from pathlib import Path

sys.path[:0] = [str(path) for path in sorted(Path(__file__).parent.glob("*/src"))]
