# SPDX-License-Identifier: Apache-2.0
"""One module per op family, each with a tuple ``CASES``."""
