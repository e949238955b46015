"""Fills two Sudoku puzzles with two samplers and prints what each needed.

Run it with: python docs/examples/first_steps.py
"""

import dlm_jax as dlm

# A dot is a blank. The model reads one token per character, line ends included.
PUZZLES = (
    ".7....2..\n.3..1.4..\n...4.9..3\n.9.7.186.\n..16....9\n"
    "..7982154\n753.....1\n6.9..73..\n8...6...5\n",
    "....5....\n.6...73..\n....3.65.\n.......1.\n"
    "3..5..72.\n...1845..\n..4...9..\n812..6...\n.3...826.\n",
)

model = dlm.load(dlm.zoo.path("sudoku"))
prompts = [puzzle.replace(".", model.mask_text) for puzzle in PUZZLES]
for sampler in ("low_confidence", dlm.EntropyBound(gamma=0.01)):
    outs = model.infill(prompts, sampler)
    print(sampler)
    for out in outs:
        print(f"{out.nfe} forwards, complete: {out.is_complete}")
        print(out.text)
