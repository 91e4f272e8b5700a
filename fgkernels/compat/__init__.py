# SPDX-License-Identifier: Apache-2.0
"""Drop-ins for functions that people already call, under their names and signatures: one module per package.

None of these packages is imported or needed.
"""
