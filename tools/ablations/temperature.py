"""Table 5 of the paper: NT-Xent with embeddings of unit length, and without, over the temperature."""

POINTS = [
    {"loss.normalize": normalize, "loss.temperature": temperature, "seed": seed}
    for seed in (0, 1)
    for normalize, temperatures in ((True, (0.05, 0.1, 0.5, 1.0)), (False, (1.0, 10.0, 100.0)))
    for temperature in temperatures
]
