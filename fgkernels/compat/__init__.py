# SPDX-License-Identifier: Apache-2.0
"""Drop-ins for functions that people already call, under their names and signatures: one module per package.

None of these packages is imported or needed.
"""

from . import causal_conv1d, colbert, colpali_engine, mamba_ssm, pylate, vmamba

__all__ = ["causal_conv1d", "colbert", "colpali_engine", "mamba_ssm", "pylate", "vmamba"]
