"""What the tasks of this folder call: whether an answer solves its puzzle.

    python docs/examples/harness/judge.py

writes the puzzles, countdown.jsonl, again.
"""

import itertools
import json
import operator
import pathlib

from dlm_jax.tasks import countdown


def process_results(doc: dict, results: list[str]) -> dict[str, float]:
    """The metric `solved` of one puzzle; any solution counts."""
    puzzle = countdown.Puzzle(tuple(doc["numbers"]), doc["target"])
    return {"solved": float(countdown.verdict(puzzle, results[0]).is_correct)}


def written(operations) -> str:
    """Equations as the model writes them."""
    results = {
        "+": operator.add,
        "-": operator.sub,
        "*": operator.mul,
        "/": operator.floordiv,
    }
    return ",".join(
        f"{a:02}{sign}{b:02}={results[sign](a, b):02}" for a, sign, b in operations
    )


def line(example) -> dict:
    """A puzzle with a solution, and the same with a wrong last number."""
    puzzle = example.truth
    # The operations of a solution are known, their order is not.
    orders = itertools.permutations(min(countdown.solutions(puzzle)))
    answer = next(
        text
        for text in map(written, orders)
        if countdown.verdict(puzzle, text).is_correct
    )
    return {
        "question": example.prompt,
        "numbers": puzzle.numbers,
        "target": puzzle.target,
        "answer": answer,
        "wrong": f"{answer[:-2]}{(puzzle.target + 1) % 100:02}",
    }


if __name__ == "__main__":
    path = pathlib.Path(__file__).with_name("countdown.jsonl")
    examples = countdown.Countdown().examples("test", 40)
    path.write_text("".join(json.dumps(line(x)) + "\n" for x in examples))
