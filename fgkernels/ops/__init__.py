# SPDX-License-Identifier: Apache-2.0
"""Public functions and their registrations (fake kernels, autograd, autocast, vmap): one module per family."""
