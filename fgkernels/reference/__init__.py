# SPDX-License-Identifier: Apache-2.0
"""The mathematical truth of every operator in plain PyTorch: one module per family.

Tests and documentation compare with it, devices without a kernel of ours run it, and exported programs are
decomposed into it.
"""

from . import causal_conv1d, late_interaction, mamba_chunk_scan, selective_scan, selective_scan_2d

__all__ = ["causal_conv1d", "late_interaction", "mamba_chunk_scan", "selective_scan", "selective_scan_2d"]
