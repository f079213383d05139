"""Continuous batching: sequences join and leave a running batch, prompts are read in between."""

from __future__ import annotations

import asyncio
import functools
import heapq
import logging
import secrets
import threading
import time
from collections import deque
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Concatenate, ParamSpec

import numpy as np

from causal_onnx.runtime import PrefixCache
from causal_onnx.runtime.generation.continuation import GrowingSequence, Plan
from causal_onnx.runtime.generation.plan import (
    check_model,
    make_plan,
    prompt_ids,
    required_tokenizer,
    vocab_size,
)
from causal_onnx.runtime.generation.prompt import feed
from causal_onnx.runtime.generation.sampling import log_softmax
from causal_onnx.runtime.generation.speculate import Draft, DraftHeads, check_draft
from causal_onnx.runtime.request.whole_numbers import whole_number, whole_numbers
from causal_onnx.runtime.stream import cache_blocks
from causal_onnx.serve.engine.generation import Generation, Score, Token
from causal_onnx.serve.engine.guesses import Pieces, RowGuesses, probe_pieces
from causal_onnx.serve.engine.queued import check_admission
from causal_onnx.serve.engine.record import EngineRecord
from causal_onnx.serve.engine.rows import open_rows
from causal_onnx.serve.errors import BadRequestError, UnavailableError

if TYPE_CHECKING:
    import numpy.typing as npt

    from causal_onnx.runtime import Constraint, Model, Sampling, Stream

    Array = npt.NDArray[Any]

__all__ = ["Engine", "EngineOptions", "EngineState"]

log = logging.getLogger(__name__)

Arguments = ParamSpec("Arguments")

LEAST_PRIORITY = -(1 << 31)
"""Of what is repeated; requests have larger ones."""

MOST_REPLAYS = 16
"""Requests that are kept to be repeated, the last ones."""

DEFAULT_CONTEXT = 4096
"""Positions of a sequence, for models that know no limit."""


@dataclass(frozen=True, kw_only=True, slots=True)
class EngineOptions:
    """Limits of an `Engine`: what it decodes, holds and queues at once."""

    sequences: int = 8
    """The most sequences decoded together, including the one whose prompt is prefilled."""
    context: int | None = None
    """The most positions of a sequence; None: the model's limit, or 4096 if it has none."""
    chunk: int = 64
    """Positions of a prompt that are prefilled between two decoding steps."""
    queue: int = 64
    """The most requests that may wait; further ones raise `BusyError`."""
    cache_positions: int | None = None
    """The most positions of all running sequences together; None: `sequences` x `context`."""
    prefix_positions: int | None = None
    """Positions of prompts that are kept for later prompts that begin alike, in blocks of `chunk`;
    None: `sequences` x `context`; 0: none."""
    draft: Draft | None = None
    """By what tokens are guessed ahead: `PromptLookup()` or a `DraftModel`; None: nothing is
    guessed. Tokens and log-probabilities are the same with and without. So nothing is guessed if a
    call over several positions gives other bits than single steps (`Engine.no_guesses`)."""
    replays: bool = False
    """Whether requests are repeated when the engine is idle, to count those whose results differ
    (`EngineRecord.replays_different`). This takes processor time."""

    def __post_init__(self) -> None:
        for name in ("sequences", "chunk", "queue"):
            whole_number(name, getattr(self, name))
        for name, least in (("context", 1), ("cache_positions", 1), ("prefix_positions", 0)):
            if getattr(self, name) is not None:
                whole_number(name, getattr(self, name), least=least)


@dataclass(frozen=True, kw_only=True, slots=True)
class EngineState:
    """A snapshot of what an engine is doing."""

    running: int
    """Requests that are being prefilled or decoded."""
    waiting: int
    """Requests in the queue."""
    positions: int
    """Positions of the cache that running requests may need."""
    most_positions: int
    """Positions that the cache has."""
    is_open: bool
    """Whether the engine accepts requests."""


class _Running:
    """One sequence that is decoded."""

    __slots__ = ("generation", "growing", "guesses", "index", "length", "proposed")

    def __init__(self, generation: Generation, index: int, guesses: RowGuesses | None) -> None:
        self.generation, self.index, self.guesses = generation, index, guesses
        self.growing: GrowingSequence = generation.sequences[index]
        self.length = len(generation.prompt)
        self.proposed: list[int] = []
        """What is guessed to come after its last token."""


def _taking_up(
    prepare: Callable[Concatenate[Engine, Arguments], Generation],
) -> Callable[Concatenate[Engine, Arguments], Generation]:
    """The same method, with the same signature, that takes up what it makes."""

    @functools.wraps(prepare, assigned=("__doc__", "__annotations__", "__module__"))
    def submit(self: Engine, /, *args: Arguments.args, **options: Arguments.kwargs) -> Generation:
        generation = prepare(self, *args, **options)
        self.enqueue([generation])
        return generation

    submit.__qualname__ = "Engine.submit"
    return submit


class Engine:
    """Answers requests to one language model, many at once, on a thread of its own.

        with Engine(load("model/")) as engine:
            for token in engine.submit("Once upon a time", max_new_tokens=100):
                print(token.text, end="")

    The result of a request depends on the request alone: the same prompt, options and seed give
    the same bits, whether the request runs alone or with others. Prompts are prefilled one by one,
    always in the same chunks. Decoding calls have only batch sizes that gave equal bits when the
    engine started (`Engine.batch_sizes`).
    """

    def __init__(self, model: Model, *, options: EngineOptions | None = None) -> None:
        """Make room for the cache and start.

        Raises:
            ValueError: The model is not a language model with a KV cache, or an option does not
                fit it.
        """
        check_model(model)
        options = options or EngineOptions()
        limit = model.contract.max_seq_len
        context = options.context or limit or DEFAULT_CONTEXT
        if limit is not None and context > limit:
            raise ValueError(f"context must be at most the model's {limit}, got {context}")
        self.model, self.options = model, options
        self.context = context
        """Positions that a sequence may have."""
        self._rows = open_rows(model, count=options.sequences, capacity=context)
        self._most_positions = options.cache_positions or options.sequences * context
        vocabs = [spec.vocab_size for spec in model.contract.inputs if spec.vocab_size is not None]
        self.vocab_size = min([*vocabs, vocab_size(model)])
        """Ids of prompts lie in [0, vocab_size)."""
        self._draft = None if options.draft is None else _checked_draft(model, options.draft)
        self._pieces: Pieces | None = None
        self.no_guesses: str | None = None
        """Why nothing is guessed ahead; None: guesses are made."""
        self._learn_to_guess()
        self.records = {name: EngineRecord() for name in (None, *model.adapters)}
        """What it has done so far, by the name of the adapter; None: without any."""
        kept = options.prefix_positions
        kept = options.sequences * context if kept is None else kept
        self.prefixes = (
            PrefixCache(model, capacity_positions=kept, block=options.chunk)
            if kept >= options.chunk
            else None
        )
        """What was read of prompts, for others that begin alike; None where nothing is kept."""
        self._changed = threading.Condition()
        self._waiting: list[tuple[int, int, Generation]] = []
        """A heap: the highest priority first, then who came first."""
        self._count = 0
        self._is_open = True
        self._is_ending = False
        # What follows belongs to the engine's thread.
        self._reading: Generation | None = None
        self._prompt: Stream | None = None
        self._known = 0
        """Blocks of the prompt that were found read."""
        self._windows: list[cache_blocks.Block] = []
        self._running: list[_Running] = []
        self._positions: dict[Generation, int] = {}
        self._to_replay: deque[Generation] = deque(maxlen=MOST_REPLAYS)
        self._changed_ones: dict[Generation, None] = {}
        """Those to which something happened in this step."""
        self._thread = threading.Thread(target=self._run, name="causal-onnx-engine", daemon=True)
        self._thread.start()

    def _learn_to_guess(self) -> None:
        """Find out whether guesses can be judged without changing a bit, and what that costs."""
        if self._draft is None:
            self.no_guesses = "its engine was started without a draft (--lookup, --draft)"
            return
        found = probe_pieces(
            self.model,
            self._rows,
            draft=self._draft,
            vocab=self.vocab_size,
            capacity=self.context,
        )
        if isinstance(found, Pieces):
            self._pieces = found
        else:
            self.no_guesses = found

    @property
    def record(self) -> EngineRecord:
        """What it has done so far, of requests without an adapter."""
        return self.records[None]

    @property
    def batch_sizes(self) -> tuple[int, ...]:
        """The batch sizes of decoding calls, ascending; (1,): sequences are decoded in turn."""
        return self._rows.sizes

    @property
    def state(self) -> EngineState:
        """A snapshot of what the engine is doing."""
        with self._changed:
            held = dict(self._positions)
            return EngineState(
                running=len(held),
                waiting=len(self._waiting),
                positions=sum(held.values()),
                most_positions=self._most_positions,
                is_open=self._is_open,
            )

    def prepare(
        self,
        prompt: Sequence[int] | str,
        *,
        max_new_tokens: int | None = None,
        sampling: Sampling | None = None,
        stop: Collection[int | str] | str = (),
        seed: int | None = None,
        constraint: Constraint | None = None,
        n: int = 1,
        top_logprobs: int = 0,
        score_prompt: bool = False,
        priority: int = 0,
        joins_prompt: bool = True,
        prediction: Sequence[int] | str | None = None,
        adapter: str | None = None,
    ) -> Generation:
        """Make a request. `submit` also enqueues it; after `prepare`, call `enqueue`.

        Both may be called from any thread. Compiling a constraint may take a second.

        Args:
            prompt: As for `Model.tokens`.
            max_new_tokens: As for `Model.tokens`; 0, with `score_prompt`: nothing is generated.
            sampling: As for `Model.tokens`.
            stop: As for `Model.tokens`.
            seed: As for `Model.tokens`; None: a random one, see `Generation.seed`. The
                random numbers of continuation i are those of `default_rng([seed, i])`.
            constraint: As for `Model.tokens`.
            n: Continuations of the prompt, which is prefilled once.
            top_logprobs: How many of the most likely ids to return for each token.
            score_prompt: Whether to return the log-probabilities of the prompt's own ids, too.
            priority: Requests with larger ones are started first.
            joins_prompt: Whether the text continues that of the prompt, or begins a new one.
            prediction: What the continuation will be for the most part, as ids or text, such as
                the text that is to be changed a little. It saves time where it comes true, and
                changes no token.
            adapter: The name of the adapter that changes the model, of those that it was loaded
                with. Requests with different ones are decoded together.

        Raises:
            ValueError: An argument is out of its range, or the model does not support it.
            BadRequestError: An id is not in the vocabulary, or the request can never fit.
            BusyError: The queue is full (`submit`).
            UnavailableError: The engine is closing (`submit`).
            ImportError: Text or a constraint needs the extra `text`.
        """
        only_scores = score_prompt and max_new_tokens == 0
        plan = make_plan(
            self.model,
            max_new_tokens=1 if only_scores else max_new_tokens,
            sampling=sampling,
            stop=stop,
            constraint=constraint,
            reader=None,
            needs_text=isinstance(prompt, str),
            joins_prompt=joins_prompt,
        )
        self.model.runner.adapters.check_names([adapter])
        (ids,) = prompt_ids(self.model, [prompt])
        self._check_ids(ids, "prompt")
        n = whole_number("n", n, most=1024)
        top_logprobs = whole_number("top_logprobs", top_logprobs, least=0)
        priority = whole_number(
            "priority", priority, least=LEAST_PRIORITY + 1, most=-LEAST_PRIORITY
        )
        if seed is None:
            seed = secrets.randbits(32)
        seed = whole_number("seed", seed, least=0, wanted="an integer of at least 0, or None")
        generation = Generation(
            ids,
            plan,
            _sequences(ids, plan, seed, n),
            seed=seed,
            top_logprobs=top_logprobs,
            priority=priority,
            scores_prompt=score_prompt,
            only_scores=only_scores,
            prediction=self._prediction(prediction),
            adapter=adapter,
        )
        self._check_size(generation)
        return generation

    submit = _taking_up(prepare)
    """Make a request, with the arguments of `prepare`, and enqueue it."""

    def enqueue(self, generations: Sequence[Generation]) -> None:
        """Enqueue requests that `prepare` made, all of them or none.

        Raises:
            BusyError: The queue is full.
            UnavailableError: The engine is closing.
        """
        with self._changed:
            check_admission(
                is_open=self._is_open, waiting=len(self._waiting), most=self.options.queue
            )
            for generation in generations:
                self._push(generation)
            self._changed.notify_all()

    def _push(self, generation: Generation) -> None:
        generation.called_by(self._wake)
        self._count += 1
        heapq.heappush(self._waiting, (-generation.priority, self._count, generation))

    def close(self, *, drain_s: float = 0.0) -> None:
        """Accept no more requests, finish those in progress, and end the thread.

        Args:
            drain_s: Seconds that they may take; what is left then is cancelled.
        """
        with self._changed:
            self._is_open = False
            self._is_ending = True
            self._changed.notify_all()
        self._thread.join(timeout=drain_s)
        with self._changed:
            left = [*(item[2] for item in self._waiting), *self._positions]
        for generation in left:
            generation.cancel()
        self._thread.join()

    def __enter__(self) -> Engine:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _prediction(self, given: Sequence[int] | str | None) -> Sequence[int]:
        """The ids of a prediction; none where there is none."""
        if given is None:
            return ()
        if self.no_guesses is not None:
            raise BadRequestError(
                f"a prediction is not supported for this model: {self.no_guesses}; leave it out",
                param="prediction",
            )
        if isinstance(given, str):
            ids = required_tokenizer(self.model).encode(given, add_special_tokens=False)
        else:
            ids = whole_numbers("prediction", given).tolist() if np.size(given) else []
        self._check_ids(ids, "prediction")
        return ids[: self.context]

    def _check_ids(self, ids: Sequence[int], name: str) -> None:
        wrong = next((token for token in ids if not 0 <= token < self.vocab_size), None)
        if wrong is not None:
            raise BadRequestError(
                f"the {name} holds the id {wrong}, expected ids in [0, {self.vocab_size})",
                param=name,
            )

    def _check_size(self, generation: Generation) -> None:
        """Refuse what there is never room for."""
        count, n = len(generation.prompt), len(generation.sequences)
        if count > self.context:
            raise BadRequestError(
                f"the prompt has {count} ids, and this server accepts {self.context} positions per "
                "sequence; shorten it",
                param="prompt",
                code="context_length_exceeded",
            )
        if n > self._rows.count:
            raise BadRequestError(
                f"n is {n}, and this server decodes {self._rows.count} sequences at once",
                param="n",
            )
        needed = self._needed(generation)
        if needed > self._most_positions:
            raise BadRequestError(
                f"the request may come to need {needed} positions of the cache, which has "
                f"{self._most_positions}; ask for fewer new tokens or continuations",
                param="max_tokens",
            )

    def _needed(self, generation: Generation) -> int:
        """Positions of the cache that a request may come to need."""
        new = 0 if generation.only_scores else generation.plan.max_new_tokens
        each = min(len(generation.prompt) + new, self.context)
        return each * len(generation.sequences)

    def _wake(self) -> None:
        with self._changed:
            self._changed.notify_all()

    # The engine's thread.

    def _run(self) -> None:
        try:
            while self._wait():
                self._drop_cancelled()
                self._admit()
                self._read_chunk()
                self._deliver()  # a first token need not wait for the others' next
                self._decode()
                self._deliver()
        except BaseException as error:  # whoever waits must not wait for ever
            log.exception("the engine of %s failed", self.model.runner.artifact.name)
            self._fail_all(error)

    def _wait(self) -> bool:
        """Wait for something to do; False where the end has come."""
        with self._changed:
            while not (self._waiting or self._positions):
                if self._is_ending:
                    return False
                if self._to_replay:
                    self._push(self._replay_of(self._to_replay.popleft()))
                else:
                    self._changed.wait()
            return True

    def _replay_of(self, generation: Generation) -> Generation:
        """The same request again."""
        prompt, plan, seed = generation.prompt, generation.plan, generation.seed
        return Generation(
            prompt,
            plan,
            _sequences(prompt, plan, seed, len(generation.sequences)),
            seed=seed,
            top_logprobs=generation.top_logprobs,
            priority=LEAST_PRIORITY,
            scores_prompt=generation.scores_prompt,
            only_scores=generation.only_scores,
            prediction=generation.prediction,
            adapter=generation.adapter,
            replay_of=generation,
        )

    def _drop_cancelled(self) -> None:
        with self._changed:
            gone = [item[2] for item in self._waiting if item[2].is_cancelled]
            if gone:
                self._waiting = [item for item in self._waiting if not item[2].is_cancelled]
                heapq.heapify(self._waiting)
        for generation in gone:
            self._end(generation)
        if self._reading is not None and self._reading.is_cancelled:
            self._end(self._reading)
        for generation in [item.generation for item in self._running]:
            if generation.is_cancelled:
                self._end(generation)

    def _admit(self) -> None:
        """Take up the next request where there is room for all that it may need."""
        if self._reading is not None:
            return
        with self._changed:
            if not self._waiting:
                return
            generation = self._waiting[0][2]
            needed = self._needed(generation)
            has_rows = self._rows.running + len(generation.sequences) <= self._rows.count
            if not has_rows or sum(self._positions.values()) + needed > self._most_positions:
                return
            heapq.heappop(self._waiting)
            self._positions[generation] = needed
        generation.times.started = time.monotonic()
        self._reading, self._prompt = generation, self._rows.begin(generation.adapter)
        self._known, self._windows = 0, []
        if self.prefixes is not None and not generation.scores_prompt:
            try:
                self._take_known(generation, self._prompt, self.prefixes)
            except Exception as error:
                self._failed(generation, error)

    def _take_known(self, generation: Generation, stream: Stream, prefixes: PrefixCache) -> None:
        """Let a stream have read what was kept of a prompt.

        Blocks are chunks, so what is kept has the bits that reading it again would give.
        """
        known, size = (
            prefixes.find(generation.prompt, adapter=generation.adapter),
            self.options.chunk,
        )
        if known:
            stream.take_over(*cache_blocks.join(self.model.contract, [known], size))
        self._known, generation.cached_tokens = len(known), len(known) * size

    def _read_chunk(self) -> None:
        """Read the next positions of the prompt that is being read."""
        generation, stream = self._reading, self._prompt
        if generation is None or stream is None:
            return
        start = stream.lengths[0]
        # Always the same chunks: they decide the last bits.
        stop = min(start - start % self.options.chunk + self.options.chunk, len(generation.prompt))
        ids = np.array([generation.prompt[start:stop]], np.int64)
        try:
            logits = feed(stream, ids, last_only=not generation.scores_prompt)[0]
            if generation.scores_prompt:
                self._score(generation, start, logits)
            self._keep(generation, stream, stop)
            if stop < len(generation.prompt):
                return
            self._join(generation, logits[-1])
        except Exception as error:
            self._failed(generation, error)

    def _keep(self, generation: Generation, stream: Stream, stop: int) -> None:
        """Keep what was read, for other prompts; a window at the end of each block."""
        if self.prefixes is None or generation.scores_prompt:
            return
        contract = self.model.contract
        if cache_blocks.has_window(contract) and stop % self.options.chunk == 0:
            self._windows.append(cache_blocks.windows(contract, stream, 0))
        if stop == len(generation.prompt):
            self.prefixes.keep(generation.prompt, stream, known=self._known, windows=self._windows)

    def _score(self, generation: Generation, start: int, logits: Array) -> None:
        """Note how likely the ids of the prompt were, whose logits (seq, vocab) came."""
        prompt, scores = generation.prompt, generation.prompt_scores
        if not scores:
            scores.append(Score(prompt[0], None))
        table = log_softmax(logits)
        for place, row in enumerate(table[: len(prompt) - 1 - start], start=start + 1):
            scores.append(_score(prompt[place], row, generation.top_logprobs))

    def _join(self, generation: Generation, logits: Array) -> None:
        """Choose the first tokens after a prompt that was read, and go on with those that do."""
        if generation.only_scores:
            self._end(generation)
            return
        begun = [
            _Running(generation, index, self._guesses_for(generation))
            for index in range(len(generation.sequences))
        ]
        self._rows.join(len(begun))
        self._reading = self._prompt = None
        self._running += begun
        for item in begun:
            self._choose(item, logits)
        self._leave()

    def _guesses_for(self, generation: Generation) -> RowGuesses | None:
        draft, pieces = self._draft, self._pieces
        if draft is None or pieces is None:
            return None
        expected = generation.prediction
        return RowGuesses(draft, pieces, expected=expected, chunk=self.options.chunk)

    def _decode(self) -> None:
        """One step of all running sequences: each has one token more, or those guessed right."""
        guesses = self._propose_all() if self._pieces is not None else False
        running = self._running
        if not running:
            return
        logits: Array | Sequence[Array]
        try:
            if guesses:
                logits = [
                    self._rows.read(place, [item.growing.ids[-1], *item.proposed])
                    for place, item in enumerate(running)
                ]
            else:
                logits = self._rows.step([item.growing.ids[-1] for item in running])
        except Exception as error:
            for generation in {item.generation for item in running}:
                self._failed(generation, error)
            return
        for place, item in enumerate(tuple(running)):
            if guesses:
                self._accept(item, place, logits[place])
            else:
                item.length += 1
                self._choose(item, logits[place])
        self._leave()

    def _propose_all(self) -> bool:
        """Guess what comes after the next tokens of each sequence; whether anything is guessed."""
        # Guesses are judged by calls of one row, which cost a batch more than they save.
        if len(self._running) > 1 and self._rows.sizes != (1,):
            return False
        failed = False
        for item in self._running:
            growing, guesses = item.growing, item.guesses
            assert guesses is not None
            most = min(growing.left, self.context - item.length) - 1
            try:
                item.proposed = guesses.propose(growing, most)
            except Exception as error:
                self._finish(item.generation, error)
                failed = True
        if failed:
            self._leave()
        return any(item.proposed for item in self._running)

    def _accept(self, item: _Running, place: int, logits: Array) -> None:
        """Choose tokens by the logits (seq, vocab), as long as they are what was proposed."""
        proposed, right = item.proposed, 0
        for row, guess in zip(logits, [*proposed, None], strict=True):
            item.length += 1
            is_right = self._choose(item, row) and item.growing.ids[-1] == guess
            right += is_right
            if not is_right or item.growing.finish is not None:
                break
        if item.guesses is None or not proposed:
            return
        if item.growing.finish is None and right < len(proposed):
            self._rows.take_back(place, len(proposed) - right)
        item.guesses.judge(right, len(proposed))
        item.generation.count_guesses(right, len(proposed), is_prediction=item.guesses.is_expected)
        if item.generation.replay_of is None:
            self.records[item.generation.adapter].add_guesses(right, len(proposed))

    def _choose(self, item: _Running, logits: Array) -> bool:
        """The next token of one sequence; whether there is one."""
        generation, growing = item.generation, item.growing
        if growing.finish is not None:  # what it belongs to failed in this very step
            return False
        try:
            choice = growing.choose(logits, is_last=item.length >= self.context)
            top: tuple[tuple[int, float], ...] = ()
            if generation.top_logprobs:
                top = _score(choice.id, log_softmax(logits), generation.top_logprobs).top
        except Exception as error:
            # A request that cannot go on, such as by a schema that the vocabulary cannot write;
            # its rows are freed by the next `_leave`.
            self._finish(generation, error)
            return False
        score = Score(choice.id, choice.logprob, top)
        generation.post(Token(item.index, score, choice.text, growing.finish))
        if generation.replay_of is None:
            self.records[generation.adapter].add_token()
        self._changed_ones[generation] = None
        return True

    def _leave(self) -> None:
        """Free the rows of sequences that have ended."""
        for place in range(len(self._running) - 1, -1, -1):
            if self._running[place].growing.finish is not None:
                self._free(place)
        going = {item.generation for item in self._running}
        for generation in [item for item in self._positions if item not in going]:
            if generation is not self._reading:
                self._end(generation)

    def _free(self, place: int) -> None:
        self._rows.leave(place)
        last = self._running.pop()
        if place < len(self._running):
            self._running[place] = last

    def _failed(self, generation: Generation, error: Exception) -> None:
        log.error("a request to %s failed: %s", self.model.runner.artifact.name, error)
        self._end(generation, error)

    def _end(self, generation: Generation, error: Exception | None = None) -> None:
        """Free all that a request has, and say that nothing follows."""
        if self._reading is generation:
            self._rows.abandon()
            self._reading = self._prompt = None
        for place in range(len(self._running) - 1, -1, -1):
            if self._running[place].generation is generation:
                self._free(place)
        with self._changed:
            self._positions.pop(generation, None)
        self._finish(generation, error)

    def _fail_all(self, error: BaseException) -> None:
        with self._changed:
            self._is_open = False
            left = [*(item[2] for item in self._waiting), *self._positions]
            self._waiting.clear()
            self._positions.clear()
        for generation in left:
            self._finish(generation, UnavailableError(f"the model failed: {error}"))
        self._deliver()

    def _finish(self, generation: Generation, error: Exception | None) -> None:
        """Say that nothing follows, once."""
        if not generation.is_done:
            generation.end(error)
            self._changed_ones[generation] = None
            if generation.replay_of is None:
                self.records[generation.adapter].add(generation, is_error=error is not None)
            self._follow_up(generation, error)

    def _follow_up(self, generation: Generation, error: Exception | None) -> None:
        """Compare a repeated request with the first, or keep one to be repeated."""
        first = generation.replay_of
        if not self.options.replays or error is not None or generation.is_cancelled:
            return
        if first is None:
            self._to_replay.append(generation)
            return
        is_same = generation.became_the_same(first)
        self.records[generation.adapter].add_replay(is_same=is_same)
        if not is_same:
            log.error(
                "a request of %d ids with seed %d to %s became something else when it was repeated",
                len(first.prompt),
                first.seed,
                self.model.runner.artifact.name,
            )

    def _deliver(self) -> None:
        """Wake all who wait, once a step: each time, Python may go on in another thread."""
        changed, self._changed_ones = self._changed_ones, {}
        waiters = [waiter for item in changed if (waiter := item.wake()) is not None]
        for loop in {waiter.get_loop() for waiter in waiters}:
            mine = [waiter for waiter in waiters if waiter.get_loop() is loop]
            try:
                loop.call_soon_threadsafe(_set_all, mine)
            except RuntimeError:  # the loop is closed: nobody waits there any more
                log.debug("an event loop ended before its requests")


def _checked_draft(model: Model, draft: Draft) -> Draft:
    found = None if isinstance(draft, DraftHeads) else check_draft(model, draft)
    if found is None or isinstance(found, DraftHeads):
        raise TypeError(
            "DraftHeads are for generate and tokens; an engine guesses ahead by PromptLookup() or "
            "DraftModel(...)"
        )
    return found


def _sequences(prompt: Sequence[int], plan: Plan, seed: int, n: int) -> list[GrowingSequence]:
    """The continuations of a request, still empty, each with random numbers of its own."""
    return [GrowingSequence(prompt, plan, np.random.default_rng([seed, i])) for i in range(n)]


def _set_all(waiters: Sequence[asyncio.Future[None]]) -> None:
    for waiter in waiters:
        if not waiter.done():
            waiter.set_result(None)


def _score(token: int, logprobs: Array, top: int) -> Score:
    """Of a token by log-probabilities (vocab,); of equally likely ids the smaller ones first."""
    count, best = min(top, len(logprobs)), np.zeros(0, np.int64)
    if count:
        # A vocabulary is large: only those that may be among the first are sorted.
        likely = np.flatnonzero(logprobs >= np.partition(logprobs, -count)[-count])
        best = likely[np.argsort(-logprobs[likely], kind="stable")][:count]
    return Score(token, float(logprobs[token]), tuple((int(i), float(logprobs[i])) for i in best))
