"""Runs the cache plan of my_plans.py, as an object and by its spec.

Run it with: python docs/examples/own_plan.py
"""

import my_plans

import dlm_jax as dlm

PUZZLE = (
    ".7....2..\n.3..1.4..\n...4.9..3\n.9.7.186.\n..16....9\n"
    "..7982154\n753.....1\n6.9..73..\n8...6...5\n"
)

model = dlm.load(dlm.zoo.path("sudoku"))
prompt = PUZZLE.replace(".", model.mask_text)
outs = [
    model.infill(prompt, "low_confidence", block_length=16, cache=cache)
    for cache in (
        "none",
        my_plans.Vicinity(num_after=4),
        "my_plans:Vicinity(num_after=4)",
    )
]
for out in outs:
    print(f"{out.nfe} forwards, {out.num_whole} of the whole row: {out.is_complete}")
