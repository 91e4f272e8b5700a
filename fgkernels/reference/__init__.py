# SPDX-License-Identifier: Apache-2.0
"""The mathematical truth of every operator in plain PyTorch: one module per family.

Tests and documentation compare with it, devices without a kernel of ours run it, and exported programs are
decomposed into it.
"""

from . import late_interaction, selective_scan, selective_scan_2d

__all__ = ["late_interaction", "selective_scan", "selective_scan_2d"]
