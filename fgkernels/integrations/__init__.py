# SPDX-License-Identifier: Apache-2.0
"""Bridges into other libraries' models: one module per library. Nothing is patched on import."""
