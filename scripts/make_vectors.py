"""Writes the golden files of tests/vectors and their manifest.

    python scripts/make_vectors.py           adds files; changes no valid one
    python scripts/make_vectors.py --check   says what differs, writes nothing

Valid files come from the library's encoder, and where that never chooses what
the format allows, from tests/reference/encode.py. Once committed they stay as
they are, whatever later encoders do: readers must go on reading them. Invalid
files are valid ones with one rule of docs/format.md broken and the checksum put
right. All content is integer noise, so that it is the same everywhere.
"""

import argparse
import hashlib
import json
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT / "scripts"), str(ROOT / "tests" / "reference")]

import decode  # noqa: E402
from vectors_invalid import invalid_files  # noqa: E402
from vectors_invalid_tree import invalid_tree_files  # noqa: E402
from vectors_tree import tree_files  # noqa: E402
from vectors_valid import library_files, reference_files  # noqa: E402

VECTORS = ROOT / "tests" / "vectors"


def sha256(data):
    return hashlib.sha256(data).hexdigest()


def array_hashes(data):
    """What a decoder must give: little-endian bytes in row-major order."""
    arrays = decode.decode(data).arrays
    return {
        name: {
            "shape": list(array.shape),
            "dtype": array.dtype.name,
            "sha256": sha256(
                array.astype(array.dtype.newbyteorder("<")).tobytes()
            ),
        }
        for name, array in sorted(arrays.items())
    }


def build():
    """{path below tests/vectors: bytes} and the manifest."""
    library, reference = library_files(), reference_files() | tree_files()
    invalid = invalid_files(library | reference)
    invalid |= invalid_tree_files(library | reference)
    manifest = {"valid": {}, "invalid": {}}
    for name, data in sorted((library | reference).items()):
        manifest["valid"][name] = {
            "sha256": sha256(data),
            "encoder": "library" if name in library else "reference",
            "arrays": array_hashes(data),
        }
    for name, (data, error) in sorted(invalid.items()):
        manifest["invalid"][name] = {"sha256": sha256(data), "error": error}
    files = {f"valid/{n}.mxec": d for n, d in (library | reference).items()}
    files |= {f"invalid/{n}.mxec": d for n, (d, _) in invalid.items()}
    return files, manifest


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--check", action="store_true")
    options = parser.parse_args()
    files, manifest = build()
    text = json.dumps(manifest, indent=1, sort_keys=True) + "\n"
    files["manifest.json"] = text.encode()
    problems = []
    for name, data in files.items():
        path = VECTORS / name
        if path.exists() and path.read_bytes() == data:
            continue
        if options.check or (path.exists() and name.startswith("valid/")):
            problems.append(
                f"{name} {'differs' if path.exists() else 'is missing'}"
            )
            continue
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)
    for path in VECTORS.rglob("*.mxec"):
        if path.relative_to(VECTORS).as_posix() not in files:
            problems.append(
                f"{path.relative_to(VECTORS)} is not made by this script"
            )
    total = sum(map(len, files.values()))
    print(f"{len(files) - 1} vectors, {total} bytes with the manifest")
    if problems:
        sys.exit("\n".join(problems))


if __name__ == "__main__":
    main()
