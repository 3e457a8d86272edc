"""Reading request bodies: every byte is counted while it arrives."""

from collections.abc import AsyncGenerator
from typing import NamedTuple

from python_multipart.multipart import parse_options_header
from starlette.datastructures import Headers, UploadFile
from starlette.formparsers import MultiPartException, MultiPartParser
from starlette.requests import ClientDisconnect, Request

from classifier.errors import EmptyImage, TooManyBytes
from serving.problem import Refused, refused_picture
from serving.room import Place


class Upload(NamedTuple):
    """One picture as it came in."""

    name: str | None
    data: bytes


async def read_body(request: Request, place: Place, *, max_bytes: int) -> bytes:
    """Read a whole body.

    Raises:
        Refused: 413 as soon as it is larger than `max_bytes`, or says that it will be; 400 where the sender went away;
            503 where `place` has no room for it.
    """
    return b"".join([chunk async for chunk in _counted(request, place, max_bytes)])


async def read_upload(request: Request, place: Place, *, max_bytes: int) -> Upload:
    """Read the one picture of a request: the bare body, or the first file of a multipart form.

    Raises:
        Refused: as `read_body`; 422 nothing in it, 400 a form that is none.
    """
    if not is_form(request):
        return Upload(None, await read_body(request, place, max_bytes=max_bytes))
    # The form's own lines come on top of the picture.
    uploads = await read_uploads(request, place, max_bytes=max_bytes + 64 * 1024, max_files=1)
    if len(uploads[0].data) > max_bytes:
        raise refused_picture(_too_many(len(uploads[0].data), max_bytes))
    return uploads[0]


async def read_uploads(request: Request, place: Place, *, max_bytes: int, max_files: int) -> list[Upload]:
    """Read every file of a multipart form, in order.

    Raises:
        Refused: as `read_body`; 413 too many files, 415 not a form, 422 no file in it, 400 a form that is none.
    """
    if not is_form(request):
        raise Refused(
            415,
            "not_a_form",
            "Expected multipart/form-data with one or more files: curl -F file=@a.jpg -F file=@b.jpg",
        )
    # Fields that are no files are ignored; a form with thousands of them is not read to its end.
    parser = MultiPartParser(
        request.headers,
        _counted(request, place, max_bytes),
        max_files=max_files,
        max_fields=100,
        max_part_size=64 * 1024,
    )
    parser.spool_max_size = max_bytes  # pictures stay in memory: the body is no larger than this
    try:
        form = await parser.parse()
    except MultiPartException as error:
        if "Too many files" in error.message:
            raise Refused(
                413, "too_many_files", f"More than {max_files} files in one request; send them in several"
            ) from error
        raise Refused(400, "bad_form", f"The multipart form cannot be read: {error.message}") from error
    except (KeyError, ValueError, LookupError) as error:  # no boundary, an unknown charset
        raise Refused(400, "bad_form", "The multipart form cannot be read: its header is broken") from error
    try:
        files = [part for _, part in form.multi_items() if isinstance(part, UploadFile)]
        uploads = [Upload(file.filename or None, await file.read()) for file in files]
    finally:
        await form.close()
    if not uploads:
        raise refused_picture(EmptyImage("no file in the form; send one: curl -F file=@a.jpg"))
    return uploads


def is_form(request: Request) -> bool:
    """Whether the body says that it is a multipart form."""
    kind, _ = parse_options_header(Headers(scope=request.scope).get("content-type"))
    return kind == b"multipart/form-data"


async def _counted(request: Request, place: Place, max_bytes: int) -> AsyncGenerator[bytes, None]:
    stated = request.headers.get("content-length", "")
    if stated.isascii() and stated.isdigit() and int(stated) > max_bytes:
        raise refused_picture(_too_many(int(stated), max_bytes))
    seen = 0
    try:
        async for chunk in request.stream():
            seen += len(chunk)
            if seen > max_bytes:
                raise refused_picture(_too_many(seen, max_bytes))
            place.take_bytes(len(chunk))
            yield chunk
    except ClientDisconnect as error:
        raise Refused(400, "disconnected", "The sender went away before the end of the body") from error


def _too_many(found: int, max_bytes: int) -> TooManyBytes:
    return TooManyBytes(f"{found:,} bytes or more; at most {max_bytes:,} are read. Send a smaller picture")
