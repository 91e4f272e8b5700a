# SPDX-License-Identifier: Apache-2.0
"""Modules that own parameters: one file per family."""

from .late_interaction import LateInteractionLoss, LateInteractionLossOutput, MaxSim

__all__ = ["LateInteractionLoss", "LateInteractionLossOutput", "MaxSim"]
