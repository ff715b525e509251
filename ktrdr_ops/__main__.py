"""``python -m ktrdr_ops`` is ``ktrdr-ops``."""

from __future__ import annotations

import sys

from ktrdr_ops.interfaces.cli.main import main

if __name__ == "__main__":
    sys.exit(main())
