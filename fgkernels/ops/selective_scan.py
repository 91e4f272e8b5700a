# SPDX-License-Identifier: Apache-2.0
"""Selective scans over sequences: `selective_scan` and, for decoding, `selective_state_update`."""

from ..reference.selective_scan import selective_scan, selective_state_update

__all__ = ["selective_scan", "selective_state_update"]
