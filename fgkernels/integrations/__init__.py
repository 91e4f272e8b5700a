# SPDX-License-Identifier: Apache-2.0
"""Bridges into other libraries' models: one module per library. Nothing is patched, and no other library is imported,
before a function here is called."""

from . import transformers

__all__ = ["transformers"]
