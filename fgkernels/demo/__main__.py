# SPDX-License-Identifier: Apache-2.0
"""``python -m fgkernels.demo``."""

import sys

from . import main

sys.exit(main())
