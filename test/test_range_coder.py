# SPDX-License-Identifier: Apache-2.0
"""The entropy coder against ``constriction``'s, word for word, and where its compiled form is kept."""

import os
import shutil
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from codec_material import DATA, TINY_MODEL, entropy_model
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file

from sicm_ros.codec import ans, packet
from sicm_ros.codec.payload import compress, decompress
from sicm_ros.codec.range_coder import RangeCoder, SymbolDecoder, SymbolEncoder
from sicm_ros.model_store import load_model
from sicm_ros.networks.entropy_model import StereoEntropyModel
from sicm_ros.networks.entropy_tables import TOTAL, EntropyTables
from sicm_ros.networks.integer_prior import symbol_limits

LIMITS = symbol_limits().numpy().astype(np.int32)
CHANNELS = 3


@pytest.fixture(scope="module")
def stream():
    """The library that is the oracle; it has wheels for x86_64 alone."""
    return pytest.importorskip("constriction").stream


class Oracle:
    """The same coder from the library's parts, as docs/packet.md describes it."""

    def __init__(self, stream, tables: EntropyTables) -> None:
        def model(counts: np.ndarray):
            return stream.model.Categorical(counts.astype(np.float64) / TOTAL, perfect=False)

        self.stack = stream.stack.AnsCoder
        self.latents = [model(row) for row in tables.latent_rows]
        self.hyper = [[model(row) for row in view] for view in tables.hyper]

    def runs(self, pair: SimpleNamespace):
        """(table, its symbols' places in the flat order) in the order of decoding; and the flat order's tables."""
        for view in (0, 1):
            for channel, model in enumerate(self.hyper[view]):
                yield model, ("hyper", view, channel), None
        for step, indices in enumerate(pair.indices):
            for index, model in enumerate(self.latents):
                if (indices == index).any():
                    yield model, ("latents", step, index), np.flatnonzero(indices == index)

    def encode(self, pair: SimpleNamespace) -> bytes:
        stack = self.stack()
        for model, (kind, i, j), places in reversed(list(self.runs(pair))):
            if kind == "hyper":
                symbols = pair.hyper[i][j].reshape(-1) + 63
            else:
                symbols = pair.symbols[i][places] + LIMITS[j]
            stack.encode_reverse(symbols.astype(np.int32), model)
        return stack.get_compressed().astype("<u4").tobytes().rstrip(b"\0")

    def decode(self, payload: bytes, pair: SimpleNamespace) -> tuple[list[np.ndarray], bool]:
        words = np.frombuffer(payload + bytes(-len(payload) % 4), "<u4").astype(np.uint32)
        used = np.flatnonzero(words)
        stack = self.stack(words[: used[-1] + 1] if len(used) else words[:0])
        hyper = [np.empty_like(z) for z in pair.hyper]
        symbols = [np.empty(len(s), np.int32) for s in pair.symbols]
        for model, (kind, i, j), places in self.runs(pair):
            if kind == "hyper":
                hyper[i][j] = stack.decode(model, hyper[i][j].size).reshape(hyper[i][j].shape) - 63
            else:
                symbols[i][places] = stack.decode(model, len(places)) - LIMITS[j]
        return [*hyper, *symbols], bool(stack.is_empty())


def ours_encoded(coder: RangeCoder, pair: SimpleNamespace) -> bytes:
    encoder = SymbolEncoder(coder)
    for view in (0, 1):
        encoder.hyper(view, pair.hyper[view])
    for symbols, indices in zip(pair.symbols, pair.indices, strict=True):
        encoder.latents(symbols, indices)
    return encoder.finish()


def ours_decoded(coder: RangeCoder, payload: bytes, pair: SimpleNamespace) -> tuple[list[np.ndarray], bool]:
    decoder = SymbolDecoder(coder, payload)
    found = [decoder.hyper(view, pair.hyper[view].shape) for view in (0, 1)]
    found += [decoder.latents(indices) for indices in pair.indices]
    return found, decoder.at_end()


def any_tables(rng: np.random.Generator, peaked: float) -> EntropyTables:
    """Tables of random counts, some of them nearly all on one symbol."""

    def counts(size: int) -> np.ndarray:
        shares = rng.random(size) ** rng.choice([1.0, peaked])
        row = 1 + np.floor(shares / shares.sum() * (TOTAL - size)).astype(np.int32)
        row[rng.integers(size)] += TOTAL - row.sum()
        return row

    latent = np.concatenate([counts(2 * limit + 1) for limit in LIMITS])
    return EntropyTables(latent, np.array([[counts(127) for _ in range(CHANNELS)] for _ in range(2)], np.int32))


def any_pair(rng: np.random.Generator, loud: float) -> SimpleNamespace:
    """Symbols of a pair: from silence to the limits of every table; steps of any length, none included."""

    def drawn(limits: np.ndarray) -> np.ndarray:
        spread = np.clip(rng.laplace(size=limits.shape) * loud, -1, 1)
        return np.rint(spread * limits).astype(np.int32)

    shape = (CHANNELS, rng.integers(1, 4), rng.integers(1, 5))
    indices = [rng.integers(0, 64, rng.choice([0, 1, 7, 400])).astype(np.uint8) for _ in range(rng.integers(0, 4))]
    return SimpleNamespace(
        hyper=[drawn(np.full(shape, 63)) for _ in range(2)],
        symbols=[drawn(LIMITS[i]) for i in indices],
        indices=indices,
    )


def assert_the_same(ours: tuple[list[np.ndarray], bool], theirs: tuple[list[np.ndarray], bool]) -> None:
    assert all((a == b).all() for a, b in zip(ours[0], theirs[0], strict=True)) and ours[1] == theirs[1]


@settings(max_examples=60)
@given(st.integers(0, 2**32), st.sampled_from([0.0, 0.01, 0.3, 3.0]), st.sampled_from([1.0, 30.0]))
def test_every_word_is_the_oracles(stream, seed: int, loud: float, peaked: float) -> None:
    rng = np.random.default_rng(seed)
    tables, pair = any_tables(rng, peaked), any_pair(rng, loud)
    coder, oracle = RangeCoder(tables), Oracle(stream, tables)
    payload = ours_encoded(coder, pair)
    assert payload == oracle.encode(pair)
    found, complete = ours_decoded(coder, payload, pair)
    assert complete and all((a == b).all() for a, b in zip(found, [*pair.hyper, *pair.symbols], strict=True))
    assert_the_same((found, complete), oracle.decode(payload, pair))


@settings(max_examples=60)
@given(st.integers(0, 2**32), st.one_of(st.binary(max_size=64), st.binary(min_size=300, max_size=900)))
def test_any_bytes_give_the_oracles_symbols(stream, seed: int, payload: bytes) -> None:
    rng = np.random.default_rng(seed)
    tables, pair = any_tables(rng, 8.0), any_pair(rng, 0.3)
    assert_the_same(ours_decoded(RangeCoder(tables), payload, pair), Oracle(stream, tables).decode(payload, pair))


def test_stored_symbols_give_the_stored_bytes() -> None:
    model = load_model(TINY_MODEL)
    _, payload = packet.unpack((DATA / "tiny.sicm").read_bytes())
    tensors = load_file(DATA / "raster.safetensors")
    raster = StereoEntropyModel(4, 2, "raster", 1).eval()
    raster.load_state_dict({k: v for k, v in tensors.items() if not k.startswith("tables.")})
    for net, tables, data, name, size in (
        (model.net.entropy_model, model.tables, payload, "tiny", (3, 9)),
        (raster, EntropyTables.from_tensors(tensors), (DATA / "raster.payload").read_bytes(), "raster", (5, 9)),
    ):
        coder, prior = RangeCoder(tables), net.integer_prior()
        # The scale indices come with decoding; the symbols are the stored ones.
        seen: list[np.ndarray] = []
        decoder_latents = SymbolDecoder.latents
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(SymbolDecoder, "latents", lambda s, i: (seen.append(i), decoder_latents(s, i))[1])  # noqa: B023
            assert decompress(data, coder, prior, size).complete
        stored = np.load(DATA / f"{name}.symbols.npz")
        ends = np.cumsum([i.size for i in seen])
        steps = np.split(stored["latents"], ends[:-1])
        pair = SimpleNamespace(hyper=[stored["hyper_left"], stored["hyper_right"]], symbols=steps, indices=seen)
        assert ours_encoded(coder, pair) == data


def test_symbols_beyond_their_table_are_refused() -> None:
    encoder = SymbolEncoder(RangeCoder(EntropyTables.build(entropy_model("checkerboard"))))
    for symbol in (17, -17):
        with pytest.raises(ValueError, match="symbols: expected those of their tables"):
            encoder.latents(np.array([16, symbol]), np.array([0, 0]))
    with pytest.raises(ValueError, match="table row"):
        encoder.latents(np.array([0]), np.array([1000]))
    with pytest.raises(ValueError, match="scale index for each, got 2 and 1"):
        encoder.latents(np.array([0, 0]), np.array([0]))
    with pytest.raises(ValueError, match="expected 2 channels, got 1"):
        encoder.hyper(0, np.zeros((1, 2, 2)))


# ------------------------------------------------------------------------------------------------ compilation


def test_nothing_is_compiled_for_the_first_packet() -> None:
    functions = (ans.group, ans.encode, ans.decode)
    before = [f.nopython_signatures for f in functions]
    assert all(len(signatures) == 1 for signatures in before)
    net = entropy_model("checkerboard")
    from codec_material import latents

    coder = RangeCoder(EntropyTables.build(net))
    coded = net.quantise(*latents(1, 4, (3, 5)))
    decompress(compress(coded, coder)[0], coder, net.integer_prior(), (3, 5))
    assert [f.nopython_signatures for f in functions] == before


def import_the_coder(tmp_path: Path, **environment: str) -> subprocess.CompletedProcess:
    """Import it from a copy of the package whose folder takes no compiled code."""
    package = tmp_path / "site" / "sicm_ros"
    if not package.exists():
        shutil.copytree(Path(ans.__file__).parents[1], package, ignore=shutil.ignore_patterns("__pycache__"))
        (package / "codec" / "__pycache__").touch()  # a file: no folder of this name can be made, even by root
    kept = {k: v for k, v in os.environ.items() if k not in ("HOME", "XDG_CACHE_HOME", "NUMBA_CACHE_DIR")}
    environment = {**kept, "PYTHONPATH": str(package.parent), "PYTHONDONTWRITEBYTECODE": "1", **environment}
    code = (
        "from sicm_ros.codec import ans; print(ans.__file__);"
        "print(sum(sum(f.stats.cache_hits.values()) for f in (ans.group, ans.encode, ans.decode)))"
    )
    result = subprocess.run(
        [sys.executable, "-c", code], env=environment, capture_output=True, text=True, cwd=tmp_path, check=False
    )
    assert result.returncode == 0, result.stderr
    file, hits = result.stdout.split()
    assert file == str(package / "codec" / "ans.py")
    return int(hits)


@pytest.mark.slow
def test_a_read_only_package_is_compiled_into_the_users_cache_once(tmp_path: Path) -> None:
    home = tmp_path / "home"
    home.mkdir()
    assert import_the_coder(tmp_path, HOME=str(home)) == 0
    kept = sorted(home.glob(".cache/numba/*/ans.*.nbi"))
    assert len(kept) == 4
    assert import_the_coder(tmp_path, HOME=str(home)) == 3
    # A power cut can leave such files.
    for path in kept:
        path.write_bytes(b"")
    import_the_coder(tmp_path, HOME=str(home))


@pytest.mark.slow
def test_no_place_for_compiled_code_is_no_error(tmp_path: Path) -> None:
    nowhere = tmp_path / "file"
    nowhere.touch()
    assert import_the_coder(tmp_path, HOME=str(nowhere)) == 0
    assert import_the_coder(tmp_path, HOME=str(nowhere), NUMBA_CACHE_DIR=str(tmp_path / "cache")) == 0
    assert len(list(tmp_path.glob("cache/*/ans.*.nbi"))) == 4
    assert import_the_coder(tmp_path, HOME=str(nowhere), NUMBA_CACHE_DIR=str(tmp_path / "cache")) == 3
