# SPDX-License-Identifier: Apache-2.0
"""What the cases compute: input makers, plain expressions, FLOP and byte formulas; one module per op family."""
