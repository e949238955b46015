"""Tiny data sets in the forms of the hub, written by tests."""

import json

GSM8K = [
    {
        "question": f"Ann has {n} pens and buys 2 more. How many has she?",
        "answer": f"She has {n} + 2 = <<{n}+2={n + 2}>>{n + 2} pens.\n#### {n + 2}",
    }
    for n in range(8)
]
MATH = [
    {
        "problem": "What is $\\frac{1}{4} + \\frac{1}{4}$?",
        "level": "Level 1",
        "type": "Prealgebra",
        "solution": "It is $\\frac{2}{4} = \\boxed{\\frac{1}{2}}$.",
    },
    {
        "problem": "Solve $x^2 = 9$ for $x > 0$.",
        "level": "Level 2",
        "type": "Algebra",
        "solution": "From $x = \\boxed{-3}$ or $x = \\boxed{3}$ the second.",
    },
]
MBPP = [
    {
        "task_id": 11,
        "text": "Write a python function to add one.",
        "code": "def add_one(x):\r\n    return x + 1",
        "test_list": [
            "assert add_one(1) == 2",
            "assert add_one(-1) == 0",
            "assert add_one(9) == 10",
        ],
        "test_setup_code": "",
        "challenge_test_list": [],
    },
    {
        "task_id": 12,
        "text": "Write a function to sum the firsts of pairs.",
        "code": "class Pair(object):\n    def __init__(self, a, b):\n"
        "        self.a = a\n        self.b = b\n\n\n"
        "def total(pairs):\n    return sum(pair.a for pair in pairs)",
        "test_list": [
            "assert total([Pair(1, 2), Pair(3, 4)]) == 4",
            "assert total([]) == 0",
            "assert total(many) == 30",
        ],
        "test_setup_code": "many = [Pair(10, 0)] * 3",
        "challenge_test_list": [],
    },
]
HUMANEVAL = [
    {
        "task_id": f"HumanEval/{i}",
        "prompt": f'def f{i}(x):\n    """ Returns x + {i}.\n    """\n',
        "canonical_solution": f"    return x + {i}\n",
        "test": f"def check(candidate):\n    assert candidate(1) == {1 + i}\n",
        "entry_point": f"f{i}",
    }
    for i in range(2)
]
ROWS = {"gsm8k": GSM8K, "math": MATH, "mbpp": MBPP, "humaneval": HUMANEVAL}


def write_lines(path, rows):
    """Writes JSON lines; makes the folder. Returns the path."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def write_all(directory):
    """Writes the data of each task to DIRECTORY/TASK, with the split in the name."""
    for name, rows in ROWS.items():
        for split in ("test", "train"):
            write_lines(directory / name / f"{split}-00000-of-00001.jsonl", rows)
    return directory
