"""A model of dlm_jax as lm_eval wants one: requests in, answers and scores out."""

import collections
import json
from collections.abc import Iterator, Sequence
from typing import Any, cast

import numpy as np
from lm_eval.api.instance import Instance
from lm_eval.api.model import CacheHook, TemplateLM
from tqdm import tqdm

import dlm_jax
from dlm_jax import likelihood, samplers
from dlm_jax.errors import InputError
from dlm_jax.evaluation import provenance
from dlm_jax.harness import answers
from dlm_jax.harness import arguments as arguments_
from dlm_jax.harness.arguments import OF_SPEED, log
from dlm_jax.harness.contexts import conversation, fit
from dlm_jax.likelihood import Likelihood
from dlm_jax.model import load_weights
from dlm_jax.outline import read_outline
from dlm_jax.text.output import Output
from dlm_jax.text.settings import Settings
from dlm_jax.text.tokens import encode_text

# Answers that are scored in one call; then they are in the cache.
_PER_CALL = 64


def _progress(kind: str, total: int, is_quiet: bool) -> tqdm:
    return tqdm(total=total, disable=is_quiet, desc=f"dlm_jax {kind}")


class DlmJax(TemplateLM):
    """A checkpoint that lm_eval evaluates.

    Attributes:
      arguments: what `model_args` says.
      model: the loaded model.
    """

    def __init__(self, **model_args: Any):
        """Loads the checkpoint; arguments are checked before its weights are read.

        Args:
          **model_args: settings of `Model.generate` and `Model.log_likelihood`, and
            `checkpoint`, `sampler`, `dtype`, `devices_per_model`, `truncate` and
            `add_special_tokens`, see `Arguments`.

        Raises:
          InputError: naming the argument that does not fit.
        """
        super().__init__()
        self.arguments = arguments_.read(model_args)
        outline = read_outline(self.arguments.checkpoint)
        self.arguments.check(outline)
        self.model = load_weights(
            outline, self.arguments.dtype, self.arguments.devices_per_model
        )
        self._template: str | None = None
        self._special = {
            str(token): index
            for index, token in self.tokenizer.added_tokens_decoder.items()
            if token.special
        }
        self._is_cached = False
        # Of what was generated: rows, forwards, tokens, rows with masks left.
        self._counts = collections.Counter[str]()

    @classmethod
    def create_from_arg_string(
        cls, arg_string: str, additional_config: dict | None = None
    ) -> "DlmJax":
        """Reads model_args as one text; commas in brackets belong to a value."""
        given = arguments_.split(arg_string)
        return cls(**arguments_.merge(given, additional_config))

    @classmethod
    def create_from_arg_obj(
        cls, arg_dict: dict[str, Any], additional_config: dict | None = None
    ) -> "DlmJax":
        """Reads model_args by name, as the command line has split them."""
        given = arguments_.join(arg_dict)
        return cls(**arguments_.merge(given, additional_config))

    @property
    def tokenizer(self) -> Any:  # pyrefly: ignore[bad-override]
        """The checkpoint's."""
        return self.model.codec.tokenizer

    @property
    def tokenizer_name(self) -> str:
        """What lm_eval keeps built requests under."""
        return str(self.model.checkpoint.resolve()).replace("/", "__")

    @property
    def max_length(self) -> int:
        """The model's context, in tokens."""
        return self.model.codec.max_length

    @property
    def eot_token_id(self) -> int:
        """EOS of the model's config."""
        return self.model.config.eos_token_id

    @property
    def prefix_token_id(self) -> int:
        """The token used as an empty context: BOS, or EOS without one."""
        bos = self.tokenizer.bos_token_id
        return self.eot_token_id if bos is None else bos

    def chat_template(self, chat_template: bool | str = False) -> str | None:
        """The template that `apply_chat_template` writes in from now on.

        Raises:
          InputError: if the checkpoint has none.
        """
        if chat_template and not self.model.codec.has_chat_template:
            raise InputError(
                "apply_chat_template: the checkpoint's tokenizer has no chat template"
            )
        self._template = super().chat_template(chat_template)
        return self._template

    def apply_chat_template(
        self, chat_history: list[dict[str, str]], add_generation_prompt: bool = True
    ) -> str:
        """A conversation in the chat template.

        Args:
          chat_history: messages.
          add_generation_prompt: end where the assistant's answer begins; if not, the
            last message is the beginning of that answer.

        Raises:
          InputError: if the template refuses it.
        """
        return conversation(
            self.tokenizer, chat_history, self._template, add_generation_prompt
        )

    def tok_encode(
        self, string: str, add_special_tokens: bool | None = None, **kwargs: Any
    ) -> list[int]:
        """Token ids of a text, exactly as it is.

        Args:
          string: the text.
          add_special_tokens: let the tokenizer add its own. By default as
            `model_args` says, or else unless the text begins with a special token, as
            one in a chat template does.
          **kwargs: not used.

        Raises:
          InputError: for a character that the tokenizer does not know.
        """
        if add_special_tokens is None:
            add_special_tokens = self.arguments.add_special_tokens
        if add_special_tokens is None:
            add_special_tokens = not string.startswith(tuple(self._special))
        what = f"text ({string[:60]!r})"
        return encode_text(self.tokenizer, string, what, add_special_tokens).tolist()

    def set_cache_hook(self, cache_hook: CacheHook) -> None:
        """Takes lm_eval's cache of answers (`--use_cache`), if its answers are of here.

        Its keys know nothing of the model, so another one's answers would be taken.

        Raises:
          InputError: if it holds answers of other settings.
        """
        if cache_hook.dbdict is not None:
            own = {"checkpoint": provenance.digest(self.model.checkpoint)}
            own |= self._settings(but=("checkpoint", *OF_SPEED))
            answers.claim(cache_hook.dbdict, own)
            self._is_cached = True
        super().set_cache_hook(cache_hook)

    def get_model_info(self) -> dict[str, Any]:
        """What lm_eval writes beside the results: settings, and what they cost."""
        rows = max(self._counts["rows"], 1)
        forwards = max(self._counts["forwards"], 1)
        costs = {
            "rows": self._counts["rows"],
            "mean_nfe": self._counts["forwards"] / rows,
            "tokens_per_forward": self._counts["tokens"] / forwards,
            "incomplete_rows": self._counts["incomplete"],
        }
        return {
            "model_dtype": str(self.model.dtype),
            "dlm_jax": {"settings": self._settings(), "generated": costs},
        }

    def _settings(self, but: Sequence[str] = ()) -> dict[str, Any]:
        """All settings that were given, and versions, as JSON has them."""
        given = {k: v for k, v in self.arguments.given.items() if k not in but}
        given["sampler"] = samplers.to_spec(self.arguments.rule)
        given["dtype"] = str(self.model.dtype)
        given["version"] = dlm_jax.__version__
        return json.loads(json.dumps(given, default=str))

    # Generation.

    def generate_until(
        self, requests: Sequence[Instance], disable_tqdm: bool = False
    ) -> list[str]:
        """Continues contexts; every answer is cut at its stops.

        Args:
          requests: with (context, gen_kwargs).
          disable_tqdm: show no progress.

        Returns:
          The answers, in the order of the requests.

        Raises:
          InputError: naming the request that does not fit, or gave NaN.
        """
        asked = [cast(tuple[str, dict[str, Any]], one.args) for one in requests]
        wanted = [
            arguments_.read_request(gen_kwargs, self.arguments)
            for _, gen_kwargs in asked
        ]
        known = [
            self._context("generate_until", i, text, want.gen_length)
            for i, ((text, _), want) in enumerate(zip(asked, wanted, strict=True))
        ]
        if self._is_cached:
            answers.check([gen_kwargs for _, gen_kwargs in asked], wanted)
        # Rows of one call have one length, one temperature and the same stop tokens.
        groups = collections.defaultdict(list)
        for i, want in enumerate(wanted):
            stops = {self._special[x] for x in want.until if x in self._special}
            groups[want.gen_length, want.temperature, tuple(sorted(stops))].append(i)
        ids = answers.draw_ids(requests)
        texts = [""] * len(requests)
        before = self._counts["incomplete"]
        with _progress("generate_until", len(requests), disable_tqdm) as progress:
            for (length, temperature, stops), members in groups.items():
                handed_over = self._generate(
                    [known[i] for i in members],
                    length,
                    temperature,
                    stops,
                    [ids[i] for i in members],
                )
                for place, output in handed_over:
                    i = members[place]
                    if output.has_nan:
                        raise InputError(
                            f"generate_until request {i}: the model gave NaN at "
                            f"forward {output.nfe}"
                        )
                    texts[i] = wanted[i].cut(output.text)
                    self._count(output)
                    self.cache_hook.add_partial("generate_until", asked[i], texts[i])
                    progress.update()
        if incomplete := self._counts["incomplete"] - before:
            log.warning("%d answers have masks left: max_steps ended them", incomplete)
        return texts

    def _generate(
        self,
        contexts: Sequence[np.ndarray],
        gen_length: int,
        temperature: float,
        more_stop_ids: tuple[int, ...],
        ids: Sequence[int],
    ) -> Iterator[tuple[int, Output]]:
        """Continues token ids with the settings of `model_args`."""
        settings = Settings(**self.arguments.generation)
        settings["temperature"] = temperature
        own = tuple(settings.get("stop_ids", self.model.stop_ids))
        settings["stop_ids"] = tuple(sorted({*own, *more_stop_ids}))
        rows, options = self.model.continued(contexts, gen_length, False, settings)
        return self.model.stream_rows(rows, self.arguments.rule, options, settings, ids)

    def _count(self, output: Output) -> None:
        self._counts["rows"] += 1
        self._counts["forwards"] += output.nfe
        self._counts["tokens"] += output.num_tokens
        self._counts["incomplete"] += not output.is_complete

    def _context(self, kind: str, index: int, text: str, room: int) -> np.ndarray:
        """The token ids of a context, which leave room for so many more.

        Raises:
          InputError: naming the request, if they do not fit.
        """
        tokens = self.tok_encode(text) or [self.prefix_token_id]
        return self._fit(f"{kind} request {index}", tokens, room)

    def _fit(self, what: str, tokens: Sequence[int], room: int) -> np.ndarray:
        return fit(what, tokens, room, self.model.codec, self.arguments.truncate)

    # Likelihood.

    def _loglikelihood_tokens(
        self,
        requests: Sequence[tuple[tuple[str, str], list[int], list[int]]],
        disable_tqdm: bool = False,
        **kwargs: Any,
    ) -> list[tuple[float, bool]]:
        """Estimates of continuations, and whether greedy decoding gives them.

        Raises:
          InputError: naming the request that does not fit, or gave NaN.
        """
        kind = "loglikelihood"
        for i, (texts, _, new) in enumerate(requests):
            if not new:
                raise InputError(
                    f"{kind} request {i}: the continuation ({texts[1]!r}) must add a "
                    "token to its context"
                )
        known = [
            self._fit(f"{kind} request {i}", context, len(new))
            for i, (_, context, new) in enumerate(requests)
        ]
        found: list[tuple[float, bool]] = [(0.0, False)] * len(requests)
        encoded = [np.asarray(new, np.int32) for _, _, new in requests]
        greedy = self.arguments.likelihood.get("greedy", True)
        for i, one in self._estimates(kind, known, encoded, greedy, disable_tqdm):
            found[i] = (one.log_likelihood, bool(one.is_greedy))
            self.cache_hook.add_partial(kind, requests[i][0], found[i])
        return found

    def loglikelihood_rolling(
        self, requests: Sequence[Instance], disable_tqdm: bool = False
    ) -> list[float]:
        """Estimates of whole texts after the prefix token.

        Args:
          requests: with (text,).
          disable_tqdm: show no progress.

        Raises:
          InputError: naming the text that does not fit into the model's context, or
            for which the model gave NaN.
        """
        kind = "loglikelihood_rolling"
        texts = [request.args[0] for request in requests]
        encoded = [self.tok_encode(text, add_special_tokens=False) for text in texts]
        for i, new in enumerate(encoded):
            if not 1 <= len(new) < self.max_length:
                raise InputError(
                    f"{kind} request {i}: a text ({len(new)} tokens) must have 1 to "
                    f"{self.max_length - 1}: it is scored whole, not in windows"
                )
        prefix = np.asarray([self.prefix_token_id], np.int32)
        found = [0.0] * len(requests)
        for i, one in self._estimates(
            kind,
            [prefix] * len(texts),
            [np.asarray(new, np.int32) for new in encoded],
            False,
            disable_tqdm,
        ):
            found[i] = one.log_likelihood
            self.cache_hook.add_partial(kind, requests[i].args, found[i])
        return found

    def _estimates(
        self,
        kind: str,
        contexts: Sequence[np.ndarray],
        continuations: Sequence[np.ndarray],
        greedy: bool,
        disable_tqdm: bool,
    ) -> Iterator[tuple[int, Likelihood]]:
        """Scores answers, rows of similar length together.

        Raises:
          InputError: naming a request for which the model gave NaN, once all others of
            its call were yielded.
        """
        settings = likelihood.Settings(**self.arguments.likelihood)
        settings["greedy"] = greedy
        order = np.argsort(
            [c.size + a.size for c, a in zip(contexts, continuations, strict=True)],
            kind="stable",
        )
        with _progress(kind, len(contexts), disable_tqdm) as progress:
            for start in range(0, len(order), _PER_CALL):
                chosen = order[start : start + _PER_CALL].tolist()
                found = self.model.log_likelihood(
                    [contexts[i] for i in chosen],
                    [continuations[i] for i in chosen],
                    chat=False,
                    **settings,
                )
                pairs = list(zip(chosen, found, strict=True))
                yield from (pair for pair in pairs if not pair[1].has_nan)
                if broken := [i for i, one in pairs if one.has_nan]:
                    raise InputError(
                        f"{kind} request {min(broken)}: the model gave NaN"
                    )
                progress.update(len(chosen))
