# SPDX-License-Identifier: Apache-2.0
"""Selective scans over feature maps: `selective_scan_2d`, `cross_scan`, `cross_merge` and `scan_table`."""

from ..reference.selective_scan_2d import cross_merge, cross_scan, scan_table, selective_scan_2d

__all__ = ["cross_merge", "cross_scan", "scan_table", "selective_scan_2d"]
