"""The configuration of a training run: frozen, without defaults (they live in `configs/`), nothing unknown."""

import re
from pathlib import Path
from typing import Any, Literal, Self

from pydantic import Field, ValidationInfo, field_validator, model_validator

from cluster.configuration import Section
from cluster.sizing import Workers

Monitor = Literal["val_acc", "val_loss"]
Mode = Literal["max", "min"]
_BEST: dict[Monitor, Mode] = {"val_acc": "max", "val_loss": "min"}
_MOST_WORKERS = 1024


class TrainerConfig(Section):
    """How long, on what, in which precision."""

    device: Literal["auto", "cpu", "gpu"] = Field(description="auto uses GPUs when the cluster has them")
    max_epochs: int = Field(ge=1, description="the most epochs that are trained; early stopping may end it sooner")
    precision: Literal["auto", 32, "bf16"] = Field(
        description="auto is bf16 where the GPU or CPU computes in it, else 32-bit floats"
    )
    compile: bool = Field(description="compile the network (torch.compile): a slow first step, faster ones on a GPU")
    gradient_clip: float | None = Field(gt=0, description="largest gradient norm; null for no limit")
    max_failures: int = Field(
        ge=0, description="how often a run goes on from its last checkpoint after a worker or a machine was lost"
    )
    slow_after_s: float = Field(gt=0, description="a worker that does the same for so many seconds is named")
    hang_after_s: float = Field(gt=0, description="one that does the same for so long is ended and counts as lost")
    resize_every_s: float = Field(gt=0, description="with num_workers=2..8: how often the cluster is looked at")
    storage_wait_s: float = Field(ge=0, description="for how long a checkpoint that cannot be written is tried again")


class ModelConfig(Section):
    """Which network, and how it learns."""

    model_name: str = Field(min_length=1, description="a model of the Hugging Face hub, or a folder in its form")
    lr: float = Field(gt=0, le=10, description="learning rate of AdamW")
    weight_decay: float = Field(ge=0, le=1, description="weight decay of AdamW; norms and biases are left out")
    warmup_epochs: float = Field(ge=0, description="epochs over which the learning rate rises to model.lr")
    schedule: Literal["constant", "cosine"] = Field(
        description="after the warm-up: constant, or cosine to 0 at max_epochs"
    )
    label_smoothing: float = Field(ge=0, lt=1, description="share of the target spread over all classes")
    average_decay: float | None = Field(
        gt=0, lt=1, description="of the moving average of the weights that is validated and kept; null for none"
    )
    size_px: int | None = Field(ge=8, le=4096, description="side of the input; null for the model's own geometry")
    config: dict[str, Any] | None = Field(
        description="a Hugging Face config (model_type and its fields) for random weights instead of model_name"
    )


class SplitConfig(Section):
    """Shares of the pictures of each class."""

    train: float = Field(gt=0, lt=1, description="share of each class that is trained on")
    val: float = Field(gt=0, lt=1, description="share that decides when to stop and which epoch is best")
    test: float = Field(gt=0, lt=1, description="share that is scored once, with the best epoch's weights")

    @model_validator(mode="after")
    def _adds_up(self) -> Self:
        total = self.train + self.val + self.test
        if abs(total - 1) > 1e-6:
            raise ValueError(f"train + val + test is {total:g}; expected 1")
        return self


class DataConfig(Section):
    """The pictures and how they are kept."""

    batch_size: int = Field(ge=1, description="pictures in one optimizer step, over all workers together")
    split: SplitConfig
    max_bad_share: float = Field(
        ge=0, le=1, description="stop when more than this share of the pictures cannot be read"
    )
    max_pixels: int = Field(ge=1, le=178_956_970, description="a picture that declares more is set aside")
    cache: Literal["auto", "memory", "disk"] = Field(description="where decoded pixels are kept between epochs")
    memory_share: float = Field(
        gt=0, le=0.8, description="share of a machine's object store that decoded pixels may take"
    )
    disk_limit_gb: float = Field(gt=0, description="size of paths.cache; the oldest entries go when it is exceeded")


class AugmentConfig(Section):
    """Random changes to training pictures, made on the device, batch by batch."""

    flip: bool = Field(description="mirror half of the pictures left to right; set false for text or digits")
    crop_scale_min: float = Field(gt=0, le=1, description="cut out at least this share of the area; 1 for no cropping")


class WatchedConfig(Section):
    """What an epoch is judged by."""

    monitor: Monitor = Field(description="what epochs are compared by")
    mode: Mode = Field(description="whether its largest or its smallest value is the best")

    @field_validator("mode")
    @classmethod
    def _the_monitors_own(cls, mode: Mode, info: ValidationInfo) -> Mode:
        monitor = info.data.get("monitor")  # None: a wrong one, which is said of it already
        if monitor is not None and mode != _BEST[monitor]:
            raise ValueError(
                f"expected {_BEST[monitor]} with monitor={monitor}, else the worst epoch would count as the best"
            )
        return mode


class EarlyStoppingConfig(WatchedConfig):
    """When to stop before `trainer.max_epochs`."""

    patience: int = Field(ge=1, description="stop after this many epochs without improvement")
    min_delta: float = Field(ge=0, description="a smaller change is no improvement")


class ModelCheckpointConfig(WatchedConfig):
    """Which epochs are kept."""

    save_top_k: int = Field(ge=1, description="how many of the best epochs keep their .ckpt file")


class CallbacksConfig(Section):
    """The rules that end a run and choose its result."""

    # The one default outside YAML: a deleted section means that the rule is off.
    early_stopping: EarlyStoppingConfig | None = None
    model_checkpoint: ModelCheckpointConfig


class LoggerConfig(Section):
    """Where curves go."""

    tensorboard: bool = Field(description="write curves to MODEL/tensorboard")


class PathsConfig(Section):
    """Folders; relative ones start where the command is typed. The first two may be URLs."""

    raw_data: str = Field(description="folder or URL (s3://, gs://) of datasets: RAW_DATA/EXAMS/<class>/<picture>")
    metadata: str = Field(description="folder or URL for what was found in each dataset, and its split")
    cache: Path = Field(description="decoded pixels that do not fit in memory")
    models: Path = Field(description="where model folders are written")

    @field_validator("cache", "models", mode="before")
    @classmethod
    def _a_folder(cls, value: Any) -> Any:
        if isinstance(value, str) and "://" in value:
            raise ValueError(
                "expected a folder that every machine mounts at the same place; of paths, raw_data and metadata take URLs"
            )
        return value


class TrainConfig(Section):
    """`configs/train.yaml` and the command line, checked."""

    ds: str = Field(description="the dataset: the name of a folder in paths.raw_data")
    category: str = Field(description="models go to paths.models/DS/CATEGORY/DATE/TIME")
    num_workers: int | str = Field(
        description="training processes, auto, or 2..8 to start with what there is; a speed setting, not a result setting"
    )
    seed: int = Field(ge=0, lt=2**32, description="of the split, the new head, the order and the augmentation")
    resume: Path | None = Field(description="a model folder whose training goes on from its last checkpoint")
    trainer: TrainerConfig
    model: ModelConfig
    data: DataConfig
    augment: AugmentConfig
    callbacks: CallbacksConfig
    logger: LoggerConfig
    paths: PathsConfig

    @property
    def workers(self) -> Workers:
        """`num_workers` as `cluster.sizing` takes it: a number, auto, or the fewest and the most."""
        if isinstance(self.num_workers, int):
            return self.num_workers
        fewest, _, most = self.num_workers.partition("..")
        return (int(fewest), int(most)) if most else "auto"

    @model_validator(mode="before")
    @classmethod
    def _names_a_dataset(cls, plain: Any) -> Any:
        if isinstance(plain, dict) and plain.get("ds") in (None, ""):
            raise ValueError(
                "ds is not set; expected the name of a dataset, for example ds=EXAMS; --help lists the settings"
            )
        return plain

    @field_validator("category")
    @classmethod
    def _a_folders_name(cls, category: str) -> str:
        if not re.fullmatch(r"\w[\w.-]*", category):
            raise ValueError("expected a folder's name of letters, digits, _ - and ., without /")
        return category

    @model_validator(mode="after")
    def _workers_in_range(self) -> Self:
        asked = self.num_workers
        if isinstance(asked, int):
            fine = 1 <= asked <= _MOST_WORKERS
        else:
            found = re.fullmatch(r"(\d+)\.\.(\d+)", asked)
            fine = asked == "auto" or (found is not None and 1 <= int(found[1]) < int(found[2]) <= _MOST_WORKERS)
        if not fine:
            raise ValueError(
                f"num_workers={asked}: expected a whole number from 1 to {_MOST_WORKERS}, auto, or a range such as 2..8"
            )
        return self
