"""Which picture is trained on, which decides, which tests: stratified, seeded, the same content never on two sides."""

import hashlib
from collections import defaultdict
from collections.abc import Mapping, Sequence

SPLITS = ("train", "val", "test")


def split_pictures(
    labels: Sequence[str], groups: Sequence[str], *, shares: Mapping[str, float], seed: int
) -> list[str]:
    """Assign every picture to `train`, `val` or `test`.

    Per class: `val` and `test` get their share, rounded, and at least one group each; `train` gets the rest. So a class
    of 3 gives one picture to each. A group (pictures with the same content) is never divided.

    Args:
        labels: the class of each picture.
        groups: the group of each picture.
        shares: of `val` and `test`, 0..1.
        seed: another seed gives another split; the same one gives the same split, whatever the order of the files.

    Returns:
        the split of each picture.
    """
    members: dict[str, list[int]] = defaultdict(list)
    for index, group in enumerate(groups):
        members[group].append(index)
    by_label: dict[str, list[str]] = defaultdict(list)
    for group, indices in members.items():
        # a group whose pictures lie in two classes counts for the first of them
        by_label[min(labels[index] for index in indices)].append(group)
    assigned: dict[str, str] = {}
    for label in sorted(by_label):
        ordered = sorted(by_label[label], key=lambda group: hashlib.sha256(f"{seed}:{group}".encode()).digest())
        pictures = sum(len(members[group]) for group in ordered)
        start = 0
        for split, left_for_others in (("test", 2), ("val", 1)):
            wanted, got = max(1, round(shares[split] * pictures)), 0
            while got < wanted and start < len(ordered) - left_for_others:
                assigned[ordered[start]] = split
                got += len(members[ordered[start]])
                start += 1
        for group in ordered[start:]:
            assigned[group] = "train"
    return [assigned[group] for group in groups]
