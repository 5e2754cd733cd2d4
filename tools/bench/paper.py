"""The time of a step on machines nobody here has: a model on paper, no measurement.

Compute is FLOPs over peak times an assumed utilisation; communication is what rings take at the published
bandwidths, and an assumed latency; nothing overlaps.
"""

from typing import NamedTuple


class Machine(NamedTuple):
    """Published figures of an accelerator and of what connects it; bytes/s are a chip's, one way."""

    peak: float  # FLOP/s, bfloat16, dense
    link: float  # within a group of chips
    group: int  # chips that `link` connects
    network: float  # between groups


# TPU v4, cloud.google.com/tpu/docs/v4: 275 TFLOP/s; six ICI links of 50 GB/s on a 3-D torus; pods of 4,096.
# TPU v5e, cloud.google.com/tpu/docs/v5e: 197 TFLOP/s; ICI 1,600 Gbit/s a chip on a 2-D torus; pods of 256,
# each with 6.4 Tbit/s of data-centre network.
# H100 SXM, NVIDIA's data sheets of H100 and DGX H100: 989 TFLOP/s; NVLink 900 GB/s, 450 each way, among 8;
# between nodes 400 Gbit/s of InfiniBand a GPU.
MACHINES = {
    "TPU v4": Machine(275e12, 300e9, 4096, 3e9),
    "TPU v5e": Machine(197e12, 200e9, 256, 3.1e9),
    "H100 SXM": Machine(989e12, 450e9, 8, 50e9),
}
CHIPS = (1, 8, 32, 128, 256, 512, 1024, 2048)


class Traffic(NamedTuple):
    """Bytes that a step's collectives work on, and how many collectives there are."""

    reduced: float  # all-reduce: on every chip
    gathered: float  # all-gather and reduce-scatter: the whole
    exchanged: float  # all-to-all and collective-permute: what a chip sends
    count: int


def ring_all_reduce(size: float, chips: int, bandwidth: float) -> float:
    """Seconds to sum `size` bytes over `chips`: a reduce-scatter and an all-gather."""
    return 2 * ring_all_gather(size, chips, bandwidth)


def ring_all_gather(size: float, chips: int, bandwidth: float) -> float:
    """Seconds until all `chips` have the `size` bytes that each had an equal part of."""
    return (chips - 1) / chips * size / bandwidth


def communication(traffic: Traffic, chips: int, machine: Machine, latency: float) -> float:
    """Seconds of a step's collectives, one after the other; 0 on one chip.

    Rings use all links of a chip at once. What is larger than a group goes in two levels: rings within
    groups, then rings between them, in which every chip sends its share of the group's bytes.
    """
    if chips == 1:
        return 0.0
    inside = min(chips, machine.group)
    groups = -(-chips // inside)
    seconds = _rings(traffic, inside, machine.link)
    if groups > 1:
        seconds += _rings(traffic, groups, machine.network) / inside
    slowest = machine.link if groups == 1 else min(machine.link, machine.network)
    return seconds + traffic.exchanged / slowest + traffic.count * latency


def _rings(traffic: Traffic, chips: int, bandwidth: float) -> float:
    reduced = ring_all_reduce(traffic.reduced, chips, bandwidth)
    return reduced + ring_all_gather(traffic.gathered, chips, bandwidth)


def step(
    flops: float, traffic: Traffic, chips: int, machine: Machine, *, utilisation: float, latency: float
) -> dict[str, float]:
    """Seconds of compute and communication of a step in which a chip does `flops`; compute's share."""
    compute = flops / (machine.peak * utilisation)
    seconds = communication(traffic, chips, machine, latency)
    return {
        "chips": chips,
        "compute_seconds": compute,
        "communication_seconds": seconds,
        "efficiency": compute / (compute + seconds),
    }
