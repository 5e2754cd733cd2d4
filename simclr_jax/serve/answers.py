"""The JSON of answers, for /openapi.json."""

from pydantic import BaseModel


class Neighbour(BaseModel):
    """A row of the index; `similarity` is the cosine."""

    row: int
    path: str
    label: str
    similarity: float


class Class(BaseModel):
    """A class and its softmax."""

    name: str
    probability: float


class Result(BaseModel):
    """What is told of one image; what the service lacks is left out."""

    name: str
    embedding: list[float] | None = None
    neighbours: list[Neighbour] | None = None
    classes: list[Class] | None = None


class Answer(BaseModel):
    """One result for each image, in the order of the request."""

    results: list[Result]


class Problem(BaseModel):
    """Why there is no answer."""

    error: str
