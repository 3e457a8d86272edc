"""Which picture is trained on, which decides, which tests: stratified, seeded, the same content never on two sides."""

import hashlib
from collections.abc import Mapping, Sequence

import numpy as np
import pyarrow as pa

SPLITS = ("train", "val", "test")


def split_pictures(
    labels: Sequence[str], groups: Sequence[str] | pa.Array, *, shares: Mapping[str, float], seed: int
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
    # numbers instead of strings: a hundred thousand digests as Python's objects take tens of megabytes
    encoded = pa.array(groups, pa.string()).dictionary_encode()
    group_of, names = encoded.indices.to_numpy(), encoded.dictionary
    different = sorted(set(labels))
    code_of = {label: code for code, label in enumerate(different)}
    label_of = np.full(len(names), len(different))
    # a group whose pictures lie in two classes counts for the first of them
    np.minimum.at(label_of, group_of, np.fromiter((code_of[label] for label in labels), np.int64, len(labels)))
    sizes = np.bincount(group_of, minlength=len(names))
    assigned = np.full(len(names), SPLITS.index("train"))
    by_label = np.argsort(label_of, kind="stable")
    for members in np.split(by_label, np.searchsorted(label_of[by_label], np.arange(1, len(different)))):
        ordered = sorted(
            members.tolist(), key=lambda group: hashlib.sha256(f"{seed}:{names[group].as_py()}".encode()).digest()
        )
        pictures, start = int(sizes[members].sum()), 0
        for split, left_for_others in (("test", 2), ("val", 1)):
            wanted, got = max(1, round(shares[split] * pictures)), 0
            while got < wanted and start < len(ordered) - left_for_others:
                assigned[ordered[start]] = SPLITS.index(split)
                got += int(sizes[ordered[start]])
                start += 1
    return [SPLITS[code] for code in assigned[group_of]]
