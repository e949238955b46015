"""Which of three answers a model finds likeliest, and how sure the estimates are.

    python docs/examples/likelihood.py [SAMPLES]

SAMPLES masks per answer, 128 by default. The model is the shipped one for the countdown
game: reach a number from three others.
"""

import sys

import dlm_jax as dlm

PROMPT = "01 18 20 -> 37:"
# Correct, another correct order, and wrong in its last result.
ANSWERS = ["20+18=38,38-01=37", "18+20=38,38-01=37", "20+18=38,38-01=36"]
num_samples = int(sys.argv[1]) if len(sys.argv) > 1 else 128

model = dlm.load(dlm.zoo.path("countdown"))
found = model.log_likelihood(
    [PROMPT] * len(ANSWERS), ANSWERS, num_samples=num_samples, greedy=True
)
for answer, one in zip(ANSWERS, found, strict=True):
    value = f"{one.log_likelihood:7.2f} +- {one.standard_error:.2f}"
    print(f"{answer}  log p {value}  greedy: {one.is_greedy}")

# The same answers with other ways to draw masks.
errors = {}
for masks in ("independent", "antithetic", "stratified", "stratified(batch_size=32)"):
    found = model.log_likelihood(
        [PROMPT] * len(ANSWERS), ANSWERS, num_samples=num_samples, masks=masks
    )
    # An error falls with the square root of the number of samples.
    scale = (num_samples / 128) ** 0.5
    errors[masks] = [one.standard_error * scale for one in found]
    shown = "  ".join(f"{error:.3f}" for error in errors[masks])
    print(f"{masks}: standard errors with 128 samples  {shown}")
