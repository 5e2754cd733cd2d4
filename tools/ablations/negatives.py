"""What the field does with negatives and views, each beside NT-Xent, over three seeds.

The numbers are the papers' or chosen beforehand; none was tuned here. One class in ten is the row's own:
tau_plus = 0.1. The queue's average has a decay that fits 312 steps. Small views are half as large as the
others, and begin where those end.
"""

SETTINGS = {
    "nt_xent": {},
    "debiased": {"loss.debiased.tau_plus": 0.1},
    "hcl": {"loss.hcl.beta": 1.0, "loss.hcl.tau_plus": 0.1},
    "adversarial": {
        "loss.adversarial.steps": 3,
        "loss.adversarial.step": 0.05,
        "loss.adversarial.radius": 0.1,
    },
    "fnc": {"loss.fnc.threshold": 0.7, "loss.fnc.most": 10},
    "queue": {"loss.queue.length": 4096, "loss.queue.decay": 0.99},
}
SMALL = {"augment.small_views": 4, "augment.small_size": 14, "augment.small_area": (0.1, 0.3)}
POINTS = [
    {"loss.name": name, "seed": seed, **fields}
    for seed in (0, 1, 2)
    for name, fields in [*SETTINGS.items(), ("nt_xent", SMALL)]
]
