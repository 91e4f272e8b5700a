# SPDX-License-Identifier: Apache-2.0
"""``python -m fgkernels`` is the command ``fgkernels``."""

import sys

from .cli import main

sys.exit(main())
