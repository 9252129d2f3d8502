"""Packs the laid-out package as a wheel: ``wheel.py PACKAGE OUT``.

A wheel is a zip file with a list of its files and their digests (PEP 427); the
extension is for the stable ABI, so that one wheel serves 3.9 and all later ones.
"""

import base64
import hashlib
import pathlib
import platform
import sys
import zipfile

HERE = pathlib.Path(__file__).parent


def project() -> dict:
    """``[project]`` of pyproject.toml: the few keys that are needed."""
    text = (HERE / "pyproject.toml").read_text()
    table = text.partition("[project]\n")[2].partition("\n[")[0]
    found = {}
    for line in table.splitlines():
        key, separator, value = line.partition(" = ")
        if separator and value.startswith('"'):
            found[key] = value.strip('"')
        elif separator and value.startswith('["'):
            found[key] = [item.strip(' "') for item in value.strip("[]").split(",")]
    classifiers = table.partition("classifiers = [")[2].partition("]")[0]
    found["classifiers"] = [line.strip(' ",') for line in classifiers.splitlines() if line.strip()]
    found["repository"] = text.partition('Repository = "')[2].partition('"')[0]
    return found


def metadata(about: dict) -> str:
    """The METADATA file."""
    lines = [
        "Metadata-Version: 2.4",
        f"Name: {about['name']}",
        f"Version: {about['version']}",
        f"Summary: {about['description']}",
        f"Requires-Python: {about['requires-python']}",
        f"License-Expression: {about['license']}",
        *(f"Requires-Dist: {dependency}" for dependency in about["dependencies"]),
        *(f"Classifier: {classifier}" for classifier in about["classifiers"]),
        f"Project-URL: Repository, {about['repository']}",
        "Provides-Extra: numpy",
        'Requires-Dist: numpy; extra == "numpy"',
        "Description-Content-Type: text/markdown",
        "",
        (HERE / "README.md").read_text(),
    ]
    return "\n".join(lines)


def main(package: str, out: str) -> None:
    """Writes the wheel and says where."""
    about = project()
    version = "_".join(platform.libc_ver()[1].split(".")[:2])
    tag = f"cp39-abi3-manylinux_{version}_{platform.machine()}"
    info = f"{about['name']}-{about['version']}.dist-info"
    files = {
        f"stockade/{path.name}": path.read_bytes()
        for path in sorted(pathlib.Path(package).iterdir())
        if path.is_file()
    }
    files[f"{info}/METADATA"] = metadata(about).encode()
    wheel = f"Wheel-Version: 1.0\nGenerator: stockade\nRoot-Is-Purelib: false\nTag: {tag}\n"
    files[f"{info}/WHEEL"] = wheel.encode()
    record = []
    for name, data in files.items():
        digest = base64.urlsafe_b64encode(hashlib.sha256(data).digest()).rstrip(b"=").decode()
        record.append(f"{name},sha256={digest},{len(data)}")
    record.append(f"{info}/RECORD,,")
    files[f"{info}/RECORD"] = ("\n".join(record) + "\n").encode()
    folder = pathlib.Path(out)
    folder.mkdir(parents=True, exist_ok=True)
    place = folder / f"{about['name']}-{about['version']}-{tag}.whl"
    with zipfile.ZipFile(place, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, data in files.items():
            archive.writestr(name, data)
    print(place)


if __name__ == "__main__":
    main(*sys.argv[1:])
