# SPDX-License-Identifier: Apache-2.0
"""Modules that own parameters: one file per family."""

from .late_interaction import LateInteractionLoss, LateInteractionLossOutput, MaxSim
from .mamba2 import Mamba2, RMSNormGated
from .selective_scan import SS2D, Mamba

__all__ = ["SS2D", "LateInteractionLoss", "LateInteractionLossOutput", "Mamba", "Mamba2", "MaxSim", "RMSNormGated"]
