"""The HTTP routes of one replica."""

import asyncio
import base64
import binascii
import logging
from collections.abc import Awaitable, Callable, Coroutine, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, TypeVar
from urllib.parse import quote

from fastapi import FastAPI, Request
from fastapi.responses import JSONResponse, Response
from fastapi.routing import APIRoute
from pydantic import BaseModel, TypeAdapter, ValidationError
from starlette.exceptions import HTTPException

from classifier.errors import BadImage
from classifier.predict import top
from serving import openapi, pages, problem
from serving.body import Upload, read_body, read_upload, read_uploads
from serving.key import is_right
from serving.problem import Refused
from serving.room import Place
from serving.schema import (
    Answer,
    BatchAnswer,
    Fault,
    FaultyFile,
    Health,
    HfParameters,
    HfRequest,
    Input,
    Label,
    ModelCard,
    ModelName,
    Score,
)

if TYPE_CHECKING:
    from serving.replica import Classified, Replica

_log = logging.getLogger("ray.serve")
_TOP = 3
_SCORES = TypeAdapter(list[Score])
_Read = TypeVar("_Read")


class _Route(APIRoute):
    """A route whose function takes the request and returns the response, and needs nothing in between."""

    def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
        handler: Callable[[Request], Coroutine[Any, Any, Response]] = self.endpoint
        return handler


def build_api(replica: "Replica") -> FastAPI:
    """The ASGI application of a replica."""
    desk = Desk(replica)
    api = FastAPI(
        title="Class folders", version="1", summary=openapi.SUMMARY, docs_url=None, redoc_url=None, openapi_url=None
    )
    api.router.route_class = _Route

    @api.post("/predict", response_model=Answer, **openapi.PREDICT)
    async def predict(request: Request) -> Response:
        with desk.admit(request) as place:
            upload = await desk.in_time(read_upload(request, place, max_bytes=desk.args.max_upload_bytes))
            return desk.respond(await desk.answer(upload))

    @api.post("/predict/batch", response_model=BatchAnswer, **openapi.BATCH)
    async def predict_batch(request: Request) -> Response:
        with desk.admit(request) as place:
            uploads = await desk.in_time(
                read_uploads(request, place, max_bytes=desk.args.max_batch_bytes, max_files=desk.args.max_batch_files)
            )
            place.take_pictures(len(uploads) - 1)
            results = await asyncio.gather(*(desk.answer_or_fault(upload) for upload in uploads))
            return desk.respond(BatchAnswer(results=list(results), model=desk.name))

    @api.post("/hf", response_model=list[Score], **openapi.HF)
    async def hugging_face(request: Request) -> Response:
        with desk.admit(request) as place:
            # base64 makes four bytes of three; the parameters come on top
            max_bytes = desk.args.max_upload_bytes * 4 // 3 + 64 * 1024
            body = await desk.in_time(read_body(request, place, max_bytes=max_bytes))
            data, parameters = _read_hf(body)
            classified = await desk.classify(data)
            best = desk.labels_of(classified, k=parameters.top_k or _TOP)
            scores = [Score(label=label.label, score=label.probability) for label in best]
            return desk.respond_json(_SCORES.dump_json(scores))

    @api.get("/model", response_model=ModelCard, **openapi.MODEL)
    async def model(request: Request) -> Response:
        desk.check_key(request)
        return desk.respond(desk.card)

    @api.get("/healthz", response_model=Health, **openapi.HEALTH)
    async def healthz(_: Request) -> Response:
        return desk.respond(Health(status="ok"))

    @api.get("/readyz", response_model=Health, **openapi.READY)
    async def readyz(_: Request) -> Response:
        # A replica that has not yet loaded its model and answered a picture gets no requests from Serve.
        return desk.respond(Health(status="ready"))

    @api.get("/openapi.json", include_in_schema=False)
    async def schema(_: Request) -> Response:
        return JSONResponse(document)

    pages.add_to(api)
    _add_handlers(api, desk)
    document = openapi.document(api)
    return api


class Desk:
    """What the routes share: who may come in, and how an answer is written."""

    def __init__(self, replica: "Replica") -> None:
        self.args = replica.settings.args
        self._replica = replica
        manifest = replica.predictor.manifest
        self._labels = manifest.labels
        self.name = ModelName(name=manifest.name, digest=manifest.digest)
        # A header holds ASCII; a dataset may be named in any language.
        self._headers = {
            "X-Model-Name": quote(manifest.name),
            "X-Model-Digest": manifest.digest,
            "X-Content-Type-Options": "nosniff",
        }
        self.card = ModelCard(
            name=manifest.name,
            digest=manifest.digest,
            labels=list(manifest.labels),
            input=Input(width_px=manifest.preprocess.width_px, height_px=manifest.preprocess.height_px),
            metrics=manifest.metrics,
            dataset=manifest.dataset,
            created=manifest.created,
            device=str(self.args.device),
            backend=replica.predictor.backend,
            limits={
                "upload_bytes": self.args.max_upload_bytes,
                "batch_bytes": self.args.max_batch_bytes,
                "batch_files": self.args.max_batch_files,
                "pixels": manifest.preprocess.max_pixels,
            },
        )

    def check_key(self, request: Request) -> None:
        """Raises Refused (401) when a key is asked for and the request does not carry it."""
        digest = self._replica.settings.key_digest
        if digest is not None and not is_right(request.headers, digest):
            raise Refused(
                401,
                "no_key",
                "This endpoint asks for a key: send the header Authorization: Bearer KEY, or X-API-Key: KEY",
                {"WWW-Authenticate": "Bearer"},
            )

    @contextmanager
    def admit(self, request: Request) -> Iterator[Place]:
        """Let a request in, before a byte of its body is read."""
        self.check_key(request)
        with self._replica.room.place() as place:
            yield place

    async def in_time(self, reading: Awaitable[_Read]) -> _Read:
        """Wait for a body: whoever sends one byte a minute would hold a place for ever. Raises Refused (408)."""
        limit_s = self.args.upload_timeout_s
        try:
            async with asyncio.timeout(limit_s):
                return await reading
        except TimeoutError as error:
            detail = f"The body had not arrived after {limit_s:g} s; send it faster, or a smaller picture"
            raise Refused(408, "too_slow", detail, {"Connection": "close"}) from error

    async def classify(self, data: bytes) -> "Classified":
        """As `Replica.classify`, a bad picture being its sender's problem document."""
        try:
            return await self._replica.classify(data)
        except BadImage as error:
            raise problem.refused_picture(error) from error

    async def answer(self, upload: Upload) -> Answer:
        """The answer to one picture."""
        classified = await self.classify(upload.data)
        return Answer(
            file=upload.name, predictions=self.labels_of(classified, k=_TOP), model=self.name, note=classified.note
        )

    async def answer_or_fault(self, upload: Upload) -> Answer | FaultyFile:
        """The answer to one picture of several, or why it has none."""
        try:
            return await self.answer(upload)
        except Refused as refused:
            self.count(refused)
            fault = Fault(status=refused.status, type=refused.reason, message=refused.detail)
            return FaultyFile(file=upload.name, error=fault)

    def labels_of(self, classified: "Classified", *, k: int) -> list[Label]:
        """The best labels of a picture, which is counted under the first of them."""
        best = top(classified.probabilities, labels=self._labels, k=k)
        self._replica.meters.predicted(best[0].label)
        return [Label(label=label, code=code, probability=probability) for label, code, probability in best]

    def count(self, refused: Refused) -> None:
        """Count what could not be used."""
        self._replica.meters.rejected(refused.reason)

    def respond(self, shape: BaseModel) -> Response:
        """A shape as JSON."""
        return self.respond_json(shape.model_dump_json().encode())

    def respond_json(self, content: bytes) -> Response:
        """JSON that is written already, in the name of the model."""
        return Response(content, headers=self._headers, media_type="application/json")


def _add_handlers(api: FastAPI, desk: Desk) -> None:
    @api.exception_handler(Refused)
    async def refused(_: Request, error: Refused) -> Response:
        desk.count(error)
        return problem.response(error)

    @api.exception_handler(HTTPException)
    async def routing(request: Request, error: HTTPException) -> Response:
        what = {404: "no such page", 405: f"{request.method} is not what this page takes"}.get(error.status_code)
        detail = f"{request.url.path}: {what or error.detail}; /docs lists what there is"
        return problem.response(Refused(error.status_code, "wrong_request", detail, error.headers))

    @api.exception_handler(Exception)
    async def fault(_: Request, error: Exception) -> Response:
        _log.exception("An answer failed", exc_info=error)
        detail = "The fault is ours; the server's log has the story"
        return problem.response(Refused(500, "internal", detail))


def _read_hf(body: bytes) -> tuple[bytes, HfParameters]:
    """The two forms of Hugging Face's client: bare bytes, or JSON as soon as a parameter is given (with no content
    type, so the first byte decides: no picture format begins with a brace)."""
    if body.lstrip()[:1] != b"{":
        return body, HfParameters()
    try:
        request = HfRequest.model_validate_json(body)
        return base64.b64decode(request.inputs, validate=True), request.parameters or HfParameters()
    except ValidationError as error:
        first = error.errors()[0]
        place = ".".join(str(part) for part in first["loc"]) or "body"
        raise Refused(422, "bad_request", f"{place}: {first['msg']}; /docs shows the form") from error
    except (binascii.Error, ValueError) as error:
        raise Refused(422, "bad_request", "inputs: expected the picture's bytes in base64") from error
