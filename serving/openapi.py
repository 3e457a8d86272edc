"""What `/openapi.json` says beyond the shapes: request bodies, examples, which errors each route answers."""

from typing import Any

from fastapi import FastAPI

from serving.problem import MEDIA_TYPE
from serving.schema import HfRequest, Problem

SUMMARY = "Pictures in, the three most probable labels out."

_DESCRIPTIONS = {
    400: "The body cannot be read as what it says it is.",
    401: "The endpoint asks for a key, and the request does not carry it.",
    408: "The body did not arrive in time.",
    413: "Too many bytes, or too many files.",
    415: "Not a picture in a known format, judged by content and never by name.",
    422: "A picture that cannot be used: empty, truncated, too many pixels.",
    503: "The replica holds as many pictures, or as many bytes, as it has room for; Retry-After says when to try again.",
}
_BINARY = {"type": "string", "format": "binary"}


def _problems(*statuses: int) -> dict[int | str, dict[str, Any]]:
    return {
        status: {
            "description": _DESCRIPTIONS[status],
            "content": {MEDIA_TYPE: {"schema": {"$ref": "#/components/schemas/Problem"}}},
        }
        for status in statuses
    }


def _body(**content: dict[str, Any]) -> dict[str, Any]:
    types = {"octets": "application/octet-stream", "form": "multipart/form-data", "json": "application/json"}
    return {"requestBody": {"required": True, "content": {types[kind]: media for kind, media in content.items()}}}


_ERRORS = _problems(400, 401, 408, 413, 415, 422, 503)
_FILES = {"type": "array", "items": _BINARY, "minItems": 1}

PREDICT: dict[str, Any] = {
    "summary": "Classify one picture",
    "description": "The picture as the body, or as the first file of a form.\n\n"
    "    curl --data-binary @a.jpg localhost:8000/predict\n    curl -F file=@a.jpg localhost:8000/predict",
    "responses": _ERRORS,
    "openapi_extra": _body(
        octets={"schema": _BINARY},
        form={"schema": {"type": "object", "properties": {"file": _BINARY}, "required": ["file"]}},
    ),
}
BATCH: dict[str, Any] = {
    "summary": "Classify many pictures",
    "description": "One result for each file, in order; a bad file has its own error and the others their answers.\n\n"
    "    curl -F file=@a.jpg -F file=@b.jpg localhost:8000/predict/batch",
    "responses": _ERRORS,
    "openapi_extra": _body(
        form={"schema": {"type": "object", "properties": {"file": _FILES}, "required": ["file"]}},
    ),
}
HF: dict[str, Any] = {
    "summary": "Classify one picture, in Hugging Face's form",
    "description": 'What `huggingface_hub.InferenceClient(model="http://localhost:8000/hf").image_classification("a.jpg")`'
    " sends and understands.",
    "responses": _ERRORS,
    "openapi_extra": _body(
        octets={"schema": _BINARY},
        json={
            "schema": HfRequest.model_json_schema(ref_template="#/components/schemas/{model}"),
            "example": {"inputs": "/9j/4AAQSkZJRg...", "parameters": {"top_k": 3}},
        },
    ),
}
MODEL: dict[str, Any] = {"summary": "The model that answers", "responses": _problems(401)}
HEALTH: dict[str, Any] = {"summary": "The process runs"}
READY: dict[str, Any] = {"summary": "A replica has loaded the model and answered a picture"}


def document(api: FastAPI) -> dict[str, Any]:
    """The whole document, complete and the same for every reader."""
    whole = api.openapi()
    whole["components"]["schemas"]["Problem"] = Problem.model_json_schema()
    return whole
