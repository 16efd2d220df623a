"""What the labels of a data set say about mistakes that no error will tell."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from cdra_mm.spelling import first_of

from .label_rule import LabelRule

__all__ = ['likely_mistakes', 'named_classes']

NAMED = 10
MUCH_IGNORED = 0.5


def likely_mistakes(
    counts: Mapping[int, int],
    rule: LabelRule,
    *,
    what: str,
    names: Sequence[str] = (),
    reduces_zero: bool = False,
    is_whole: bool = True,
) -> list[str]:
    """Sentences on labels that can be trained on, and probably should not be.

    Args:
        counts: Pixels (or images) of each label id, as the loss gets them.
        rule: What the head takes.
        what: Which labels these are, for the message.
        names: Class names by id.
        reduces_zero: Whether the data set has ``reduce_zero_label``.
        is_whole: Whether these are all labels there are; otherwise a few missing classes of many
            mean nothing.

    Returns:
        A line each; none for ordinary labels.
    """
    total = sum(counts.values())
    if not total:
        return []
    ignored = counts.get(rule.ignored, 0) if rule.ignored is not None else 0
    seen = {i for i, count in counts.items() if count and i != rule.ignored}
    share = f'{100 * ignored / total:.1f} % of the labels'
    binary = 2 if rule.limit == 2 else rule.num_classes
    if ignored and seen <= {0} and reduces_zero:
        return [
            f'{what}: {share} are ignored and all others are class 0: reduce_zero_label=True '
            'ignores the label 0 and lowers every other by one; set it to False if 0 is a class'
        ]
    if ignored and seen <= {0} and rule.ignored == 255:
        return [
            f'{what}: {share} are ignored and all others are class 0: in masks of 0 and 255 the '
            'foreground is ignored; store 1 in the place of 255'
        ]
    lines = []
    if ignored > MUCH_IGNORED * total:
        lines.append(f'{what}: {share} are ignored (id {rule.ignored}): is that meant?')
    unseen = [i for i in range(rule.limit or 0) if i not in seen]
    few = is_whole or len(unseen) > (rule.limit or 0) // 2
    if len(seen) == 1 and binary > 1:
        lines.append(
            f'{what}: class {named_classes(sorted(seen), names)} is the only one of {binary}: '
            'there is nothing to tell apart'
        )
    elif unseen and few and rule.limit is not None:
        lines.append(
            f'{what}: {len(unseen)} of {rule.limit} classes never occur '
            f'({named_classes(unseen, names)}): do num_classes, reduce_zero_label and the labels '
            'fit each other?'
        )
    return lines


def named_classes(ids: Sequence[int], names: Sequence[str]) -> str:
    """Class ids with their names, the first few.

    Example:
        >>> named_classes([0, 2], ['sky', 'road'])
        '0 sky, 2'
    """
    named = (f'{i} {names[i]}' if 0 <= i < len(names) else str(i) for i in ids)
    return first_of(named, NAMED)
