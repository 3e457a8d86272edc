"""Errors as RFC 9457 problem documents: the exceptions of the ingress, and which status each bad picture gets."""

from collections.abc import Mapping
from http import HTTPStatus

from fastapi.responses import Response

from classifier.errors import BadImage, TooManyBytes, UnsupportedFormat
from serving.schema import Problem

MEDIA_TYPE = "application/problem+json"


class Refused(Exception):
    """A request that is answered with a problem document."""

    def __init__(self, status: int, reason: str, detail: str, headers: Mapping[str, str] | None = None) -> None:
        super().__init__(detail)
        self.status = status
        self.reason = reason
        self.detail = detail
        self.headers = dict(headers or {})


def status_of(error: BadImage) -> int:
    """413 for too many bytes, 415 for what is no picture in a known format, 422 for every other bad picture."""
    if isinstance(error, TooManyBytes):
        return 413
    if isinstance(error, UnsupportedFormat):
        return 415
    return 422


def refused_picture(error: BadImage) -> Refused:
    """The refusal that a bad picture's sender gets."""
    return Refused(status_of(error), error.reason, _capitalised(str(error)))


def response(refused: Refused) -> Response:
    """The HTTP form of a refusal."""
    problem = Problem(
        type=f"/docs#{refused.reason}",
        title=HTTPStatus(refused.status).phrase,
        status=refused.status,
        detail=refused.detail,
        reason=refused.reason,
    )
    # Hugging Face's client shows this header to its user
    headers = {"X-Error-Message": _header_text(refused.detail), **refused.headers}
    return Response(problem.model_dump_json(), refused.status, headers, MEDIA_TYPE)


def _capitalised(text: str) -> str:
    return text[:1].upper() + text[1:]


def _header_text(text: str) -> str:
    return text.encode("ascii", "replace").decode().replace("\n", " ").replace("\r", " ")[:500]
