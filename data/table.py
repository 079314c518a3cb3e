"""What a catalogue holds and what was left out, as a table to read before the first step."""

from collections import Counter, defaultdict

from rich.markup import escape
from rich.table import Table

from .catalogue import Catalogue

NAMED = 3  # files shown for each reason


def catalogue_table(train: Catalogue, held_out: Catalogue | None = None) -> Table:
    """Pictures kept for each class, and pictures dropped for each reason with the first few files."""
    held_out = held_out if held_out is not None else train.subset([])
    table = Table(title="Catalogue", show_footer=True)
    table.add_column("", footer="kept")
    table.add_column("training", justify="right", footer=str(len(train)))
    table.add_column("held out", justify="right", footer=str(len(held_out)))
    table.add_column("", footer="")
    kept, held = (Counter(part.class_ids.tolist()) for part in (train, held_out))
    for class_id, name in enumerate(train.class_names):
        prefix = train.prefixes[name]
        note = escape(f'captions open with "{prefix}"') if prefix else ""
        table.add_row(escape(name), str(kept[class_id]), str(held[class_id]), note)
    reasons: dict[str, list[str]] = defaultdict(list)
    for origin, reason in train.dropped:
        reasons[reason].append(origin)
    table.add_section()
    for reason, origins in sorted(reasons.items(), key=lambda item: -len(item[1])):
        more = f" and {len(origins) - NAMED} more" if len(origins) > NAMED else ""
        table.add_row(f"dropped: {reason}", str(len(origins)), "", escape(", ".join(origins[:NAMED])) + more)
    return table
