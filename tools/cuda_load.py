# SPDX-License-Identifier: Apache-2.0
"""cuda_load.py LIBFGKERNELS LIBFGKERNELS_CUDA NAMESPACE: loads both libraries and looks for the kernel of every schema.

Needs a CUDA build of torch >= 2.10 and no GPU.
"""

from __future__ import annotations

import re
import sys

import torch


def main(cpu_library: str, cuda_library: str, namespace: str) -> int:
    torch.ops.load_library(cpu_library)
    torch.ops.load_library(cuda_library)
    dispatch = torch._C
    names = sorted(name for name in dispatch._dispatch_get_all_op_names() if name.startswith(f"{namespace}::"))
    missing = [name for name in names if not dispatch._dispatch_has_kernel_for_dispatch_key(name, "CUDA")]
    dangling = [text for text in dispatch._dispatch_find_dangling_impls() if re.search(rf"\b{namespace}::", text)]
    for name in missing:
        print(f"{name}: no kernel for CUDA", file=sys.stderr)
    for text in dangling:
        print(f"kernel without a schema:\n{text}", file=sys.stderr)
    if not names:
        print(f"no schemas of {namespace}", file=sys.stderr)
    if missing or dangling or not names:
        return 1

    # The kernel that answers is the CUDA one: it asks for CUDA tensors.
    tokens = torch.zeros(1, 1, 8)
    key = dispatch.DispatchKeySet(dispatch.DispatchKey.CUDA)
    operator = getattr(torch.ops, namespace).maxsim_fwd.default
    try:
        operator.redispatch(key, tokens, tokens, None, None, None, False, False, False)
    except RuntimeError as error:
        if "expected a CUDA tensor, got device cpu" not in str(error):
            raise
    else:
        print("the CUDA kernel of maxsim_fwd took CPU tensors", file=sys.stderr)
        return 1
    print(f"{len(names)} schemas, each with a kernel for CUDA, in torch {torch.__version__}")
    return 0


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
