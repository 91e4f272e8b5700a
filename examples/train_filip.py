# SPDX-License-Identifier: Apache-2.0
"""You train an image-text model: FILIP's loss in two lines.

Any pair of encoders that give token vectors will do. Here 64 pairs of a set of patches and a caption of random length
are learnt by heart by two small projections; `chunk_size` bounds the memory of the loss, whatever the batch.
"""

from __future__ import annotations

import torch
from torch import nn
from torch.nn import functional as F

from fgkernels.nn import LateInteractionLoss


def main() -> None:
    torch.manual_seed(0)
    pairs, patches, words, width, dim = 64, 49, 12, 64, 64
    image_features, text_features = torch.randn(pairs, patches, width), torch.randn(pairs, words, width)
    mask = torch.arange(words) < torch.randint(3, words + 1, (pairs, 1))  # True at real words

    image_encoder, text_encoder = nn.Linear(width, dim), nn.Linear(width, dim)
    criterion = LateInteractionLoss(temperature=0.07, chunk_size=32)
    parameters = [*image_encoder.parameters(), *text_encoder.parameters(), *criterion.parameters()]
    optimizer = torch.optim.AdamW(parameters, lr=1e-2)

    for step in range(121):
        image = F.normalize(image_encoder(image_features), dim=-1)
        text = F.normalize(text_encoder(text_features), dim=-1)
        output = criterion(image, text, b_mask=mask)
        optimizer.zero_grad()
        output.loss.backward()
        optimizer.step()
        if step % 40 == 0:
            print(
                f"step {step:3}  loss {output.loss.item():.3f}  image to text {output.accuracy_ab.item():.0%}  "
                f"text to image {output.accuracy_ba.item():.0%}"
            )


if __name__ == "__main__":
    main()
