"""The models that a server serves, by name."""

from __future__ import annotations

import re
import threading
import time
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING

from causal_onnx.runtime import load, verify_bundle
from causal_onnx.runtime.artifact.folder import MODEL
from causal_onnx.runtime.bundle.manifest import CONTRACT
from causal_onnx.runtime.errors import ArtifactError
from causal_onnx.runtime.generation.plan import check_model
from causal_onnx.runtime.text.chat_template import ChatTemplate
from causal_onnx.serve.engine.engine import Engine, EngineOptions
from causal_onnx.serve.engine.sequences import SequenceEngine
from causal_onnx.serve.engine.tensors import TensorEngine
from causal_onnx.serve.errors import NotServedError, no_such_model

if TYPE_CHECKING:
    from causal_onnx.runtime import Contract, Model, Tokenizer

__all__ = [
    "ModelSource",
    "Registry",
    "ServedModel",
    "check_adapters",
    "open_models",
    "split_name",
]

NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._:-]{0,127}")


@dataclass(frozen=True, kw_only=True)
class ServedModel:
    """A model with the engines that answer requests to it."""

    name: str
    """The name by which requests ask for it."""
    model: Model
    tensors: TensorEngine
    """The engine for tensor requests."""
    engine: Engine | None
    """The engine that continues prompts; None if it is not a language model with a cache."""
    sequences: SequenceEngine | None = None
    """The engine that keeps the caches of sequences; None if the model has no cache."""
    template: ChatTemplate | None = None
    """The chat template; None if its folder has none."""
    path: Path | None = None
    """The folder or file that it was loaded from; None: it was passed as a loaded model."""
    created: int = field(default_factory=lambda: int(time.time()))
    """The time at which it was added, in seconds since 1970."""
    adapter: str | None = None
    """The name of the adapter that changes the model; None: none does."""
    parent: str | None = None
    """For a model that is another one with an adapter: the name of that one, which has the
    engines."""

    @property
    def contract(self) -> Contract:
        """The contract: what the model takes and returns."""
        return self.model.contract

    @property
    def kind(self) -> str:
        """What it serves: "chat" (and text), "text", "ids", or only "tensors"."""
        if self.engine is None:
            return "tensors"
        if self.template is not None:
            return "chat"
        return "ids" if self.tokenizer is None else "text"

    @property
    def tokenizer(self) -> Tokenizer | None:
        """The tokenizer; None if the model takes only ids."""
        try:
            return self.model.tokenizer
        except ImportError:  # it lies there, and nothing here can read it
            return None

    @classmethod
    def of(
        cls,
        name: str,
        model: Model,
        *,
        engine_options: EngineOptions | None = None,
        keeps_sequences: bool = True,
        path: Path | None = None,
    ) -> ServedModel:
        """Start the engines of a loaded model.

        Raises:
            ValueError: The name contains characters that a path cannot have, or an option does not
                fit the model.
            ArtifactError: A file beside the tokenizer is damaged.
        """
        _check_name(name, "NAME=path/to/model")
        engine = None
        try:
            check_model(model)
        except ValueError:  # tensors in, tensors out
            pass
        else:
            model.default_sampling  # noqa: B018 - a damaged file is found now, and not by a client
            engine = Engine(model, options=engine_options)
        served = cls(
            name=name,
            model=model,
            tensors=TensorEngine(model),
            engine=engine,
            sequences=SequenceEngine(model) if keeps_sequences and model.contract.cache else None,
            path=path,
        )
        if engine is None or served.tokenizer is None:
            return served
        return replace(served, template=ChatTemplate.of_folder(served.tokenizer.path.parent))

    def with_adapters(self) -> list[ServedModel]:
        """This model, and for each of its adapters the same one under the adapter's name."""
        for name in self.model.adapters:
            _check_name(name, "ADAPTER=path/to/adapter")
        adapted = [
            replace(self, name=name, adapter=name, parent=self.name) for name in self.model.adapters
        ]
        return [self, *adapted]

    def close(self, *, drain_s: float = 0.0) -> None:
        """Accept no more requests, and end those in progress within `drain_s` seconds.

        Does nothing for a model with a parent, whose engines these are.
        """
        if self.parent is not None:
            return
        until = time.monotonic() + drain_s
        if self.engine is not None:
            self.engine.close(drain_s=drain_s)
        if self.sequences is not None:
            self.sequences.close(drain_s=max(0.0, until - time.monotonic()))
        self.tensors.close(drain_s=max(0.0, until - time.monotonic()))

    @property
    def is_open(self) -> bool:
        """Whether it accepts requests."""
        return self.engine is None or self.engine.state.is_open

    @property
    def is_idle(self) -> bool:
        """Whether no request waits or runs."""
        state = None if self.engine is None else self.engine.state
        kept = self.sequences is not None and self.sequences.pending
        return not (self.tensors.pending or kept or (state and (state.running or state.waiting)))


@dataclass(frozen=True, kw_only=True)
class ModelSource:
    """Where models may come from while a server runs."""

    given: Mapping[str, Path]
    """Those that it was started with, by name."""
    root: Path | None
    """A folder: what lies in it may be loaded too, each by the name of its folder or file."""
    open: Callable[[str, Path], ServedModel]

    def find(self, name: str) -> Path | None:
        """The place of a model; None where none of that name may be loaded."""
        if name in self.given or self.root is None or not NAME.fullmatch(name):
            return self.given.get(name)
        root = self.root.resolve()
        for place, file in ((name, root / name / MODEL), (f"{name}.onnx", root / f"{name}.onnx")):
            if file.is_file() and file.resolve().is_relative_to(root):  # no link leads out of it
                return root / place
        return None

    def names(self) -> list[str]:
        """All that may be loaded."""
        found = dict.fromkeys(self.given)
        if self.root is not None and self.root.is_dir():
            for path in sorted(self.root.iterdir()):
                name = path.name.removesuffix(".onnx")
                if self.find(name) is not None:
                    found[name] = None
        return list(found)


class Registry(Mapping[str, ServedModel]):
    """The served models by name, in the order in which they were added."""

    def __init__(
        self, models: Sequence[ServedModel] = (), *, source: ModelSource | None = None
    ) -> None:
        self.source = source
        """Where others may come from; None: what is here is all."""
        self._lock, self._loading = threading.Lock(), threading.Lock()
        self._models: dict[str, ServedModel] = {}
        for served in models:
            self.add(served)

    def __getitem__(self, name: str) -> ServedModel:
        return self._models[name]

    def __iter__(self) -> Iterator[str]:
        return iter(tuple(self._models))

    def __len__(self) -> int:
        return len(self._models)

    def find(self, name: str) -> ServedModel:
        """Returns the model of this name.

        Raises:
            NotServedError: There is no such model; the message names those there are.
        """
        served = self._models.get(name)
        if served is None:
            raise no_such_model(name, self)
        return served

    def add(self, served: ServedModel) -> None:
        """Add a model, and one for each adapter that it was loaded with.

        Raises:
            ValueError: Another model has the same name, or an adapter has one that no model can
                have.
        """
        with self._lock:
            models = dict(self._models)
            for item in served.with_adapters():
                if item.name in models:
                    raise ValueError(
                        f"two models are called {item.name!r}; give one another name: NAME=path"
                    )
                models[item.name] = item
            self._models = models

    def remove(self, name: str, *, drain_s: float = 0.0) -> None:
        """Remove a model; its running requests may take `drain_s` seconds.

        Raises:
            NotServedError: There is no model of this name.
        """
        served = self.find(name)
        with self._lock:
            self._models = {
                key: item for key, item in self._models.items() if name not in (key, item.parent)
            }
        served.close(drain_s=drain_s)

    def load(self, name: str, *, drain_s: float = 0.0) -> None:
        """Load a model from the source; if it is already served, load it again and replace it.

        Raises:
            NotServedError: No model of this name may be loaded.
            ArtifactError: It cannot be loaded, or is a bundle that does not verify.
        """
        source = self.source
        path = None if source is None else source.find(name)
        if source is None or path is None:
            known = ", ".join(source.names()) if source else ""
            raise NotServedError(
                f"{name!r} may not be loaded on this server; available are {known or 'nothing'}",
                param="model",
                code="model_not_found",
            )
        with self._loading:  # one at a time: each takes memory
            served = source.open(name, path)
            with self._lock:
                before = self._models.get(name)
                own = {item.name: item for item in served.with_adapters()}
                self._models = {**self._models, **own}
        if before is not None:
            before.close(drain_s=drain_s)

    def close(self, *, drain_s: float = 0.0) -> None:
        """Close all models, within `drain_s` seconds together."""
        until = time.monotonic() + drain_s
        for served in self.values():
            served.close(drain_s=max(0.0, until - time.monotonic()))


def split_name(text: str) -> tuple[str, Path]:
    """Read `NAME=path`, or a path, whose last part is then the name.

    Raises:
        ValueError: There is no path in it.
    """
    name, equals, rest = text.partition("=")
    is_named = bool(equals) and NAME.fullmatch(name) is not None
    path = Path(rest if is_named else text)
    if not str(path).strip(".") and not is_named:
        path = path.resolve()
    place = path.resolve() if path.name in ("", "..") else path
    return (name if is_named else place.name.removesuffix(".onnx")), path


def open_models(
    places: Sequence[str],
    *,
    device: str = "cpu",
    threads: int | None = None,
    trusted: bool = False,
    prepared: Path | None = None,
    engine_options: EngineOptions | None = None,
    keeps_sequences: bool = True,
    repository: Path | None = None,
    adapters: Mapping[str, Path] | None = None,
) -> Registry:
    """Load folders and files, and start the engines that answer requests to them.

    Args:
        places: Each a path, or `NAME=path`.
        device: As for `load`.
        threads: As for `load`.
        trusted: As for `load`.
        prepared: As for `load`.
        engine_options: The options of each engine.
        keeps_sequences: Whether caches of clients are kept between their requests, which needs
            that all requests of a client come to this process.
        repository: A folder whose models clients may load while the server runs.
        adapters: LoRA adapters of the one model in `places`, by name, as for `load`. Each is served
            as a model of this name.

    Raises:
        FileNotFoundError: A file or folder does not exist.
        ArtifactError: A file cannot be loaded, or a bundle is not what its contract.json says.
        ValueError: Two models have the same name, or an option does not fit a model.
        DeviceError: The device cannot be used.
    """

    def open_model(name: str, path: Path) -> ServedModel:
        if path.is_dir() and (path / CONTRACT).is_file():
            _check_bundle(path, device=device, threads=threads)
        # With `cast`, because the protocols check dtypes, and bfloat16 comes as float32.
        model = load(
            path,
            device=device,
            threads=threads,
            trusted=trusted,
            prepared=prepared,
            cast=True,
            adapters=adapters if name in dict(given) else None,
        )
        return ServedModel.of(
            name,
            model,
            engine_options=engine_options,
            keeps_sequences=keeps_sequences,
            path=path,
        )

    if repository is not None and not repository.is_dir():
        raise FileNotFoundError(f"there is no folder {repository}")
    given = [split_name(place) for place in places]
    check_adapters(adapters or {}, [name for name, _ in given])
    registry = Registry(source=ModelSource(given=dict(given), root=repository, open=open_model))
    try:
        for name, path in given:
            registry.add(open_model(name, path))
    except BaseException:
        registry.close()
        raise
    return registry


def check_adapters(adapters: Collection[str], models: Sequence[str]) -> None:
    """Check that adapters can be served by their names beside these models.

    Raises:
        ValueError: There are several models, or a name cannot be that of a model.
    """
    if adapters and len(models) != 1:
        raise ValueError(
            f"adapters are of one model, and {len(models)} are served; serve theirs in a process "
            "of its own"
        )
    for name in adapters:
        _check_name(name, "ADAPTER=path/to/adapter")
        if name in models:
            raise ValueError(f"two models are called {name!r}; give one another name: NAME=path")


def _check_name(name: str, example: str) -> None:
    if not NAME.fullmatch(name):
        raise ValueError(
            f"{name!r} cannot be the name of a model: use letters, digits, '.', '_', ':' and "
            f"'-', such as {example}"
        )


def _check_bundle(folder: Path, *, device: str, threads: int | None) -> None:
    report = verify_bundle(folder, device=device, threads=threads)
    if not report.passed:
        first = report.findings[0] if report.findings else f"{MODEL} was not run"
        raise ArtifactError(
            f"{folder} is not served: it does not match its {CONTRACT} ({first}). "
            f"See causal-onnx verify-bundle {folder}"
        )
