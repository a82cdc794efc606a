"""Old blocks stay readable: golden files of each version, by this decoder and one written from the document."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from pipeline.codec import CodecModel, decode_block, unpack_frame
from pipeline.codec.container import VERSION
from tests.golden.make_blocks import expected_bytes
from tests.golden.make_files import rows_of

FOLDER = Path(__file__).parent / "v1"
FILES = Path(__file__).parent / "files"
DECODER = Path(__file__).parent / "decoder"
NAMES = sorted(path.stem for path in FOLDER.glob("*.nb"))


@pytest.fixture(scope="module")
def model() -> CodecModel:
    """The codec model that the golden blocks name."""
    return CodecModel.from_bytes((FOLDER / "model.nc").read_bytes())


@pytest.mark.parametrize("name", NAMES)
def test_golden_blocks_decode_to_the_same_bits(name: str, model: CodecModel) -> None:
    frame = (FOLDER / f"{name}.nb").read_bytes()
    blocks = [decode_block(block, {model.id: model}) for block in unpack_frame(frame)]
    assert expected_bytes(blocks) == (FOLDER / f"{name}.expected").read_bytes()


@pytest.mark.parametrize("path", sorted(FILES.glob("*.nrw")), ids=lambda path: path.stem)
def test_golden_files_of_each_version_are_read(path: Path) -> None:
    read = rows_of(path)
    with np.load(path.with_suffix(".npz")) as expected:
        assert sorted(expected) == sorted(read)
        for name, array in expected.items():
            if array.dtype.kind == "f":      # rebuilt from latents: another machine's arithmetic
                np.testing.assert_allclose(read[name], array, rtol=1e-5, atol=1e-6 if "latent" in path.stem else 0)
            else:
                assert (read[name] == array).all()


def test_there_is_a_golden_file_of_the_present_version() -> None:
    assert {f"v{VERSION}.nrw", f"v{VERSION}-latent.nrw"} <= {path.name for path in FILES.iterdir()}


def test_a_codec_model_comes_back_to_the_same_id(model: CodecModel) -> None:
    again = CodecModel.from_bytes(model.to_bytes())
    assert again.id == model.id
    assert again.payload == model.payload


@pytest.fixture(scope="module")
def decoder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The Rust decoder, built where cargo and its three crates are at hand."""
    cargo = shutil.which("cargo")
    if cargo is None:
        pytest.skip("no cargo: the second decoder can't be built")
    target = Path(os.environ.get("CARGO_TARGET_DIR", tmp_path_factory.mktemp("target")))
    made = subprocess.run(
        [cargo, "build", "--release", "--locked", "--manifest-path", str(DECODER / "Cargo.toml")],
        env={**os.environ, "CARGO_TARGET_DIR": str(target)}, capture_output=True, text=True, check=False,
    )
    if made.returncode != 0 and ("download" in made.stderr or "registry" in made.stderr or "network" in made.stderr):
        pytest.skip(f"the second decoder's crates can't be fetched: {made.stderr.strip().splitlines()[-1]}")
    assert made.returncode == 0, made.stderr
    return target / "release" / "narrows-decoder"


@pytest.mark.timeout(600)
@pytest.mark.parametrize("name", NAMES)
def test_a_decoder_written_from_the_document_agrees(name: str, decoder: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    subprocess.run([decoder, FOLDER / f"{name}.nb", out, FOLDER / "model.nc"], check=True)
    assert out.read_bytes() == (FOLDER / f"{name}.expected").read_bytes()


def test_the_decoder_needs_neither_torch_nor_onnxruntime() -> None:
    code = (
        "import sys; sys.modules.update(dict.fromkeys(['torch', 'onnxruntime', 'onnx', 'faust', 'aiokafka', 'kafka']));"
        "from pathlib import Path; from pipeline.codec import *; f = Path(sys.argv[1]);"
        "m = CodecModel.from_bytes((f / 'model.nc').read_bytes());"
        "b = [decode_block(x, {m.id: m}) for x in unpack_frame((f / 'learned.nb').read_bytes())]; print(len(b))"
    )
    made = subprocess.run([sys.executable, "-c", code, str(FOLDER)], capture_output=True, text=True, check=True)
    assert made.stdout.strip() == "3"
