# SPDX-License-Identifier: Apache-2.0
"""``python -m fgkernels.bench``."""

import sys

from . import main

sys.exit(main())
