# SPDX-License-Identifier: Apache-2.0
"""Bridges into other libraries' models, one module per library; importing them neither imports nor patches it."""

from . import transformers

__all__ = ["transformers"]
