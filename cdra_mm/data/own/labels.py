"""What the values in a user's masks mean: classes, what is ignored, what has to be rewritten."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from cdra_mm.errors import ConfigError, DataError

from .looking import MOST_VALUES, Seen, Value

__all__ = ['VOID', 'Meaning', 'interpret', 'value_of', 'written']

VOID = 255  # what is ignored, by custom
WHITE = 255
# Layouts whose numbers OpenMMLab reads as they are.
READABLE = ('1', 'L', 'P', 'I;16', 'I;16B')
NOISY = 16  # values in JPEG masks from which on they are compression, not labels


@dataclass(frozen=True)
class Meaning:
    """What the values mean.

    Attributes:
        classes: Names of the classes, in the order of their ids.
        ids: Id of each value that is a class.
        ignored: Values that are ignored.
        ignore_index: The id that stands for "ignored" in what is read.
        reduce_zero_label: Whether 0 is ignored and the classes begin at 1 (mmseg's setting).
        rewrite: Why the masks have to be written anew before they can be read; '' if not.
        palette: Colours of the classes, where the masks have colours.
        notes: What was taken for granted, one line each.
    """

    classes: tuple[str, ...]
    ids: Mapping[Value, int]
    ignored: tuple[Value, ...] = ()
    ignore_index: int = VOID
    reduce_zero_label: bool = False
    rewrite: str = ''
    palette: tuple[tuple[int, ...], ...] | None = None
    notes: tuple[str, ...] = field(default=())


def written(value: Value) -> str:
    """A value for people.

    Example:
        >>> written(7), written((255, 0, 16))
        ('7', '#ff0010')
    """
    return str(value) if isinstance(value, int) else '#' + ''.join(f'{part:02x}' for part in value)


def value_of(text: str) -> Value:
    """The value that a text writes, a number or ``#rrggbb``.

    Raises:
        ConfigError: If it is neither.
    """
    try:
        if text.startswith('#') and len(text) == 7:
            red, green, blue = (int(text[i : i + 2], 16) for i in (1, 3, 5))
            return red, green, blue
        return int(text)
    except ValueError:
        raise ConfigError(
            f'{text!r} is no value of a mask: expected a number, or a colour as #rrggbb'
        ) from None


def interpret(seen: Seen, classes: Sequence[str] = (), ignored: Sequence[str] = ()) -> Meaning:
    """Says what the values in masks mean.

    Args:
        seen: What the masks hold.
        classes: Names in the order of the values; or ``name=value`` for each, where a name may
            come several times.
        ignored: Values that are ignored. Default: 255, unless it is the only one beside 0.

    Raises:
        ConfigError: If `classes` or `ignored` cannot be meant so.
        DataError: If the masks cannot be label maps.
    """
    values = _values(seen)
    grey = all(isinstance(value, int) for value in values)
    void = [value_of(text) for text in ignored]
    named = [_named(text) for text in classes]
    explicit = {value: name for name, value in named if value is not None}
    if explicit and len(explicit) < len(named):
        raise ConfigError(
            'some of the classes say their value and some do not: give name=value for each, or '
            'names alone in the order of the values'
        )
    notes = []
    binary = grey and set(values) == {0, WHITE}
    if grey and not ignored and VOID in values and not binary and VOID not in explicit:
        void = [VOID]
        notes.append(f'the value {VOID} is taken as "ignored" (--ignore says otherwise)')
    kept = [value for value in values if value not in void]
    if explicit:
        names, ids = _by_value(explicit, kept)
    else:
        names, ids = _by_order([name for name, _ in named], kept, grey, binary, notes)
    if len(names) < 2:
        raise DataError(
            f'the masks hold {len(kept)} value{"s" * (len(kept) != 1)} that count '
            f'({", ".join(map(written, kept)) or "none"}): expected two classes at least'
        )
    identity = all(value == number for value, number in ids.items())
    reduced = set(void) <= {0, VOID} and all(value == number + 1 for value, number in ids.items())
    plain = identity and len(void) < 2 and all(v >= len(names) for v in void if isinstance(v, int))
    reason = _unreadable(seen)
    if not reason and not (plain or reduced):
        what = 'colours' if not grey else '0 and 255' if binary else 'values that are no class ids'
        reason = f'the masks hold {what}'
    index = VOID
    if not reason and plain and void and isinstance(void[0], int):
        index = void[0]
    return Meaning(
        classes=tuple(names),
        ids=ids,
        ignored=tuple(void),
        ignore_index=index,
        reduce_zero_label=reduced and not reason,
        rewrite=reason,
        palette=_palette(names, ids, seen),
        notes=tuple(notes),
    )


def _values(seen: Seen) -> list[Value]:
    """All values, sorted; colours of three equal parts are numbers where all are such."""
    found = list(seen.pixels_with)
    if not found:
        raise DataError('no mask can be read: see the files named above')
    if len(found) > MOST_VALUES:
        raise DataError(
            f'the masks hold {len(found)} values or colours together: expected label maps, with '
            f'at most {MOST_VALUES}; were they saved with compression or smooth edges?'
        )
    if seen.mask_formats['JPEG'] and len(found) > NOISY:
        raise DataError(
            f'the masks are JPEG files with {len(found)} values: this compression changes labels; '
            'bring them as PNG, from where they were made'
        )
    if all(isinstance(value, int) or len(set(value)) == 1 for value in found):
        for value in found:
            if not isinstance(value, int):
                seen.pixels_with[value[0]] += seen.pixels_with.pop(value)
                seen.images_with[value[0]] += seen.images_with.pop(value)
        return sorted(seen.pixels_with, key=int)  # type: ignore[arg-type]
    if any(isinstance(value, int) for value in found):
        raise DataError(
            f'some masks hold colours and some numbers ({dict(seen.mask_modes)} by the layout of '
            'their pixels): bring them all in one way'
        )
    return sorted(found)


def _named(text: str) -> tuple[str, Value | None]:
    name, equals, value = text.partition('=')
    if not name:
        raise ConfigError(f'--classes {text!r}: expected a name, or name=value')
    return name, value_of(value) if equals else None


def _by_value(
    explicit: Mapping[Value, str], kept: Sequence[Value]
) -> tuple[list[str], dict[Value, int]]:
    foreign = [value for value in kept if value not in explicit]
    if foreign:
        raise ConfigError(
            f'the masks hold {", ".join(map(written, foreign[:5]))}, which is neither a class nor '
            'ignored: add it to --classes or to --ignore'
        )
    names = list(dict.fromkeys(explicit.values()))
    return names, {value: names.index(name) for value, name in explicit.items()}


def _by_order(
    names: list[str], kept: Sequence[Value], grey: bool, binary: bool, notes: list[str]
) -> tuple[list[str], dict[Value, int]]:
    """Names and ids where the values are not told: in their order."""
    twice = next((name for name in names if names.count(name) > 1), None)
    if twice:
        raise ConfigError(f'--classes names {twice} twice: give each value of it as {twice}=VALUE')
    if grey and kept:
        ids = _ids_as_they_are([v for v in kept if isinstance(v, int)], len(names))
        if ids:
            gaps = [value for value in ids if value not in kept]
            if gaps:
                listed = ', '.join(map(str, gaps[:10]))
                notes.append(f'no mask holds {listed}: a class that never occurs')
            return names or [f'class_{number}' for number in range(len(ids))], {
                value: number for value, number in ids.items()
            }
    if names and len(names) != len(kept):
        raise ConfigError(
            f'--classes gives {len(names)} names, and the masks hold {len(kept)} values that '
            f'count: {", ".join(map(written, kept[:12]))}{" ..." * (len(kept) > 12)}; name each, '
            'or put what is no class into --ignore'
        )
    default = ['background', 'foreground'] if binary else [f'class_{i}' for i in range(len(kept))]
    return names or default, {value: number for number, value in enumerate(kept)}


def _ids_as_they_are(numbers: Sequence[int], num_names: int) -> dict[Value, int]:
    """Ids that begin at 0 or at 1; none where the numbers are no ids.

    A class that never occurs leaves a gap; numbers that are mostly gaps are no ids.
    """
    first, last = min(numbers), max(numbers)
    if first >= 1 and (num_names == last or (not num_names and first == 1)):
        size, start = last, 1
    else:
        size, start = max(last + 1, num_names), 0
    if num_names and size != num_names:
        return {}
    if not num_names and size > 2 * len(numbers):
        return {}
    return {number: number - start for number in range(start, start + size)}


def _unreadable(seen: Seen) -> str:
    """Why OpenMMLab cannot read the numbers of the masks as they are; '' if it can."""
    for mode in seen.mask_modes:
        if mode not in READABLE:
            return f'some masks are stored as {mode}, not as one number a pixel'
    if any(isinstance(value, int) and value > VOID for value in seen.pixels_with):
        return f'the masks hold numbers above {VOID}'
    return ''


def _palette(
    names: Sequence[str], ids: Mapping[Value, int], seen: Seen
) -> tuple[tuple[int, ...], ...] | None:
    """The masks' own colours, where each class has one and no two the same."""
    colours: dict[int, tuple[int, ...]] = {}
    for value, number in ids.items():
        colour = seen.palette.get(value) if isinstance(value, int) else value
        if colour is not None and len(colour) == 3:
            colours.setdefault(number, colour)
    shades = {colour[0] for colour in colours.values() if len(set(colour)) == 1}
    if len(set(colours.values())) < len(names) or (len(shades) == len(names) and max(shades) < 64):
        return None  # colours that tell nothing apart
    return tuple(colours[number] for number in range(len(names)))
