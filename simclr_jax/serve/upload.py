"""The images in the body of a request."""

import logging

from fastapi import Request
from starlette.datastructures import UploadFile
from starlette.formparsers import MultiPartException, MultiPartParser

from simclr_jax.serve.door import Limits, Refusal
from simclr_jax.text import printable

# It warns of every byte that strangers get wrong.
logging.getLogger("python_multipart").setLevel(logging.ERROR)
RAW = ("image/", "application/octet-stream")  # a body that is one image
BODY = {
    "required": True,
    "content": {
        "image/*": {"schema": {"type": "string", "format": "binary"}},
        "multipart/form-data": {
            "schema": {
                "type": "object",
                "properties": {
                    "image": {"type": "array", "items": {"type": "string", "format": "binary"}}
                },
            }
        },
    },
}  # fmt: skip


class Parts(MultiPartParser):
    """Keeps files in memory: the body is bounded, and a service may have no disk to write to."""

    spool_max_size = max_file_size = 1 << 40


async def files_of(request: Request, limits: Limits) -> list[tuple[str, bytes]]:
    """(name, bytes) of each image of a request.

    Raises:
      Refusal: there is none, there are too many, or the body is of another kind.
    """
    many = f"more than {limits.images} images in a request"
    kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if kind.startswith(RAW):
        files = [("image", await request.body())]
    elif kind == "multipart/form-data":
        try:
            parser = Parts(request.headers, request.stream(), max_files=limits.images + 1, max_fields=16)
            form = await parser.parse()
        except MultiPartException as error:
            if error.message.startswith("Too many files"):
                raise Refusal(413, many) from None
            raise Refusal(400, f"multipart: {error.message}") from None
        except (ValueError, KeyError):  # what older versions of the parser raise
            raise Refusal(400, "multipart: the body cannot be read") from None
        parts = [part for _, part in form.multi_items() if isinstance(part, UploadFile)]
        files = [(printable(part.filename or "image"), await part.read()) for part in parts]
        await form.close()
    else:
        wanted = "image/jpeg (or another image type) with one image, or multipart/form-data with several"
        raise Refusal(415, f"Content-Type: {printable(kind) or 'none'}: send {wanted}")
    if len(files) > limits.images:
        raise Refusal(413, many)
    if not files or not all(data for _, data in files):
        raise Refusal(400, "an image is empty" if files else "there is no image in the request")
    return files
