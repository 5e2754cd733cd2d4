"""What the routes do: files to pixels, pixels to embeddings, neighbours and classes."""

import asyncio
import functools
import os
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from simclr_jax.data.formats import Reading, UnreadableError
from simclr_jax.index.search import Index
from simclr_jax.serve import images
from simclr_jax.serve.artefact import Artefact
from simclr_jax.serve.batching import Batcher
from simclr_jax.serve.door import Limits, Refusal


class Settings(NamedTuple):
    """What is served and how.

    Attributes:
      artefact: the encoder.
      index: what neighbours are found in, or None.
      endpoint: the output that the index holds.
      root: folder of the index's images, "" for the one that the index names.
      token: "" for none.
      local: see `door.Door`.
      batch, wait: see `batching.Batcher`.
      threads: that decode images.
    """

    artefact: Artefact
    index: Index | None = None
    endpoint: str = "features"
    root: str = ""
    token: str = ""
    local: bool = False
    limits: Limits = Limits()
    batch: int = 32
    wait: float = 0.005
    threads: int = 2


class Service:
    """What the routes do."""

    def __init__(self, settings: Settings):
        self.settings, self.artefact, self.index = settings, settings.artefact, settings.index
        about = self.artefact.about
        self.reading = Reading.of(**about["run"].get("data") or {})
        self.channels = about["input"]["channels"]
        self.pool = ThreadPoolExecutor(settings.threads, thread_name_prefix="decode")
        limits = settings.limits
        self.batcher = Batcher(self.answers, settings.batch, settings.wait, limits.queue)
        self.ran = False
        self.failure: Exception | None = None  # of the first run
        self.thumbnail = functools.lru_cache(1024)(self._thumbnail)

    def answers(self, batch: np.ndarray, top: int) -> list[dict[str, Any]]:
        """Embeddings, neighbours and classes of stacked pixels; in the encoder's thread."""
        out = self.artefact.run(batch)
        found: list[dict[str, Any]] = [{"features": row} for row in out["features"]]
        if self.index is not None and top:
            pairs = zip(*self.index.search(out[self.settings.endpoint], top), strict=True)
            for each, (similarity, rows) in zip(found, pairs, strict=True):
                each["near"] = list(zip(np.minimum(similarity, 1).tolist(), rows.tolist(), strict=True))
        if self.artefact.classes:
            logits = out["logits"].astype(np.float64)
            odds = np.exp(logits - logits.max(axis=1, keepdims=True))
            for each, row in zip(found, odds / odds.sum(axis=1, keepdims=True), strict=True):
                each["probability"] = row
        return found

    def pixels(self, name: str, data: bytes) -> np.ndarray:
        """An image file as the encoder takes it; in one of the pool's threads."""
        try:
            image = images.decode(data, self.reading, self.channels, self.settings.limits.pixels)
        except UnreadableError as error:
            raise Refusal(getattr(error, "code", 422), f"{name}: {error}") from None
        return self.artefact.pixels(image)

    async def embed(self, files: list[tuple[str, bytes]], top: int) -> list[dict[str, Any]]:
        """What is told of each of several files; "near" has `top` neighbours."""
        loop, batcher = asyncio.get_running_loop(), self.batcher
        with batcher.admit(len(files)):

            async def one(name: str, data: bytes) -> dict[str, Any]:
                pixels = await loop.run_in_executor(self.pool, self.pixels, name, data)
                return await asyncio.wrap_future(batcher.submit(pixels, top))

            # All of them end before there is room again for others.
            found = await asyncio.gather(*(one(*file) for file in files), return_exceptions=True)
        for each in found:
            if isinstance(each, BaseException):
                raise each
            if "near" in each:  # another request of the batch may have asked for more
                each["near"] = each["near"][:top]
        return [each for each in found if not isinstance(each, BaseException)]

    def result(self, name: str, found: dict[str, Any], embedding: bool, classes: int) -> dict[str, Any]:
        """The JSON of one image."""
        result: dict[str, Any] = {"name": name}
        if embedding:
            result["embedding"] = found["features"].tolist()
        if self.index is not None and found.get("near"):
            table = self.index.embeddings
            result["neighbours"] = [
                {"row": row, "path": table.paths[row], "label": table.label[row], "similarity": similarity}
                for similarity, row in found["near"]
            ]
        if "probability" in found and classes:
            likely, names = found["probability"], self.artefact.classes
            best = np.argsort(-likely, kind="stable")[:classes]
            result["classes"] = [{"name": names[i], "probability": float(likely[i])} for i in best]
        return result

    def about(self) -> dict[str, Any]:
        """What is served, for the page and for clients."""
        about, limits = self.artefact.about, self.settings.limits
        return {
            "artefact": about.get("file"),
            "run": self.artefact.run_name,  # folders are nobody's business
            "step": about["run"].get("step"),
            "dim": self.artefact.outputs["features"],
            "classes": self.artefact.classes,
            "index": self.index and len(self.index.embeddings.paths),
            "formats": images.FORMATS,
            "limits": limits._asdict(),
        }

    def _thumbnail(self, row: int) -> bytes:
        """A small JPEG of an image of the index; nothing but the table names files."""
        table = self.index.embeddings if self.index else None
        if table is None or not 0 <= row < len(table.paths):
            raise Refusal(404, f"there is no row {row}")
        given = self.settings.root
        root = os.path.abspath(given or str(table.meta.get("images") or ""))
        path = Path(os.path.abspath(os.path.join(root, table.paths[row])))
        if given and not path.is_relative_to(root):
            raise Refusal(404, f"the image of row {row} is outside --images-root")
        try:
            return images.thumbnail(path, self.reading, self.settings.limits.pixels)
        except (OSError, UnreadableError):
            raise Refusal(404, f"the image of row {row} cannot be read on this machine") from None

    async def first_run(self) -> None:
        """Runs the model on a black image; the service is ready then."""
        size = self.artefact.about["input"].get("size", 32)
        black = np.zeros((size, size, self.channels), np.uint8)
        try:
            pixels = await asyncio.to_thread(self.artefact.pixels, black)
            await asyncio.wrap_future(self.batcher.submit(pixels, 1))
            self.ran = True
        except Exception as error:
            self.failure = error
