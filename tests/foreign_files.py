"""What every reader of files of unknown origin must pass, see `tests.mutations`."""

import pytest

from tests.mutations import damaged, strange


def contents(files, tmp_path_factory):
    """Contents of a file of each kind.

    `files` has for each kind a function of a path that writes a file, and one that
    reads it.
    """
    found = {}
    for kind, (write, _) in files.items():
        path = tmp_path_factory.mktemp("sound") / "file"
        write(path)
        # numpy appends its own suffix
        file = path if path.exists() else path.with_name("file.npz")
        found[kind] = file.read_bytes()
    return found


def raises_for_another_file(read, path, which):
    """The reader raises with the name of the file and runs and changes nothing."""
    content = strange(path.with_name("code_ran"))[which]
    path.write_bytes(content)
    with pytest.raises(ValueError, match=path.name):
        read(path)
    assert path.read_bytes() == content and not path.with_name("code_ran").exists()


def reads_or_raises(read, path, content, seed):
    """A damaged file is read, perhaps with other numbers, or raises with its name."""
    path.write_bytes(damaged(content, seed))
    try:
        read(path)
    except (ValueError, OSError) as error:
        assert path.name in str(error)
