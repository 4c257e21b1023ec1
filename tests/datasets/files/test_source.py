"""Files of a folder."""

from datasets.files.source import Folder
from tests.label_files import fails, write_folder

FILES = {"a.jpg": b"photo", "sub/\xe9.jpg": b"some text " * 400_000, "empty.jpg": b""}


def test_folder(tmp_path):
    source = Folder(write_folder(tmp_path, FILES))
    assert {name: source.read(name, member) for name, member in source.members().items()} == FILES
    assert source.below("sub").read("\xe9.jpg") == FILES["sub/\xe9.jpg"]
    fingerprint, digest = source.fingerprint(), source.digest("a.jpg")
    (tmp_path / "a.jpg").write_bytes(b"other")
    assert source.fingerprint() == fingerprint
    assert source.digest("a.jpg") != digest
    (tmp_path / "a.jpg").rename(tmp_path / "b.jpg")
    assert source.fingerprint() != fingerprint
    fails(r"cannot read .*a\.jpg: No such file", source.read, "a.jpg")
