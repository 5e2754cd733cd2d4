"""Figure 8 of the paper: no projection head, a linear one, a nonlinear one, over the output's dimension."""

POINTS = [
    {"model.projection": head, "seed": seed} | ({"model.projection_dim": dim} if dim else {})
    for seed in (0, 1)
    for head, dims in (("none", (0,)), ("linear", (32, 256, 2048)), ("nonlinear", (32, 256, 2048)))
    for dim in dims
]
