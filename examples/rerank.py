# SPDX-License-Identifier: Apache-2.0
"""You have a ColBERT-style ranker: swap its scoring for one call.

Sentences become one vector per word (here: hashed letter trigrams, in your code a trained encoder), padded to the
longest. `fgkernels.maxsim` gives the same numbers as the usual lines, and never makes the tensor of all similarities.
"""

from __future__ import annotations

import zlib

import torch
from torch.nn import functional as F
from torch.nn.utils.rnn import pad_sequence

import fgkernels

DIM = 128
DOCUMENTS = [
    "A kestrel hovers over the meadow and dives for a vole.",
    "The patch panel in the server room needs new cables.",
    "Kingfishers dive into the river to catch small fish.",
    "She catches the early train to the city every morning.",
    "Herons stand in shallow water, waiting for fish.",
    "Bread dough rises faster in a warm kitchen.",
    "The river floods the meadow nearly every spring.",
]
QUERY = "birds that dive for fish in rivers"


def encode(text: str) -> torch.Tensor:
    """Unit vectors (words, DIM): words that share letter trigrams are similar."""
    words = ["".join(filter(str.isalpha, word)).lower() for word in text.split()]
    vectors = torch.zeros(len(words), DIM)
    for row, word in enumerate(words):
        padded = f"<{word}>"
        for trigram in {padded[i : i + 3] for i in range(len(padded) - 2)}:
            vectors[row, zlib.crc32(trigram.encode()) % DIM] += 1
    return F.normalize(vectors, dim=-1)


def main() -> None:
    encoded = [encode(text) for text in DOCUMENTS]
    query = encode(QUERY)[None]  # (1, Lq, D)
    documents = pad_sequence(encoded, batch_first=True)  # (Nd, Ld, D)
    lengths = torch.tensor([len(tokens) for tokens in encoded])
    mask = torch.arange(documents.shape[1]) < lengths[:, None]  # (Nd, Ld)

    # Before:
    similarity = torch.einsum("qid,njd->qnij", query, documents)
    before = similarity.masked_fill(~mask[None, :, None], -torch.inf).amax(3).sum(2)
    # After:
    scores, alignment = fgkernels.maxsim(query, documents, document_mask=mask, return_alignment=True)

    assert torch.allclose(scores, before, atol=1e-5)
    print(f"query: {QUERY}")
    for score, row in zip(*scores[0].sort(descending=True), strict=True):
        print(f"  {score:.3f}  {DOCUMENTS[row]}")
    best = int(scores[0].argmax())
    found = DOCUMENTS[best].split()
    pairs = zip(QUERY.split(), alignment[0, best].tolist(), strict=True)
    print("matched words: " + ", ".join(f"{word} ~ {found[at]}" for word, at in pairs))


if __name__ == "__main__":
    main()
