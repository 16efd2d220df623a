"""Small scores and settings that the tests of planning share."""

from __future__ import annotations

import torch
from hypothesis import strategies as st

RULES = st.sampled_from(['eq7', 'count', 1, 3])
# A rule for ranks and the factor on the selected entries; a fixed rank has none.
FACTORS = st.sampled_from(
    [
        ('eq7', 1),
        ('eq7', 2.5),
        ('eq7', 20),
        ('count', 1),
        ('count', 0.3),
        ('count', 2),
        (1, 1),
        (3, 1),
    ]
)


@st.composite
def problems(draw, shapes=((4, 4), (6, 3), (2, 8), (10,), (4,), (5, 5))):
    """Scores with structure: some tensors, rows and columns matter more, many ties and zeros."""
    chosen = draw(st.lists(st.sampled_from(shapes), min_size=1, max_size=3))
    generator = torch.Generator().manual_seed(draw(st.integers(0, 2**20)))
    levels = draw(st.sampled_from([2, 5, 1000]))
    # Close together: as many values within one part in a thousand as over the whole range.
    offset = draw(st.sampled_from([0, 0, 10**5]))
    scores = {}
    for index, shape in enumerate(chosen):
        score = torch.randint(0, levels, shape, generator=generator).float()
        if len(shape) == 2:
            score *= torch.randint(0, 3, (shape[0], 1), generator=generator)
            score *= torch.randint(0, 3, (1, shape[1]), generator=generator)
        scores[f'w{index}'] = score * draw(st.sampled_from([0.1, 1.0, 10.0])) + offset
    return scores


def rules(rule, min_rank, beta, also_train, rank_alpha=1):
    """The same choices in the words of the oracle and of the package."""
    both = {'min_rank': min_rank, 'beta': beta, 'also_train': also_train}
    ours = {**both, 'rule': rule, 'alpha': rank_alpha}
    return ours, {**both, 'rank_rule': rule, 'rank_alpha': rank_alpha}
