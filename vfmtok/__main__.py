"""`python -m vfmtok` is `vfmtok`."""

import sys

from vfmtok.cli import main

sys.exit(main())
