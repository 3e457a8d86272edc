"""What training is measured against: the plain script a person would write with Lightning and a PyTorch DataLoader.

    python -m benchmarks.lightning_peer WEIGHTS PHOTOS EPOCHS BATCH [MAX_STEPS]

The model's own image processor on every picture in every epoch, a DataLoader worker for each core, torch's default memory
format and 32-bit floats, validation and a checkpoint each epoch, the test split and a report at the end. Prints as JSON
when its first step began, in seconds since 1970.
"""

import json
import os
import random
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

SHARES = (0.7, 0.85)


def main(weights: str, photos: str, epochs: int, batch: int, max_steps: int = -1) -> None:
    import lightning.pytorch as lightning
    import torch
    from lightning.pytorch.callbacks import ModelCheckpoint
    from PIL import Image
    from sklearn.metrics import classification_report, confusion_matrix
    from torch.nn import functional
    from torch.utils.data import DataLoader, Dataset
    from transformers import AutoImageProcessor, AutoModelForImageClassification

    processor = AutoImageProcessor.from_pretrained(weights, backend="pil")
    classes = sorted(folder.name for folder in Path(photos).iterdir() if folder.is_dir())
    items = [(file, code) for code, name in enumerate(classes) for file in sorted((Path(photos) / name).iterdir())]
    random.Random(42).shuffle(items)
    first, second = (int(len(items) * share) for share in SHARES)

    class Photos(Dataset[Any]):
        def __init__(self, part: list[tuple[Path, int]]) -> None:
            self.part = part

        def __len__(self) -> int:
            return len(self.part)

        def __getitem__(self, place: int) -> Any:
            file, code = self.part[place]
            pixels = processor(Image.open(file).convert("RGB"), return_tensors="pt")["pixel_values"][0]
            return pixels, code

    class Classifier(lightning.LightningModule):
        def __init__(self) -> None:
            super().__init__()
            self.network = AutoModelForImageClassification.from_pretrained(
                weights, num_labels=len(classes), ignore_mismatched_sizes=True
            ).train()
            self.first_step_at: float | None = None
            self.seen: list[Any] = []

        def training_step(self, pair: Any, _: int) -> Any:
            self.first_step_at = self.first_step_at or time.time()
            return functional.cross_entropy(self.network(pixel_values=pair[0]).logits, pair[1])

        def validation_step(self, pair: Any, _: int) -> None:
            logits = self.network(pixel_values=pair[0]).logits
            self.log("val_loss", functional.cross_entropy(logits, pair[1]))

        def test_step(self, pair: Any, _: int) -> None:
            self.seen.append((self.network(pixel_values=pair[0]).logits.argmax(1), pair[1]))

        def configure_optimizers(self) -> Any:
            return torch.optim.AdamW(self.parameters(), lr=2e-4)

    def loader(part: list[tuple[Path, int]], *, shuffle: bool) -> Any:
        workers = len(os.sched_getaffinity(0))
        return DataLoader(Photos(part), batch_size=batch, shuffle=shuffle, num_workers=workers, persistent_workers=True)

    module = Classifier()
    with tempfile.TemporaryDirectory() as scratch:
        trainer = lightning.Trainer(
            max_epochs=epochs,
            max_steps=max_steps,
            accelerator="auto",  # the GPU where there is one
            enable_progress_bar=False,
            enable_model_summary=False,
            num_sanity_val_steps=0,
            default_root_dir=scratch,
            callbacks=[ModelCheckpoint(monitor="val_loss")],
        )
        trainer.fit(module, loader(items[:first], shuffle=True), loader(items[first:second], shuffle=False))
        if max_steps < 0:
            trainer.test(module, loader(items[second:], shuffle=False), ckpt_path="best", weights_only=False)
            predicted, true = (torch.cat(parts).numpy() for parts in zip(*module.seen, strict=True))
            print(classification_report(true, predicted, target_names=classes, zero_division=0), file=sys.stderr)
            print(confusion_matrix(true, predicted), file=sys.stderr)
    print(json.dumps({"first_step_at": module.first_step_at}))


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], *map(int, sys.argv[3:]))
