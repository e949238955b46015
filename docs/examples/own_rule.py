"""Runs the rule of my_rules.py, as an object and by its spec.

Run it with: python docs/examples/own_rule.py
"""

import my_rules

import dlm_jax as dlm

PUZZLE = (
    ".7....2..\n.3..1.4..\n...4.9..3\n.9.7.186.\n..16....9\n"
    "..7982154\n753.....1\n6.9..73..\n8...6...5\n"
)

model = dlm.load(dlm.zoo.path("sudoku"))
prompt = PUZZLE.replace(".", model.mask_text)
for sampler in (
    my_rules.Confident(threshold=0.8),
    "my_rules:Confident(threshold=0.8)",
):
    out = model.infill(prompt, sampler)
    print(f"{sampler}: {out.nfe} forwards, complete: {out.is_complete}")
