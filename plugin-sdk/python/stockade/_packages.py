"""Are the packages there that a plugin requires? Nothing is imported."""

import os
import sys
import sysconfig
from importlib.machinery import PathFinder
from importlib.util import find_spec

# Import names whose distribution is called otherwise.
_DISTRIBUTIONS = {
    "attr": "attrs",
    "bs4": "beautifulsoup4",
    "cv2": "opencv-python-headless",
    "dateutil": "python-dateutil",
    "dotenv": "python-dotenv",
    "faiss": "faiss-cpu",
    "fitz": "PyMuPDF",
    "google.protobuf": "protobuf",
    "jwt": "PyJWT",
    "magic": "python-magic",
    "mpl_toolkits": "matplotlib",
    "OpenSSL": "pyOpenSSL",
    "PIL": "pillow",
    "pkg_resources": "setuptools",
    "serial": "pyserial",
    "skimage": "scikit-image",
    "sklearn": "scikit-learn",
    "umap": "umap-learn",
    "usb": "pyusb",
    "yaml": "PyYAML",
    "zmq": "pyzmq",
}


def missing(packages: "list[str]", directory: str) -> "tuple[list[str], str]":
    """The import names that cannot be imported, and how to install them."""
    absent = [name for name in packages if not _found(name)]
    if not absent:
        return [], ""
    wanted = []
    partial = []
    for name in absent:
        root = name.partition(".")[0]
        if "." in name and _found(root):
            partial.append(f"the installed {root} has no {name}: install a build that has it")
        else:
            wanted.append(_DISTRIBUTIONS.get(name) or _DISTRIBUTIONS.get(root, root))
    hints = [_install(wanted, directory)] if wanted else []
    return absent, "; ".join(hints + partial)


def places(directory: str) -> "list[str]":
    """Folders whose change may bring a package."""
    folders = [path for path in sys.path if os.path.isdir(path)]
    return [*folders, os.path.join(directory, ".venv")]


def _found(name: str) -> bool:
    """The root is found, then each submodule is located, without importing it."""
    if name in sys.modules:
        return True
    root, *rest = name.split(".")
    try:
        spec = find_spec(root)
    except (ImportError, ValueError):
        return False
    for count in range(len(rest)):
        if spec is None or spec.submodule_search_locations is None:
            return False
        full = ".".join([root, *rest[: count + 1]])
        spec = PathFinder.find_spec(full, spec.submodule_search_locations)
    return spec is not None


def _install(distributions: "list[str]", directory: str) -> str:
    names = " ".join(dict.fromkeys(distributions))
    in_venv = sys.prefix != sys.base_prefix
    marker = os.path.join(sysconfig.get_path("stdlib"), "EXTERNALLY-MANAGED")
    if in_venv or not os.path.exists(marker):
        return f"{sys.executable} -m pip install {names}"
    # The system's packages are not pip's: the plugin gets an environment.
    venv = os.path.join(directory, ".venv")
    return f"{sys.executable} -m venv {venv} && {venv}/bin/pip install {names}"
