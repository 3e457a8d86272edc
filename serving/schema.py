"""The HTTP shapes: what goes over the wire, and nothing else."""

from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field


class Shape(BaseModel):
    """Base of all of them: what is not named here is not sent."""

    model_config = ConfigDict(extra="forbid", frozen=True)


class Label(Shape):
    """One label of an answer."""

    label: str
    code: int = Field(ge=0, description="The label's place among the model's labels.")
    probability: float = Field(ge=0, le=1.0001)


class ModelName(Shape):
    """Which model gave an answer."""

    name: str
    digest: str = Field(description="Over weights, config, preprocessing and labels: equal digests, equal answers.")


class Answer(Shape):
    """The answer to one picture."""

    model_config = ConfigDict(
        extra="forbid",
        frozen=True,
        json_schema_extra={
            "example": {
                "file": "a.jpg",
                "predictions": [
                    {"label": "good", "code": 1, "probability": 0.93},
                    {"label": "bad", "code": 0, "probability": 0.07},
                ],
                "model": {"name": "EXAMS/default/2026-11-22/14-03-55", "digest": "sha256:4f0c..."},
                "note": None,
            }
        },
    )

    file: str | None = Field(description="The uploaded file's name; null for a bare body.")
    predictions: list[Label] = Field(description="Best first: three, or as many as there are classes.")
    model: ModelName
    note: str | None = Field(None, description="What the sender should know, e.g. that only the first frame counted.")


class Fault(Shape):
    """Why one picture of several has no answer."""

    status: int = Field(description="The HTTP status that this picture would have got by itself.")
    type: str = Field(
        description="A stable word: unreadable, empty, unsupported_format, too_many_bytes, too_many_pixels."
    )
    message: str


class FaultyFile(Shape):
    """One picture of several that could not be used."""

    file: str | None
    error: Fault


class BatchAnswer(Shape):
    """The answers to many pictures, in the order in which they came."""

    results: list[Answer | FaultyFile]
    model: ModelName


class Score(Shape):
    """One label, as Hugging Face writes it."""

    label: str
    score: float


class HfParameters(BaseModel):
    """What Hugging Face's client may ask for. Its other parameters belong to other tasks."""

    model_config = ConfigDict(extra="forbid")

    top_k: int | None = Field(None, ge=1, description="How many labels; three when it is not said.")
    function_to_apply: Literal["softmax"] | None = None


class HfRequest(BaseModel):
    """The JSON form of a request to `/hf`."""

    model_config = ConfigDict(extra="forbid")

    inputs: str = Field(description="The picture's bytes in base64.")
    parameters: HfParameters | None = None


class Input(Shape):
    """What the network takes: every picture is brought to this size."""

    width_px: int
    height_px: int


class ModelCard(Shape):
    """What is known of the model that answers."""

    name: str
    digest: str
    labels: list[str]
    input: Input
    metrics: dict[str, Any]
    dataset: dict[str, Any]
    created: str
    device: str
    backend: str = Field(description="What computes: torch, or onnx (ONNX Runtime).")
    limits: dict[str, int]


class Health(Shape):
    """`ok` from `/healthz`, `ready` from `/readyz`."""

    status: Literal["ok", "ready"]


class Problem(BaseModel):
    """RFC 9457, as application/problem+json."""

    type: str = Field(description="A link to the sentence in /docs that explains it.")
    title: str
    status: int
    detail: str = Field(description="What was found, what was expected, what to do.")
    reason: str = Field(description="A stable word, as it is counted in the metrics.")
