"""How the masks of a likelihood's samples are drawn; knows no model.

A sample masks k of an answer's n tokens: k uniform from 1 to n, the set uniform among
those of its size. Samples need not be independent to be fair.
"""

import abc
import itertools
import math
from typing import Any, ClassVar, NamedTuple

import numpy as np
from jaxtyping import Bool, Float, Int

from dlm_jax.core.sampler import Rule, canonical, number
from dlm_jax.core.spec import Specs
from dlm_jax.errors import InputError


class Drawn(NamedTuple):
    """Masks of one answer of n tokens: g independent batches of m.

    Attributes:
      is_mask: bool [g, m, n]; at least one True in each mask.
      weight: float [m]; of a batch's masks in its mean; they sum to 1.
      is_exact: these are all the masks there are.
    """

    is_mask: Bool[np.ndarray, "g m n"]
    weight: Float[np.ndarray, "m"]
    is_exact: bool = False


class Masks(Rule):
    """Base of the ways to draw masks; a subclass writes `batch`, and mostly `size`.

    Batches are independent of each other, and the masks of a batch need not be.
    """

    def size(self, num_samples: int) -> int:
        """Tells how many masks a batch has.

        Args:
          num_samples: masks per answer, of all batches.

        Returns:
          The number; 1 by default.
        """
        return 1

    @abc.abstractmethod
    def batch(
        self, rng: np.random.Generator, length: int, size: int
    ) -> Bool[np.ndarray, "m n"]:
        """Draws one batch of masks.

        Each mask alone must be fair: its number of masked tokens uniform from 1 to
        length, and all sets of that number as likely.

        Args:
          rng: the only source of chance.
          length: tokens of the answer.
          size: masks of the batch, m.

        Returns:
          bool [m, n]; True where a token is masked.
        """

    def draw(self, rng: np.random.Generator, length: int, num_samples: int) -> Drawn:
        """Draws all masks of an answer.

        Args:
          rng: the only source of chance.
          length: tokens of the answer.
          num_samples: masks.

        Returns:
          The masks in batches, all of one weight.

        Raises:
          InputError: if they are no whole batches.
        """
        size = self.size(num_samples)
        if num_samples % size:
            raise InputError(
                f"num_samples ({num_samples}) must be a multiple of the {size} masks "
                f"that {to_spec(self)} draws together"
            )
        drawn = [self.batch(rng, length, size) for _ in range(num_samples // size)]
        return Drawn(np.stack(drawn), np.full(size, 1 / size))


class Independent(Masks):
    """Masks that have nothing to do with each other.

    LLaDA's estimate as published (arXiv:2502.09992, equation 6 of appendix A).
    """

    def batch(
        self, rng: np.random.Generator, length: int, size: int
    ) -> Bool[np.ndarray, "m n"]:
        return _sets(rng, rng.integers(1, length + 1, size), length)


class Stratified(Masks):
    """Numbers of masked tokens spread evenly over a batch, from a random first one.

    The sets are independent. The estimate of LLaDA's released code (arXiv:2502.09992),
    but for ties: where the spacing falls between two numbers, the lower one is taken,
    so that all are as likely.

    Attributes:
      batch_size: masks per batch, fewer only where there are fewer samples. The larger,
        the more even; but the standard error needs several batches.
    """

    batch_size: int = number(default=8, at_least=1)

    def size(self, num_samples: int) -> int:
        return min(int(self.batch_size), num_samples)

    def batch(
        self, rng: np.random.Generator, length: int, size: int
    ) -> Bool[np.ndarray, "m n"]:
        first = int(rng.integers(1, length + 1))
        return _sets(rng, self.counts(first, length, size), length)

    def counts(self, first: int, length: int, size: int) -> Int[np.ndarray, "m"]:
        """Spreads the numbers of masked tokens over a batch.

        Args:
          first: the first number, from 1 to length.
          length: tokens of the answer.
          size: masks of the batch, m.

        Returns:
          int [m]; numbers from 1 to length.
        """
        return (first - 1 + np.arange(size) * length // size) % length + 1


class StratifiedReleased(Stratified):
    """The same with the rounding of the released code: to the nearest, ties to even.

    Where the spacing gives ties, odd numbers of masked tokens are then too rare.
    """

    def counts(self, first: int, length: int, size: int) -> Int[np.ndarray, "m"]:
        nearest = np.rint(first + np.arange(size) * length / size).astype(int)
        return (nearest - 1) % length + 1


class Antithetic(Masks):
    """Pairs of masks that cover the answer between them, and share one token.

    Of a random order of the tokens one mask takes the first k, the other the last
    n + 1 - k: where one has few and easy tokens, the other has many and hard ones.
    """

    def size(self, num_samples: int) -> int:
        return 2

    def batch(
        self, rng: np.random.Generator, length: int, size: int
    ) -> Bool[np.ndarray, "m n"]:
        place = rng.permutation(length)
        last = rng.integers(0, length)
        return np.stack([place <= last, place >= last])


class Exhaustive(Masks):
    """All masks of an answer, each once: no estimate, but the value it has on average.

    For short answers: n tokens have 2^n - 1 masks.

    Attributes:
      longest: tokens of an answer, at most.
    """

    # 2^16 forwards are more than anybody wants for an answer.
    longest: ClassVar[int] = 16

    def batch(
        self, rng: np.random.Generator, length: int, size: int
    ) -> Bool[np.ndarray, "m n"]:
        return np.array(list(itertools.product((False, True), repeat=length))[1:])

    def draw(self, rng: np.random.Generator, length: int, num_samples: int) -> Drawn:
        """Gives all masks.

        Args:
          rng: not used.
          length: tokens of the answer.
          num_samples: not used.

        Returns:
          One batch. A mask's weight is the probability that `Independent` draws it.

        Raises:
          InputError: if the answer is too long for that.
        """
        if length > self.longest:
            raise InputError(
                f"masks (exhaustive) must be for answers of at most {self.longest} "
                f"tokens, not {length}"
            )
        is_mask = self.batch(rng, length, 2**length - 1)
        num_masked = is_mask.sum(axis=1)
        num_sets = np.array([math.comb(length, k) for k in num_masked])
        return Drawn(is_mask[None], 1 / (length * num_sets), is_exact=True)


def _sets(
    rng: np.random.Generator, counts: Int[np.ndarray, "m"], length: int
) -> Bool[np.ndarray, "m n"]:
    """Random sets of tokens, of given sizes."""
    places = np.tile(np.arange(length), (counts.size, 1))
    return rng.permuted(places, axis=1) < counts[:, None]


MASKS: dict[str, type[Masks]] = {
    "stratified": Stratified,
    "stratified_released": StratifiedReleased,
    "independent": Independent,
    "antithetic": Antithetic,
    "exhaustive": Exhaustive,
}
_SPECS = Specs(
    kind="masks", base=Masks, known=MASKS, example="stratified(batch_size=32)"
)


def parse(spec: str) -> Masks:
    """Reads a way to draw masks from its spec.

    Args:
      spec: as that of a sampler, see `dlm_jax.parse`.

    Returns:
      The rule.

    Raises:
      InputError: for an unknown name or field, with the known ones, a bad value, or a
        module that does not import.

    >>> parse("stratified(batch_size=32)").batch_size
    32
    """
    return _SPECS.parse(spec)


def to_spec(masks: Masks) -> str:
    """Writes the spec of a way to draw masks, with every field.

    Args:
      masks: of this package or of any module.

    Returns:
      The spec, which `parse` reads back.
    """
    return _SPECS.write(masks)


def rule_of(masks: Any) -> Masks:
    """A way to draw masks as an object, with fields of their dtypes.

    Raises:
      InputError: if it is neither one nor a spec.
    """
    rule = parse(masks) if isinstance(masks, str) else masks
    if not isinstance(rule, Masks):
        raise InputError(f"masks ({masks!r}) must be one of {', '.join(MASKS)}")
    return canonical(rule)
