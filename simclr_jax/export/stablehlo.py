"""StableHLO: the encoder of a run as one program for CPU, CUDA and TPU, by `jax.export`.

    from jax import export
    program = export.deserialize(bytearray(open("encoder.stablehlo", "rb").read()))
    features = program.call(images)["features"]  # uint8 [n, h, w, c]

JAX is all that it needs. The parameters are constants of the program.
"""

import datetime
import functools
from pathlib import Path

import jax
import jax.numpy as jnp
from jax import export

from simclr_jax.encoder import Encoder
from simclr_jax.errors import SimclrError
from simclr_jax.export import card, preprocess
from simclr_jax.export.contract import Options, Runner, Written

PLATFORMS = ("cpu", "cuda", "rocm", "tpu")  # that jax.export lowers to
MONTHS = 6  # for which a program is readable, by JAX's promise (docs.jax.dev/en/latest/export/export.html)


def write(encoder: Encoder, endpoints: tuple[str, ...], path: Path, options: Options) -> Written:
    """Writes the serialized program, variables inside; see `formats`.

    Raises:
      SimclrError: a platform is unknown, or none is this machine's, where the program is compared.
    """
    check(options.platforms)
    variables = preprocess.needed(encoder, endpoints)
    apply = functools.partial(preprocess.function(encoder, endpoints), variables)
    shape = export.symbolic_shape(f"n, h, w, {card.reader(encoder).channels}")
    images = jax.ShapeDtypeStruct(shape, jnp.uint8)
    program = export.export(jax.jit(apply), platforms=options.platforms)(images)
    Path(path).write_bytes(program.serialize())
    notes = {"expires": expiry(datetime.date.today()).isoformat(), "platforms": list(program.platforms)}
    return Written([Path(path)], runner(Path(path)), notes)


def check(platforms: tuple[str, ...]) -> None:
    """Raises SimclrError for platforms that are unknown or lack this machine's."""
    unknown = [name for name in platforms if name not in PLATFORMS]
    if unknown:
        raise SimclrError(f"--platforms: no {unknown[0]!r}; there are {', '.join(PLATFORMS)}")
    here = {"gpu": ("cuda", "rocm")}.get(jax.default_backend(), (jax.default_backend(),))
    if not set(here) & set(platforms):
        raise SimclrError(
            f"--platforms={','.join(platforms)}: must include {here[0]}, this machine's, where the "
            "program is compared with the run"
        )


def expiry(day: datetime.date) -> datetime.date:
    """The day from which JAX need not read a program of `day` any more."""
    years, month = divmod(day.month - 1 + MONTHS, 12)
    # Months differ in length: the 31st of August goes to the 28th of February.
    return day.replace(year=day.year + years, month=month + 1, day=min(day.day, 28))


def runner(path: Path) -> Runner:
    """The file, compiled here once for each shape of images."""
    call = jax.jit(export.deserialize(bytearray(path.read_bytes())).call)
    return lambda images: jax.device_get(call(images))
