"""The model folder's README.md: what the model is, how good, how to use it. In the hub's form."""

import json
from typing import Any

from training.loop import Job
from training.run_folder import RunFolder


def write_model_card(folder: RunFolder, job: Job, metrics: dict[str, Any]) -> None:
    """Write `README.md`; without test results when there are none."""
    config = job.config
    header = {
        "library_name": "transformers",
        "pipeline_tag": "image-classification",
        "tags": ["image-classification"],
    }
    lines = ["---", *(f"{key}: {json.dumps(value)}" for key, value in header.items()), "---", ""]
    lines += [f"# {folder.name}", ""]
    counts = {split: sum(job.dataset["counts"][split].values()) for split in ("train", "val", "test")}
    lines += [
        f"Tells {len(job.labels)} classes apart: {', '.join(job.labels)}.",
        "",
        f"{_origin(config['model'])} on the dataset {job.dataset['name']} "
        f"({counts['train']} pictures trained on, {counts['val']} to choose the epoch, {counts['test']} to test).",
        "",
    ]
    if "per_class" in metrics:
        lines += [
            f"On the test split, with the weights of epoch {metrics['best_epoch']}: accuracy {metrics['accuracy']:.3f}, "
            f"macro F1 {metrics['macro_f1']:.3f}.",
            "",
            "| class | precision | recall | F1 | test pictures |",
            "| --- | --- | --- | --- | --- |",
        ]
        for label, row in metrics["per_class"].items():
            cell = label.replace("|", "\\|")
            lines.append(
                f"| {cell} | {row['precision']:.3f} | {row['recall']:.3f} | {row['f1']:.3f} | {row['support']} |"
            )
    else:
        lines.append("The run was interrupted: the test split was not scored.")
    lines += [
        "",
        "## Use",
        "",
        "```python",
        "from transformers import pipeline",
        "",
        'pipeline("image-classification", model="this folder")("a.jpg", top_k=3)',
        "```",
        "",
        "```bash",
        f"python -m serving.batch md=models/{folder.name}",
        f"serve run serving.app:deploy model=models/{folder.name}",
        "```",
        "",
        f"Dataset fingerprint `{job.dataset['fingerprint']}`, seed {config['seed']}; `config.yaml` holds every setting.",
        "",
    ]
    (folder.path / "README.md").write_text("\n".join(lines))


def _origin(model: dict[str, Any]) -> str:
    if model["config"] is None:
        return f"Fine-tuned from `{model['model_name']}`"
    return f"Trained from random weights (`{model['config']['model_type']}`)"
