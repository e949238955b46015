"""A task of one's own: the skeleton to copy. Additions, answered in digits."""

from typing import ClassVar

import numpy as np

from dlm_jax.tasks import base, splits


class Addition(base.Task):
    """`12+34=` is to be continued by `46`."""

    name: ClassVar[str] = "addition"
    splits: ClassVar[tuple[str, ...]] = ("test", "valid")
    is_infill: ClassVar[bool] = False
    gen_length: int = 3

    def examples(self, split: str, num: int, seed: int = 0) -> list[base.Example]:
        """The first `num` sums of a split."""
        self.check(split, num, seed)

        def draw(lot: int) -> list[tuple[int, int]]:
            pairs = np.random.default_rng([seed, lot]).integers(0, 100, (256, 2))
            return [
                (a, b)
                for a, b in pairs.tolist()
                # A pair is in one split, whatever the seed.
                if splits.split_of(f"{a}+{b}", self.splits, share=4) == split
            ]

        return [
            base.Example(f"{split}/{seed}/{i}", f"{a}+{b}=", a + b)
            for i, (a, b) in enumerate(splits.first_distinct(draw, num))
        ]

    def verdict(self, example: base.Example, answer: str) -> base.Verdict:
        """Correct if the answer is the sum, white space aside."""
        if answer.strip() == str(example.truth):
            return base.Verdict(True, "correct")
        return base.Verdict(False, f"{answer.strip()!r} is not {example.truth}")


if __name__ == "__main__":
    task = Addition()
    for example in task.examples("test", 3):
        verdict = task.verdict(example, str(example.truth))
        print(example.name, example.prompt, example.truth, verdict.reason)
