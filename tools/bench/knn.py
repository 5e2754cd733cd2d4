"""Exact weighted kNN (evals.knn): queries a second against a bank of features."""

import numpy as np
from ml_collections import ConfigDict

from bench import table
from bench.contest import contest, peers, rate, timed
from simclr_jax import run_summary, sharding
from simclr_jax.errors import SimclrError
from simclr_jax.measures import knn


def measure(
    config: ConfigDict, *, bank: int = 50_000, queries: int = 2048, dim: int = 512, k: int = 200,
    classes: tuple[int, ...] = (10, 1000), steps: int = 5, peer: str | None = None,
) -> dict:  # fmt: skip
    """Search and vote on random features, from host memory to class scores."""
    if k > bank:
        raise SimclrError(f"--k={k}: more neighbours than the bank has rows; at most --k={bank}")
    mesh, temperature = sharding.make_mesh(config.mesh.devices), config.eval.knn.temperature
    rng = np.random.default_rng(0)
    known, asked = (rng.standard_normal((n, dim), np.float32) for n in (bank, queries))
    rows, notes = [], []
    for count in classes:
        labels = rng.integers(0, count, bank).astype(np.int32)

        def predict(labels=labels, count=count) -> None:
            similarity, index = knn.nearest(known, asked, k, mesh)
            np.argmax(knn.vote(similarity, labels[index], k, temperature, count), axis=1)

        settings = {"bank": bank, "queries": queries, "dim": dim, "k": k, "classes": count}
        with peers(peer, part="knn", temperature=temperature, **settings) as (others, said):
            found = contest({"simclr_jax": timed(predict), **others}, steps)
        notes = said
        for name, times in found.items():
            rates = {
                "queries_per_second": rate(queries, times["seconds"]),
                "queries_per_core_second": rate(queries, times["cpu_seconds"]),
            }
            rows.append({"classes": count, "name": name, "peer": name in others, **rates, **times})
    return {"part": "knn", "bank": bank, "queries": queries, "dim": dim, "k": k, "rows": rows, "notes": notes,
            **run_summary.environment()}  # fmt: skip


def show(result: dict) -> None:
    """The table."""
    rows, device = result["rows"], result["device"]
    table.show(
        f"kNN: {result['queries']:,} queries, bank {result['bank']:,} × {result['dim']}, k = {result['k']}, "
        f"{device['count']} × {device['kind']}",
        (
            "classes",
            "",
            "queries/s",
            "ms (range)",
            "queries/core-second",
            "× peer",
            "× peer, per core-second",
        ),
        [
            (
                f"{r['classes']:,}",
                r["name"],
                table.number(r["queries_per_second"]),
                table.milliseconds(r["seconds"]),
                table.number(r["queries_per_core_second"]),
                *(
                    table.times_peer([x for x in rows if x["classes"] == r["classes"]], r, key)
                    for key in ("queries_per_second", "queries_per_core_second")
                ),
            )
            for r in rows
        ],
        result["notes"],
    )
