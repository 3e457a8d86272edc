"""What `serve run serving.app:deploy key=value ...` understands."""

from pathlib import Path
from typing import Literal

from pydantic import Field, model_validator

from cluster.configuration import Section

Device = Literal["auto", "cpu", "gpu"]
Backend = Literal["auto", "torch", "onnx"]


class DeployArgs(Section):
    """Every setting of the endpoint. Unknown keys are refused; values arrive as text from the command line.

    The defaults stand here and not in YAML: Ray Serve hands over what the user gave, and nothing else.
    """

    model: str = Field(
        description="A model folder, or `EXAMS` for the newest model of a dataset, or `EXAMS/category`.", min_length=1
    )
    models_dir: Path = Field(Path("models"), description="Where `model=EXAMS` looks for models.")
    device: Device = Field(
        "auto", description="`auto` takes a GPU where the deploying machine, or its cluster, has one."
    )

    backend: Backend = Field(
        "auto", description="`auto` takes the faster one: on a CPU model.onnx, where training kept one."
    )

    min_replicas: int = Field(1, ge=0, description="Never fewer; 0 lets an idle endpoint stop, and the next one wait.")
    max_replicas: int = Field(2, ge=1, description="Never more.")
    target_ongoing_requests: float = Field(
        8, gt=0, description="Requests that one replica should be busy with; more starts another replica."
    )
    upscale_delay_s: float = Field(5, ge=0, description="How long the load must last before a replica is added.")
    downscale_delay_s: float = Field(300, ge=0, description="How long it must be gone before one is removed.")
    load_window_s: float = Field(10, gt=0, description="The load that counts is the average over this time.")
    # A share below one leaves room on a full machine for the new replicas of a model swap beside the old ones.
    cpus_per_replica: float = Field(
        0.5, gt=0, description="CPUs reserved; the network gets as many threads, at least one."
    )
    gpus_per_replica: float = Field(0.25, gt=0, description="Share of a GPU reserved, where device is a GPU.")

    max_batch_size: int = Field(16, ge=1, le=1024, description="The most pictures in one forward pass.")
    batch_wait_ms: float = Field(
        0, ge=0, description="How long a batch waits for more pictures; 0 takes those that wait already."
    )
    max_queue: int = Field(
        128, ge=1, description="Pictures that a replica holds, waiting or being answered; more get 503."
    )
    max_queue_mb: float = Field(
        512, gt=0, description="Request bodies that a replica holds, in MiB; more get 503. Two of the largest must fit."
    )

    max_upload_mb: float = Field(20, gt=0, le=1024, description="The largest picture, in MiB.")
    max_batch_files: int = Field(64, ge=1, le=1000, description="The most pictures in one request to /predict/batch.")
    max_batch_mb: float = Field(100, gt=0, le=4096, description="The largest body of /predict/batch, in MiB.")
    upload_timeout_s: float = Field(
        60, gt=0, description="How long the body of a request may take to arrive; longer gets 408."
    )
    api_key_file: Path | None = Field(
        None,
        description="A file with the API key; SERVE_API_KEY in the environment does the same. Neither: no key.",
    )

    access_log: bool = Field(default=False, description="A log line for each request; the metrics count them anyway.")

    @model_validator(mode="after")
    def _possible(self) -> "DeployArgs":
        if self.min_replicas > self.max_replicas:
            raise ValueError(
                f"min_replicas={self.min_replicas} is above max_replicas={self.max_replicas}; raise max_replicas"
            )
        largest = max(self.max_upload_mb, self.max_batch_mb)
        if self.max_queue_mb < 2 * largest:  # one arrives while another is answered; base64 makes them larger, too
            raise ValueError(
                f"max_queue_mb={self.max_queue_mb:g} is less than two bodies of {largest:g} MiB; raise max_queue_mb, or "
                "lower max_batch_mb and max_upload_mb"
            )
        return self

    @property
    def max_upload_bytes(self) -> int:
        """`max_upload_mb` in bytes."""
        return int(self.max_upload_mb * 1024 * 1024)

    @property
    def max_batch_bytes(self) -> int:
        """`max_batch_mb` in bytes."""
        return int(self.max_batch_mb * 1024 * 1024)

    @property
    def max_queue_bytes(self) -> int:
        """`max_queue_mb` in bytes."""
        return int(self.max_queue_mb * 1024 * 1024)
