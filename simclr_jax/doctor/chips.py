"""Published figures of TPU chips, and the roofline of a step on them.

The roofline (Williams et al., 2009) is the slowest of arithmetic, memory traffic and communication between
chips, each at the published rate.
"""

from typing import NamedTuple


class Chip(NamedTuple):
    """Published figures of one chip."""

    peak: float  # FLOP/s, bfloat16
    memory: int  # bytes
    bandwidth: float  # of the memory, bytes/s
    link: float  # to the other chips of a slice, all links together, bytes/s


# cloud.google.com/tpu/docs/{v4,v5e,v5p,v6e}, system architecture, November 2026. v4: six links of 50 GB/s.
CHIPS = {
    "v4": Chip(275e12, 32 * 2**30, 1228e9, 300e9),
    "v5e": Chip(197e12, 16 * 2**30, 819e9, 200e9),
    "v5p": Chip(459e12, 95 * 2**30, 2765e9, 600e9),
    "v6e": Chip(918e12, 32 * 2**30, 1600e9, 400e9),
}


def of(topology: str) -> Chip | None:
    """The chip of a topology such as v5e:4x8; None for an unknown generation."""
    return CHIPS.get(topology.partition(":")[0])


def roofline(chip: Chip, chips: int, flops: float, traffic: float, moved: dict[str, int]) -> dict:
    """Lower bounds of a step on `chips` in seconds: {compute, memory, links}.

    Args:
      flops: of all chips.
      traffic: bytes of one chip's memory.
      moved: {kind of collective: bytes of one chip's arrays}, as `hlo.bytes_by_kind` gives them.
    """
    once = moved["all-gather"] + moved["reduce-scatter"]
    ring = (chips - 1) / chips * (once + 2 * moved["all-reduce"])  # an all-reduce is one of each
    sent = ring + moved["all-to-all"] + moved["collective-permute"]
    return {
        "compute": flops / chips / chip.peak,
        "memory": traffic / chip.bandwidth,
        "links": sent / chip.link,
    }
